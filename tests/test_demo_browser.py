"""The demo in a real browser, used as a visitor would: what counts is what the page shows."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from PIL import Image
from playwright.sync_api import expect

import minicliplib as mc
from minicliplib import demo

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("screenshots", ROOT / "report" / "screenshots.py")
screenshots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(screenshots)
account, browser, tab = screenshots.account, screenshots.browser, screenshots.tab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        screenshots.CHROMIUM is None and not os.environ.get("MINICLIP_NEEDS_BROWSER"),
        reason="Chromium is not installed (Debian: apt install chromium)",
    ),
]
CAT = 2  # of the pictures to pick


@pytest.fixture(scope="module")
def called():
    """Hosts beyond this computer that the server, which runs in this process, looked up."""
    hosts, look_up = [], socket.getaddrinfo

    def local_only(host, *arguments, **options):
        if host not in (None, "localhost", "127.0.0.1", b"127.0.0.1"):
            hosts.append(host)
            raise OSError(f"{host} is beyond this computer")
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local_only)
        yield hosts


@pytest.fixture(scope="module")
def visit(called):
    """One page for all tests, and what it asked elsewhere: neither it nor its server may ask anything there."""
    shown = demo.Demo(mc.load("mixed"), mc.load_dataset("photos+sample", "test", limit=12))
    with demo.Server(shown) as server, browser(server.url) as (page, outside):
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page, outside
        assert (outside, called, complaints) == ([], [], [])


@pytest.fixture
def page(visit):
    visit[0].reload()
    expect(visit[0].get_by_role("tab", name="Find images")).to_be_visible()
    return visit[0]


def gallery_labels(panel):
    return panel.locator(".grid-wrap .caption-label").all_inner_texts()


def ask(panel, sentence):
    panel.get_by_label("A sentence").fill(sentence)
    panel.get_by_role("button", name="Find").click()


def ticks(panel):
    return sum("✓" in row for row in panel.get_by_role("row").all_inner_texts())


def upload(panel, path):
    panel.get_by_test_id("image").get_by_test_id("file-upload").set_input_files(path)


def bars(panel):
    """Label and percentage of each bar, as shown."""
    expect(panel.locator(".confidence-set").first).to_be_visible()
    rows = panel.locator(".confidence-set").all()
    return [tuple(re.split(r"\s+(?=\d+%$)", row.inner_text().strip())) for row in rows]


def test_a_question_to_another_computer_would_be_seen(visit, called):
    """The two watchmen over all these tests are awake."""
    page, outside = visit
    with pytest.raises(requests.ConnectionError):
        requests.get("http://example.com/", timeout=5)
    page.evaluate("fetch('http://example.com/').catch(() => 0)")
    assert called == ["example.com"]
    assert outside == ["http://example.com/"]
    called.clear()
    outside.clear()


def test_find_images(page):
    panel = tab(page, "Find images")
    ask(panel, "A cat looks at the camera.")
    expect(account(panel)).to_have_text(re.compile(r"The best 8 of 18 images, in \d+\.\d\d s\."))
    labels = gallery_labels(panel)
    assert len(labels) == 8
    assert labels[0].endswith("chelsea.png")
    scores = [float(label.split()[0]) for label in labels]
    assert scores == sorted(scores, reverse=True)

    panel.get_by_role("spinbutton").fill("3")
    panel.get_by_role("spinbutton").press("Enter")
    panel.get_by_role("spinbutton").blur()
    expect(account(panel)).to_contain_text("The best 3 of 18 images")
    assert gallery_labels(panel) == labels[:3]

    plain = panel.locator(".grid-wrap img").first.get_attribute("src")
    panel.get_by_label("Show why").check()
    expect(panel.locator(".grid-wrap img").first).not_to_have_attribute("src", plain)
    assert gallery_labels(panel) == labels[:3]


def test_an_example_can_be_clicked(page):
    panel = tab(page, "Find images")
    panel.get_by_role("button", name=demo.QUERIES[0]).click()
    expect(account(panel)).to_contain_text("The best 8 of 18 images")
    expect(panel.get_by_label("A sentence")).to_have_value(demo.QUERIES[0])
    assert gallery_labels(panel)[0].endswith("chelsea.png")


def test_an_empty_and_a_very_long_sentence(page):
    panel = tab(page, "Find images")
    ask(panel, "A cat")
    expect(account(panel)).to_contain_text("The best 8")
    ask(panel, "   ")
    expect(account(panel)).to_contain_text("The sentence is empty: type what the image should show.")
    expect(panel.locator(".grid-wrap img")).to_have_count(0)
    ask(panel, "a dog and a cat and " * 500)
    expect(account(panel)).to_contain_text("only its first 40 word pieces were read")
    expect(panel.locator(".grid-wrap img")).to_have_count(8)


def test_find_captions_of_a_picked_image(page):
    panel = tab(page, "Find captions")
    panel.locator(".grid-wrap button").nth(CAT).click()
    expect(account(panel)).to_have_text(re.compile(r"The best 8 of \d+ captions, in \d+\.\d\d s\."))
    first = panel.get_by_role("row").nth(1)
    expect(first).to_contain_text("A ginger cat with green eyes.")
    expect(first).to_contain_text("✓")
    assert ticks(panel) == 1
    panel.get_by_label("Show why").check()
    expect(panel.get_by_text("Where the best caption is seen")).to_be_visible()


def test_find_captions_of_an_upload_and_of_what_is_no_image(page, tmp_path):
    panel, cat = tab(page, "Find captions"), mc.load_dataset("photos").images[CAT]
    upload(panel, cat)
    expect(account(panel)).to_contain_text("captions, in")
    expect(panel.get_by_role("row").nth(1)).to_contain_text("A ginger cat with green eyes.")
    assert ticks(panel) == 0  # what is true of an upload is not known

    page.reload()
    panel = tab(page, "Find captions")
    (tmp_path / "words.png").write_text("no image at all")
    upload(panel, tmp_path / "words.png")
    expect(account(panel)).to_contain_text("words.png cannot be read as an image")


def test_a_huge_image_is_named_or_refused(page, tmp_path):
    panel = tab(page, "Name it")
    cat = Image.open(mc.load_dataset("photos").images[CAT])
    cat.resize((8000, 6000)).save(tmp_path / "huge.jpg", quality=30)
    upload(panel, tmp_path / "huge.jpg")
    expect(account(panel)).to_contain_text("The best 1 of 12 labels")
    assert bars(panel)[0][0] == "cat"

    page.reload()
    panel = tab(page, "Name it")
    Image.new("1", (12000, 9000)).save(tmp_path / "bomb.png")
    upload(panel, tmp_path / "bomb.png")
    expect(account(panel)).to_contain_text("bomb.png has more than 89 million pixels")


def test_an_upload_beyond_the_limit_is_refused(page, tmp_path):
    (tmp_path / "heavy.png").write_bytes(os.urandom(demo.MOST_MEGABYTES * 2**20 + 1))
    upload(tab(page, "Name it"), tmp_path / "heavy.png")
    expect(page.get_by_text(re.compile("maximum|too large|exceeds", re.I)).first).to_be_visible()


def test_name_it_with_own_labels_and_template(page):
    panel = tab(page, "Name it")
    panel.locator(".grid-wrap button").nth(CAT).click()
    expect(account(panel)).to_contain_text("The best 1 of 12 labels")
    first = bars(panel)
    assert len(first) == 12
    assert first[0][0] == "cat"

    panel.get_by_label("Labels, with commas between").fill("rocket, green eyes, cup")
    panel.get_by_role("button", name="Prompt templates").click()
    panel.get_by_label("Templates").fill("something with {} in it")
    panel.get_by_role("button", name="Name it").click()
    expect(account(panel)).to_contain_text("The best 1 of 3 labels")
    assert bars(panel)[0][0] == "green eyes"

    panel.get_by_label("Templates").fill("something")
    panel.get_by_role("button", name="Name it").click()
    expect(account(panel)).to_contain_text("Each prompt template needs {}")


def test_sixty_labels_none_and_no_image(page):
    panel = tab(page, "Name it")
    panel.get_by_role("button", name="Name it").click()
    expect(account(panel)).to_contain_text("There is no image yet")
    panel.locator(".grid-wrap button").nth(CAT).click()
    expect(account(panel)).to_contain_text("labels, in")
    labels = panel.get_by_label("Labels, with commas between")
    labels.fill(", ".join(["cat", *(f"thing number {i}" for i in range(59))]))
    panel.get_by_role("button", name="Name it").click()
    expect(account(panel)).to_contain_text("The best 1 of 60 labels")
    assert bars(panel)[0][0] == "cat"
    labels.fill("")
    panel.get_by_role("button", name="Name it").click()
    expect(account(panel)).to_contain_text("give one or more labels")


def test_the_command_serves_a_folder_and_stops(page, tmp_path):
    """Start, use and stop it as from a shell: ``miniclip demo --images FOLDER``."""
    for i, path in enumerate(mc.load_dataset("photos").images):
        Image.open(path).convert("RGB").save(tmp_path / f"photo {i}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")
    command = [sys.executable, "-m", "minicliplib", "demo", "--images", str(tmp_path)]
    start, visitor = time.monotonic(), page.context.new_page()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        seconds = time.monotonic() - start
        visitor.goto(url)
        panel = tab(visitor, "Find images")
        ask(panel, "A cat looks at the camera.")
        expect(account(panel)).to_contain_text("The best 6 of 6 images")
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
    indexes = {*(mc.config.data_root() / "cache").glob("index-folder-*")}
    demo.Demo(mc.load("mixed"), mc.load_dataset("folder", root=tmp_path), tmp_path)
    assert {*(mc.config.data_root() / "cache").glob("index-folder-*")} == indexes  # this folder has its own already
    assert seconds < 60, seconds  # notebook 07 measures it on two free cores; tests share theirs
