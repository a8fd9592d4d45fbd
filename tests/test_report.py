"""README, report and slides show the numbers of report/results, all of them and nothing else."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import build
import pytest
import tables
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("report", "slides")
# Names that hold a digit (95% is one of an interval). Whatever else does is a number, and comes from a result.
WITH_DIGITS = r"[Ff]lickr\d+k|CIFAR-10|Caltech-101|R@1|CC BY-SA 4\.0|CC0|val2017|train2017|\^−1\^|95%|top-[15]"


class Page(HTMLParser):
    """What a page says, and the tags it says it with."""

    def __init__(self, text: str):
        super().__init__()
        self.said, self.tags, self.skipping = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.skipping += tag in ("style", "script", "math")

    def handle_endtag(self, tag):
        self.skipping -= tag in ("style", "script", "math")

    def handle_data(self, data):
        if not self.skipping:
            self.said += data.split()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a fresh build."""
    out = tmp_path_factory.mktemp("report")
    for name in NAMES:
        build.build(name, out)
    return out


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Change results in a copy of them that everything reads from."""
    (tmp_path / "report").mkdir()
    for path in (ROOT / "report" / "results").rglob("*.json"):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    for name in ("notebooks", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    def change(dataset, topic, *keys, to):
        path = tables.source(dataset, topic)
        record = json.loads(path.read_text())
        inner = record["metrics"]
        for key in keys[:-1]:
            inner = inner[key]
        assert keys[-1] in inner
        inner[keys[-1]] = to
        path.write_text(json.dumps(record))

    return change


def words(path: Path) -> str:
    return " ".join(page.extract_text() for page in PdfReader(path).pages)


def test_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.renewed(readme) == readme, "run: python report/tables.py"
    assert "**Mini-CLIP**" in readme


def test_pictures_of_the_readme_exist():
    for name in re.findall(
        r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_what_would_be_built(built, name):
    committed = ROOT / "report" / name
    old, new = (
        Page(f.with_suffix(".html").read_text(encoding="utf-8")).said
        for f in (committed, built / name)
    )
    assert old == new, "run: make report"
    old, new = (f.with_suffix(".pdf") for f in (committed, built / name))
    # A figure that another matplotlib drew may move a page break, another Typst the hyphens; the numbers stay.
    same = PdfReader(old).metadata.creator == PdfReader(new).metadata.creator
    old, new = (Counter(re.findall(r"\S+" if same else r"\d+\.\d+", words(f))) for f in (old, new))
    assert old == new, "run: make report"


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
def test_a_changed_result_changes_the_report(copy, tmp_path, where, value, seen):
    text = build.Text("report", tmp_path).markdown
    copy(*where, to=value)
    changed = build.Text("report", tmp_path).markdown
    assert seen in changed
    assert seen not in text


def test_a_changed_result_changes_readme_figure_and_slides(copy, tmp_path):
    before = build.Text("slides", tmp_path).html()
    (tmp_path / "recall.svg").unlink()
    copy("flickr8k", "04_retrieval", "trained", "image_to_text", "R@10", to=0.12345)
    assert "**12.3**" in tables.tables()
    after = build.Text("slides", tmp_path).html()
    pictures = [
        [tag["src"] for kind, tag in Page(page).tags if kind == "img"] for page in (before, after)
    ]
    assert [a == b for a, b in zip(*pictures, strict=True)].count(False) == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_number_is_typed(name):
    source = (ROOT / "report" / f"{name}.md").read_text(encoding="utf-8")
    text = re.sub(WITH_DIGITS, "", source)
    assert re.findall(r"\d[.,]\d", text) == []  # not even inside an expression
    text = re.sub(r"<<.*?>>|<%.*?%>|<#.*?#>|@\w+", "", text, flags=re.DOTALL)
    assert re.findall(r".*\d.*", text) == []


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
def test_a_missing_result_names_what_to_run(copy, tmp_path, dataset, topic, remedy):
    tables.source(dataset, topic).unlink()
    with pytest.raises(
        SystemExit, match=re.escape(f"report/results/{dataset}/{topic}.json is missing. {remedy}")
    ):
        build.Text("report", tmp_path)


def test_an_old_result_or_a_missing_figure_names_what_to_run(copy, tmp_path):
    (tmp_path / "figures").unlink()
    with pytest.raises(
        SystemExit,
        match=r"figures/sample/01_pairs.png is missing. Run notebooks/01_data_exploration",
    ):
        build.Text("report", tmp_path)
    copy("flickr8k", "06_embedding", "human", to={})
    with pytest.raises(
        SystemExit, match=r"06_embedding.json has no 'expert'. Run notebooks/06_embedding"
    ):
        build.Text("report", tmp_path)


@pytest.mark.parametrize(("name", "fewest", "most"), [("report", 8, 14), ("slides", 10, 14)])
def test_pages_are_as_many_as_asked_and_bring_their_fonts(built, name, fewest, most):
    reader = PdfReader(built / f"{name}.pdf")
    assert fewest <= len(reader.pages) <= most
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]  # tagged, for screen readers
    for page in reader.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            for inner in font.get_object().get("/DescendantFonts", []):
                assert any(
                    key.startswith("/FontFile") for key in inner.get_object()["/FontDescriptor"]
                )


@pytest.mark.parametrize("name", NAMES)
def test_pages_open_anywhere_and_can_be_listened_to(built, name):
    html = (built / f"{name}.html").read_text(encoding="utf-8")
    assert len(html) < 6e6
    tags = Page(html).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert images
    for attributes in images:
        assert len(attributes["alt"]) > 20
        assert attributes["src"].startswith("data:image/")
    assert name == "slides" or [tag for tag, _ in tags].count("figcaption") == len(images)
    heads = [attributes for tag, attributes in tags if tag == "th"]
    assert heads
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    for tag, attributes in tags:  # links may lead elsewhere; nothing is loaded from there
        assert tag not in ("link", "iframe", "object")
        assert tag == "img" or "src" not in attributes
    assert not re.search(r"url\(|@import", html.split("</style>")[0])
    identities = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert [name for name, times in identities.items() if times > 1] == []


def test_every_reference_is_cited_and_found(built):
    keys = re.findall(
        r"^@\w+\{(\w+),",
        (ROOT / "report" / "references.bib").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    html = (built / "report.html").read_text(encoding="utf-8")
    assert len(keys) == len(set(keys))
    assert set(re.findall(r'id="ref-(\w+)"', html)) == set(keys)
    assert not re.search(r"\w\?</strong>[,;)]", html)
