"""Report and slides show the numbers of report/results, all of them and nothing else."""

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import build
import pytest
import tables
from conftest import change_result
from pypdf import PdfReader

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("report", "slides")
# Names that hold a digit; 95% is one of an interval. Any other digit is part of a number, which
# must come from a result.
WITH_DIGITS = "|".join(
    (
        r"[Ff]lickr\d+k",
        r"EfficientNet-Lite\d",
        r"CIFAR-10",
        r"Caltech-101",
        r"val2017",
        r"train2017",
        r"R@1",
        r"top-[15]",
        r"95%",
        r"\^−1\^",
        r"CC BY-SA 4\.0",
        r"CC0",
    )
)


class Page(HTMLParser):
    """What a page says, word by word, and its tags with their attributes."""

    SILENT = ("style", "script", "math")

    def __init__(self, text: str):
        super().__init__()
        self.said: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.silent = 0  # how many tags are open whose text is not said
        self.feed(text)

    @classmethod
    def of(cls, path: Path) -> "Page":
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.silent += tag in self.SILENT

    def handle_endtag(self, tag):
        self.silent -= tag in self.SILENT

    def handle_data(self, data):
        if not self.silent:
            self.said += data.split()

    def attributes_of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return the folder of a fresh build."""
    out = tmp_path_factory.mktemp("report")
    for name in NAMES:
        build.build(name, out)
    return out


@pytest.fixture
def change(tmp_path, monkeypatch) -> Callable[..., None]:
    """Return a function that changes a result, in a copy of all results that everything reads."""
    (tmp_path / "report").mkdir()
    for path in (ROOT / "report" / "results").rglob("*.json"):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    for name in ("notebooks", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    def change(dataset: str, topic: str, *keys: str, to: Any) -> None:
        change_result(tables.source(dataset, topic), *keys, to=to)

    return change


def words(path: Path) -> str:
    return " ".join(page.extract_text() for page in PdfReader(path).pages)


def images(html: str) -> list[str]:
    return [attributes["src"] for attributes in Page(html).attributes_of("img")]


# ---- what is built ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_what_would_be_built(built, name):
    committed = Page.of(ROOT / "report" / f"{name}.html")
    fresh = Page.of(built / f"{name}.html")
    assert committed.said == fresh.said, "Run: make report"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_pdf_is_what_would_be_built(built, name):
    committed = ROOT / "report" / f"{name}.pdf"
    fresh = built / f"{name}.pdf"

    # Another version of Typst may hyphenate otherwise, but the numbers stay. A figure that another
    # matplotlib drew may move a page break, so the order of words is left out.
    same_typst = PdfReader(committed).metadata.creator == PdfReader(fresh).metadata.creator
    compared = r"\S+" if same_typst else r"\d+\.\d+"
    old = Counter(re.findall(compared, words(committed)))
    new = Counter(re.findall(compared, words(fresh)))
    assert old == new, "Run: make report"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_inputs_give_the_same_files(built, name, tmp_path):
    build.build(name, tmp_path)
    for file in (f"{name}.html", f"{name}.pdf"):
        assert (tmp_path / file).read_bytes() == (built / file).read_bytes(), file


@pytest.mark.parametrize(("name", "fewest", "most"), [("report", 8, 14), ("slides", 10, 14)])
def test_pages_are_as_many_as_asked_and_bring_their_fonts(built, name, fewest, most):
    reader = PdfReader(built / f"{name}.pdf")
    assert fewest <= len(reader.pages) <= most
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]  # tagged, for screen readers
    for page in reader.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            for inner in font.get_object().get("/DescendantFonts", []):
                descriptor = inner.get_object()["/FontDescriptor"]
                assert any(key.startswith("/FontFile") for key in descriptor)


@pytest.mark.parametrize("name", NAMES)
def test_pages_open_anywhere(built, name):
    html = (built / f"{name}.html").read_text(encoding="utf-8")
    assert len(html) < 6e6
    page = Page(html)
    for tag, attributes in page.tags:  # links may lead elsewhere; nothing is loaded from there
        assert tag not in ("link", "iframe", "object")
        assert tag == "img" or "src" not in attributes
    assert not re.search(r"url\(|@import", html.split("</style>")[0])

    identities = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(identities.values()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_pages_can_be_listened_to(built, name):
    page = Page.of(built / f"{name}.html")
    shown = page.attributes_of("img")
    assert shown
    for attributes in shown:
        assert len(attributes["alt"]) > 20
        assert attributes["src"].startswith("data:image/")
    if name == "report":
        assert len(page.attributes_of("figcaption")) == len(shown)

    heads = page.attributes_of("th")
    assert heads
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)


def test_every_reference_is_cited_and_found(built):
    bibliography = (ROOT / "report" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{(\w+),", bibliography, re.MULTILINE)
    html = (built / "report.html").read_text(encoding="utf-8")
    assert len(keys) == len(set(keys))
    assert set(re.findall(r'id="ref-(\w+)"', html)) == set(keys)
    assert not re.search(r"\w\?</strong>[,;)]", html)  # how an unknown key would be printed


# ---- numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "value", "seen"),
    [
        (("flickr8k", "04_retrieval", "trained", "image_to_text", "R@1"), 0.98765, "98.8"),
        (("flickr8k", "05_zero_shot", "cifar10", "all_images", "top1"), 0.87654, "87.7"),
        (("flickr8k", "06_embedding", "human", "expert", "tau"), 0.76543, "76.5"),
        (
            ("benchmarks", "cross", "models", "coco", "flickr8k", "dev", "scores", "mean_recall"),
            0.65432,
            "65.4",
        ),
        (("flickr8k", "01_data", "vocabulary", "size"), 43219, "43,219"),
    ],
)
def test_a_changed_result_changes_the_report(change, tmp_path, where, value, seen):
    text = build.Text("report", tmp_path).markdown
    change(*where, to=value)
    changed = build.Text("report", tmp_path).markdown
    assert seen in changed
    assert seen not in text


def test_a_changed_result_changes_one_figure_of_the_slides(change, tmp_path):
    before = images(build.Text("slides", tmp_path).html())
    (tmp_path / "recall.svg").unlink()
    change("flickr8k", "04_retrieval", "trained", "image_to_text", "R@10", to=0.12345)
    after = images(build.Text("slides", tmp_path).html())
    changed = [old != new for old, new in zip(before, after, strict=True)]
    assert sum(changed) == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_number_is_typed(name):
    source = (ROOT / "report" / f"{name}.md").read_text(encoding="utf-8")
    text = re.sub(WITH_DIGITS, "", source)
    assert re.findall(r"\d[.,]\d", text) == []  # not even inside an expression
    text = re.sub(r"<<.*?>>|<%.*?%>|<#.*?#>|@\w+", "", text, flags=re.DOTALL)
    assert re.findall(r".*\d.*", text) == []


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "no"), (2.0, "two"), (12, "twelve"), (13, "13"), (1234, "1,234")]
)
def test_small_numbers_are_words(value, expected):
    assert build.in_letters(value) == expected


def test_how_often_ours_is_the_higher_one():
    ours = {"R@1": 0.3006, "R@5": 0.6, "R@10": 0.7}
    low_ends = {"R@1": [0.28, 0.32], "R@5": [0.58, 0.62], "R@10": [0.68, 0.72]}
    scores = {"image_to_text": ours, "text_to_image": ours}
    intervals = {"image_to_text": low_ends, "text_to_image": low_ends}
    published = (30.0, 61.0, None, 30.1, 55.0, 69.0)
    assert build.higher(scores, published) == "three of the five"
    with_intervals = build.higher(scores, published, intervals)
    assert with_intervals == "three of the five (one by more than the interval)"


# ---- what is missing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "topic", "remedy"),
    [
        (
            "flickr8k",
            "04_retrieval",
            "Run notebooks/04_retrieval_evaluation.ipynb: python notebooks/run.py --dataset",
        ),
        (
            "sample",
            "05_zero_shot",
            "Run notebooks/05_zero_shot_classification.ipynb: python notebooks/run.py",
        ),
        ("benchmarks", "scale", "Run: make bench-scale"),
    ],
)
def test_a_missing_result_names_what_to_run(change, tmp_path, dataset, topic, remedy):
    tables.source(dataset, topic).unlink()
    message = f"report/results/{dataset}/{topic}.json is missing. {remedy}"
    with pytest.raises(SystemExit, match=re.escape(message)):
        build.Text("report", tmp_path)


def test_a_missing_figure_names_what_to_run(change, tmp_path):
    (tmp_path / "figures").unlink()
    message = "figures/sample/01_pairs is missing. Run notebooks/01_data_exploration"
    with pytest.raises(SystemExit, match=re.escape(message)):
        build.Text("report", tmp_path)


def test_an_old_result_names_what_to_run(change, tmp_path):
    change("flickr8k", "06_embedding", "human", to={})
    message = "06_embedding.json has no 'expert'. Run notebooks/06_embedding"
    with pytest.raises(SystemExit, match=re.escape(message)):
        build.Text("report", tmp_path)


def test_a_reference_to_no_figure_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "note.md").write_text('See << see("nowhere") >>.')
    monkeypatch.setattr(build, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="nowhere"):
        build.Text("note", tmp_path)
