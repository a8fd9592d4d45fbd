"""Write the README's results table from ``report/results``: no number there is typed by hand.

python report/tables.py            renew README.md
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results", "<!-- /results -->"
HEAD = """| {title} | image → text R@1 | R@5 | R@10 | text → image R@1 | R@5 | R@10 |
|---|---|---|---|---|---|---|
"""
# Published single dual encoders on the same protocol: 1,000 images x 5,000 captions, any hit counts.
PUBLISHED = {
    "FV GMM+HGLMM (Klein et al., CVPR 2015)": (31.0, 59.3, 73.7, 21.2, 50.0, 64.8),
    "2WayNet (Eisenschtat & Wolf, CVPR 2017)": (43.4, 63.2, None, 29.3, 49.7, None),
}


def main() -> None:
    """Put the tables between the two markers of README.md."""
    path = ROOT / "README.md"
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(readme: str) -> str:
    """Return the README with its results as they are now."""
    before, rest = readme.split(START)
    marker, after = rest.split("-->", 1)[0], rest.split(END)[1]
    return f"{before}{START}{marker}-->\n{tables()}{END}{after}"


def tables() -> str:
    """Return a table per dataset that has results, Flickr8k first."""
    return "\n".join(table(dataset) for dataset in ("flickr8k", "sample") if source(dataset).exists())


def source(dataset: str) -> Path:
    """Return the file of a dataset's retrieval results."""
    return ROOT / "report" / "results" / dataset / "04_retrieval.json"


def table(dataset: str) -> str:
    """Return one dataset's rows: trained with intervals, untrained, chance, and what was published."""
    metrics = json.loads(source(dataset).read_text())["metrics"]
    pool = f"**{dataset}** test, {metrics['chance']['images']:,} images × {metrics['chance']['captions']:,} captions"
    rows = [row("**Mini-CLIP**", metrics["trained"], metrics["interval"])]
    rows += [row("towers as pretrained, heads untrained", metrics["untrained"]), row("chance", metrics["chance"])]
    for name, values in PUBLISHED.items() if dataset == "flickr8k" else ():
        rows.append(f"| {name} | " + " | ".join("-" if v is None else f"{v:.1f}" for v in values) + " |")
    return (
        HEAD.format(title=pool)
        + "\n".join(rows)
        + f"\n\n[{source(dataset).relative_to(ROOT)}]({source(dataset).relative_to(ROOT)})\n"
    )


def row(name: str, scores: dict, intervals: dict | None = None) -> str:
    """Return a line of six recalls in percent."""
    cells = []
    for way in ("image_to_text", "text_to_image"):
        for k in ("R@1", "R@5", "R@10"):
            text = f"{100 * scores[way][k]:.1f}"
            if intervals:
                low, high = intervals[way][k]
                text = f"**{text}** [{100 * low:.1f}, {100 * high:.1f}]"
            cells.append(text)
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
