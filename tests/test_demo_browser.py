"""The demo in a real browser, used as a visitor would: what counts is what the page shows."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest
import requests
import screenshots
from PIL import Image
from playwright.sync_api import expect
from screenshots import browser, open_tab, summary_of

import minicliplib as mc
from minicliplib.apps import demo

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        screenshots.chromium() is None and not os.environ.get("MINICLIP_NEEDS_BROWSER"),
        reason="Chromium is not installed (Debian: apt install chromium)",
    ),
]
CAT = 2  # of the images to pick
QUERY = "A cat looks at the camera."
CAPTION = "A ginger cat with green eyes."


@pytest.fixture(scope="module")
def looked_up():
    """Hosts beyond this computer that the server, which runs in this process, looked up."""
    hosts = []
    look_up = socket.getaddrinfo

    def look_up_here_only(host, *arguments, **options):
        if host not in (None, "localhost", "127.0.0.1", b"127.0.0.1"):
            hosts.append(host)
            raise OSError(f"{host} is beyond this computer")
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up_here_only)
        yield hosts


@pytest.fixture(scope="module")
def visit(looked_up):
    """One page for all tests, and the addresses elsewhere that it asked for.

    Neither the page nor its server may ask for any.
    """
    shown = demo.Demo(mc.load("everyday"), mc.load_dataset("photos+sample", "test", limit=12))
    complaints = []
    with demo.Server(shown) as server, browser(server.url) as (page, outside):
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page, outside
        assert outside == []
        assert looked_up == []
        assert complaints == []


@pytest.fixture
def page(visit):
    page, _ = visit
    page.reload()
    expect(page.get_by_role("tab", name="Find images")).to_be_visible()
    return page


# ---- what a visitor does and sees ------------------------------------------------------------


def ask(panel, sentence):
    panel.get_by_label("A sentence").fill(sentence)
    panel.get_by_role("button", name="Find").click()


def upload(panel, path):
    panel.get_by_test_id("image").get_by_test_id("file-upload").set_input_files(path)


def pick(panel, position):
    panel.locator(".grid-wrap button").nth(position).click()


def results(panel):
    return panel.locator(".grid-wrap img")


def gallery_labels(panel):
    return panel.locator(".grid-wrap .caption-label").all_inner_texts()


def ticks(panel):
    return sum("✓" in row for row in panel.get_by_role("row").all_inner_texts())


def bars(panel):
    """Label and percentage of each bar, as shown."""
    expect(panel.locator(".confidence-set").first).to_be_visible()
    rows = panel.locator(".confidence-set").all()
    return [tuple(re.split(r"\s+(?=\d+%$)", row.inner_text().strip())) for row in rows]


# ---- the page --------------------------------------------------------------------------------


def test_a_question_to_another_computer_would_be_seen(visit, looked_up):
    """The two watchmen over all these tests are awake."""
    page, outside = visit
    with pytest.raises(requests.ConnectionError):
        requests.get("http://example.com/", timeout=5)
    page.evaluate("fetch('http://example.com/').catch(() => 0)")
    assert looked_up == ["example.com"]
    assert outside == ["http://example.com/"]
    looked_up.clear()
    outside.clear()


def test_find_images(page):
    panel = open_tab(page, "Find images")
    ask(panel, QUERY)
    summary = re.compile(r"The best 8 of 18 images, in \d+\.\d\d s\.")
    expect(summary_of(panel)).to_have_text(summary)
    labels = gallery_labels(panel)
    assert len(labels) == 8
    assert labels[0].endswith("chelsea.png")
    scores = [float(label.split()[0]) for label in labels]
    assert scores == sorted(scores, reverse=True)

    # fewer results
    number = panel.get_by_role("spinbutton")
    number.fill("3")
    number.press("Enter")
    number.blur()
    expect(summary_of(panel)).to_contain_text("The best 3 of 18 images")
    assert gallery_labels(panel) == labels[:3]

    # the same results under their maps
    plain = results(panel).first.get_attribute("src")
    panel.get_by_label("Show why").check()
    expect(results(panel).first).not_to_have_attribute("src", plain)
    assert gallery_labels(panel) == labels[:3]


def test_an_example_can_be_clicked(page):
    panel = open_tab(page, "Find images")
    panel.get_by_role("button", name=demo.QUERIES[0]).click()
    expect(summary_of(panel)).to_contain_text("The best 8 of 18 images")
    expect(panel.get_by_label("A sentence")).to_have_value(demo.QUERIES[0])
    assert gallery_labels(panel)[0].endswith("chelsea.png")


def test_an_empty_and_a_very_long_sentence(page):
    panel = open_tab(page, "Find images")
    ask(panel, "A cat")
    expect(summary_of(panel)).to_contain_text("The best 8")

    ask(panel, "   ")
    message = "The sentence is empty: type what the image should show."
    expect(summary_of(panel)).to_contain_text(message)
    expect(results(panel)).to_have_count(0)

    ask(panel, "a dog and a cat and " * 500)
    expect(summary_of(panel)).to_contain_text("only its first 40 word pieces were read")
    expect(results(panel)).to_have_count(8)


def test_find_captions_of_a_picked_image(page):
    panel = open_tab(page, "Find captions")
    pick(panel, CAT)
    summary = re.compile(r"The best 8 of \d+ captions, in \d+\.\d\d s\.")
    expect(summary_of(panel)).to_have_text(summary)
    first = panel.get_by_role("row").nth(1)
    expect(first).to_contain_text(CAPTION)
    expect(first).to_contain_text("✓")
    assert ticks(panel) == 1

    panel.get_by_label("Show why").check()
    expect(panel.get_by_text("Where the best caption is seen")).to_be_visible()


def test_find_captions_of_an_upload_and_of_what_is_no_image(page, tmp_path):
    panel = open_tab(page, "Find captions")
    upload(panel, mc.load_dataset("photos").images[CAT])
    expect(summary_of(panel)).to_contain_text("captions, in")
    expect(panel.get_by_role("row").nth(1)).to_contain_text(CAPTION)
    # what is true of an upload is not known
    assert ticks(panel) == 0

    page.reload()
    panel = open_tab(page, "Find captions")
    (tmp_path / "words.png").write_text("no image at all")
    upload(panel, tmp_path / "words.png")
    expect(summary_of(panel)).to_contain_text("words.png cannot be read as an image")


def test_a_huge_image_is_named_or_refused(page, tmp_path):
    panel = open_tab(page, "Name it")
    with Image.open(mc.load_dataset("photos").images[CAT]) as cat:
        cat.resize((8000, 6000)).save(tmp_path / "huge.jpg", quality=30)
    upload(panel, tmp_path / "huge.jpg")
    expect(summary_of(panel)).to_contain_text("The best 1 of 12 labels")
    assert bars(panel)[0][0] == "cat"

    page.reload()
    panel = open_tab(page, "Name it")
    Image.new("1", (12000, 9000)).save(tmp_path / "bomb.png")
    upload(panel, tmp_path / "bomb.png")
    expect(summary_of(panel)).to_contain_text("bomb.png has more than 89 million pixels")


def test_an_upload_beyond_the_limit_is_refused(page, tmp_path):
    (tmp_path / "heavy.png").write_bytes(os.urandom(demo.MOST_MEGABYTES * 2**20 + 1))
    upload(open_tab(page, "Name it"), tmp_path / "heavy.png")
    refusal = re.compile("maximum|too large|exceeds", re.IGNORECASE)
    expect(page.get_by_text(refusal).first).to_be_visible()


def test_name_it_with_own_labels_and_template(page):
    panel = open_tab(page, "Name it")
    pick(panel, CAT)
    expect(summary_of(panel)).to_contain_text("The best 1 of 12 labels")
    first = bars(panel)
    assert len(first) == 12
    assert first[0][0] == "cat"

    # other labels, another template
    panel.get_by_label("Labels, with commas between").fill("rocket, green eyes, cup")
    panel.get_by_role("button", name="Prompt templates").click()
    panel.get_by_label("Templates").fill("something with {} in it")
    panel.get_by_role("button", name="Name it").click()
    expect(summary_of(panel)).to_contain_text("The best 1 of 3 labels")
    # The summary may change a moment before the bars do.
    expect(panel.locator(".confidence-set").first).to_contain_text("green eyes")
    assert bars(panel)[0][0] == "green eyes"

    # a template without a place for the label
    panel.get_by_label("Templates").fill("something")
    panel.get_by_role("button", name="Name it").click()
    expect(summary_of(panel)).to_contain_text("Each prompt template needs {}")


def test_sixty_labels_none_and_no_image(page):
    panel = open_tab(page, "Name it")
    button = panel.get_by_role("button", name="Name it")
    labels = panel.get_by_label("Labels, with commas between")
    button.click()
    expect(summary_of(panel)).to_contain_text("There is no image yet")
    pick(panel, CAT)
    expect(summary_of(panel)).to_contain_text("labels, in")

    things = [f"thing number {i}" for i in range(59)]
    labels.fill(", ".join(["cat", *things]))
    button.click()
    expect(summary_of(panel)).to_contain_text("The best 1 of 60 labels")
    assert bars(panel)[0][0] == "cat"

    labels.fill("")
    button.click()
    expect(summary_of(panel)).to_contain_text("give one or more labels")


# ---- the command -----------------------------------------------------------------------------


def stored_indexes():
    return set((mc.paths.data_root() / "cache").glob("index-folder-*"))


def test_the_command_serves_a_folder_and_stops(page, tmp_path):
    """Start, use and stop it as from a shell: ``miniclip demo --images FOLDER``."""
    for i, path in enumerate(mc.load_dataset("photos").images):
        with Image.open(path) as photo:
            photo.convert("RGB").save(tmp_path / f"photo {i}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")

    visitor = page.context.new_page()
    command = [sys.executable, "-m", "minicliplib", "demo", "--images", str(tmp_path)]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        [url] = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        seconds = time.monotonic() - start
        visitor.goto(url)
        panel = open_tab(visitor, "Find images")
        ask(panel, QUERY)
        expect(summary_of(panel)).to_contain_text("The best 6 of 6 images")
        assert gallery_labels(panel)[0].endswith("photo 2.jpg")
        visitor.close()
        process.terminate()
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "left out: Cannot read the image" in errors
    assert "broken.jpg" in errors
    assert "Traceback" not in errors

    # the command has left an index of this folder, and the next demo takes it
    indexes = stored_indexes()
    demo.Demo(mc.load("everyday"), mc.load_dataset("folder", root=tmp_path), tmp_path)
    assert stored_indexes() == indexes

    # notebook 07 measures the start on two free cores; tests share theirs
    assert seconds < 60, seconds
