"""Build report and slides, HTML and PDF, from their text, ``report/results`` and ``figures``: ``make report``.

Jinja fills numbers, tables and figures into the text, pandoc resolves citations and formulas, Typst sets the PDF.
Nothing is fetched, and the same inputs give the same files.
"""

import argparse
import base64
import datetime
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import drawings
import jinja2
import matplotlib
import pypandoc
import tables
import typst
from matplotlib import pyplot as plt
from tables import measured

HERE = Path(__file__).resolve().parent
WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def main() -> None:
    """Write the four files, beside this one or into another folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="where the files go")
    out = parser.parse_args().out
    for name in ("report", "slides"):
        build(name, out)


def build(name: str, out: Path) -> None:
    """Write ``<name>.html`` and ``<name>.pdf``."""
    with tempfile.TemporaryDirectory() as folder:
        text = Text(name, Path(folder))
        (out / f"{name}.html").write_text(text.html(), encoding="utf-8")
        text.pdf(out / f"{name}.pdf")


class Text:
    """A text with everything filled in; ``folder`` takes the pictures and what Typst reads."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.alts, self.formulas, self.numbers = name, folder, {}, {}, {}
        environment = jinja2.Environment(
            *("<%", "%>", "<<", ">>", "<#", "#>"), trim_blocks=True, lstrip_blocks=True,
            undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(HERE),
        )  # fmt: skip
        environment.filters |= {
            "pct": lambda value, digits=1: f"{100 * value:.{digits}f}",
            "n": lambda value: f"{value:,.0f}",
            "x": lambda value, digits=1: f"{value:.{digits}f}",
            "word": lambda value: WORDS[int(value)] if value < len(WORDS) else f"{value:,.0f}",
        }
        helpers = (measured, tables.dev, higher, against, date, best_temperature, raw, small)
        environment.globals |= {"tables": tables} | {helper.__name__: helper for helper in helpers}
        for method in (self.figure, self.picture, self.table, self.see, self.formula, self.columns):
            environment.globals[method.__name__] = method
        template = environment.get_template(f"{name}.md")
        for self.counts in (
            Counter(),
            Counter(),
        ):  # the second time, what comes later has its number
            self.markdown = template.render()
        if lost := [key for key, number in self.numbers.items() if not number]:
            raise SystemExit(
                f"report/{name}.md speaks of {lost[0]!r}, but no figure or table is called so."
            )

    def picture(self, name: str, alt: str, width: int = 100) -> str:
        """Return an image: drawn if ``drawings`` has a function of that name, else of ``figures``."""
        file = self.folder / f"{name.replace('/', '-')}.{'png' if '/' in name else 'svg'}"
        if not file.exists() and "/" in name:
            shown = tables.ROOT / "figures" / f"{name}.png"
            if not shown.exists():
                raise SystemExit(
                    f"figures/{name}.png is missing. {tables.remedy(*name.split('/'))}"
                )
            shutil.copy(shown, file)
        elif not file.exists():
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
                drawn = getattr(drawings, name)()
                drawn.savefig(file, metadata={"Date": None})
                plt.close(drawn)
        self.alts[file.name] = " ".join(alt.split())
        return f'![]({file.name}){{#{anchor(name)} alt="{self.alts[file.name]}" width={width}%}}'

    def figure(self, name: str, alt: str, width: int = 100, caller=None) -> str:
        """Return a numbered image; the caption is what the call block holds."""
        caption = f"**{self.number('Figure', name)}.** {' '.join(caller().split())}"
        return f"\n{self.picture(name, alt, width)}\n\n".replace("![]", f"![{caption}]")

    def columns(self, shares: tuple, caller=None) -> str:
        """Return parts side by side, each a share of the width; a line ``+++`` in the call block parts them."""
        fractions = ", ".join(f"{share}fr" for share in shares)
        parts = [f":::: column\n{part.strip()}\n::::\n" for part in caller().split("\n+++\n")]
        grid = raw(f"#grid(columns: ({fractions}), gutter: 1.2em, align: horizon, [")
        return f"\n::: columns\n{grid}{raw('], [').join(parts)}{raw('])')}:::\n"

    def formula(self, tex: str, alt: str) -> str:
        """Return a displayed formula, with words for those who cannot see it."""
        self.formulas[f"$${tex}$$"] = alt
        return f"$${tex}$$"

    def table(self, name: str, markdown: str, widths: str = "", caller=None) -> str:
        """Return a numbered table, the first of some Markdown; ``widths`` are parts of the whole, one a column."""
        lines = markdown.strip().split("\n\n")[0].splitlines()
        columns = lines[0].count("|") - 1
        lines[1] = (
            "|"
            + "|".join("-" * 9 * int(width) for width in (widths.split() or [1] * columns))
            + "|"
        )
        number = self.number("Table", name)
        caption = f"\n\n: **{number}.** {' '.join(caller().split())}" if caller else ""
        body = re.sub(
            r"\[([\d.]+), ([\d.]+)\]", "[\\1,\u00a0\\2]", "\n".join(lines)
        )  # an interval stays in one line
        attributes = f'#{anchor(name)} .wide tabindex="0" role="region" aria-label="{number}"'
        return f"\n::: {{{attributes}}}\n{body}{caption}\n:::\n"

    def number(self, kind: str, name: str) -> str:
        """Return the next number of a kind."""
        self.counts[kind] += 1
        self.numbers[name] = f"{kind} {self.counts[kind]}"
        return self.numbers[name]

    def see(self, name: str) -> str:
        """Return the number of a figure or table, wherever it stands, as a link to it."""
        return f"[{self.numbers.setdefault(name, '')}](#{anchor(name)})"

    def pandoc(self, to: str, *options: str) -> str:
        """Return the text in another format, with citations resolved."""
        style = HERE / "style" / f"{self.name}.{'html' if to == 'html5' else 'typ'}"
        citations = [
            "--citeproc",
            f"--bibliography={HERE / 'references.bib'}",
            "--metadata=link-citations",
        ]
        options = [*citations, f"--template={style}", *options]
        return pypandoc.convert_text(self.markdown, to, "markdown", extra_args=options)

    def html(self) -> str:
        """Return one page that needs no other file."""
        slides = (
            ["--section-divs"]
            if self.name == "slides"
            else ["--toc", "--toc-depth=2", "--number-sections"]
        )
        page = self.pandoc("html5", "--mathml", "--wrap=none", *slides)
        page = re.sub(r"<th(?=[ >])", '<th scope="col"', page)
        page = re.sub(
            r"<tr>\s*<td([^>]*)>(.*?)</td>", r'<tr><th scope="row"\1>\2</th>', page, flags=re.DOTALL
        )
        return re.sub(r'src="([\w.-]+)"', lambda m: f'src="{self.embedded(m[1])}"', page)

    def embedded(self, name: str) -> str:
        """Return a picture as the address that holds it."""
        data = base64.b64encode((self.folder / name).read_bytes()).decode()
        return f"data:{TYPES[Path(name).suffix]};base64,{data}"

    def pdf(self, path: Path) -> None:
        """Write the text as set by Typst, in the fonts that Typst brings."""
        text = self.pandoc("typst")
        for name, alt in self.alts.items():
            text = text.replace(f'image("{name}"', f'image("{name}", alt: "{alt}"')
        for alt in self.formulas.values():
            text = re.sub(
                r"^\$ (.*) \$$",
                rf'#math.equation(block: true, alt: "{alt}", $ \1 $)',
                text,
                count=1,
                flags=re.M,
            )
        source = self.folder / "text.typ"
        source.write_text(text, encoding="utf-8")
        typst.compile(
            source, path, root=self.folder, ignore_system_fonts=True, pdf_standards=["ua-1"]
        )


def anchor(name: str) -> str:
    """Return the name of a figure or table as links have it."""
    return "at-" + name.replace("/", "-")


def raw(typst_code: str) -> str:
    """Return code for Typst alone, as Markdown."""
    return f"```{{=typst}}\n{typst_code}\n```\n"


def small(text: str) -> str:
    """Return a note in small type."""
    return f'[{text}]{{.small typst:text:size="13pt"}}'


def against(ends: list[float], value: float) -> str:
    """Return where an interval lies as seen from a value."""
    return (
        "above" if ends[0] > value else "below" if ends[1] < value else "not distinguishable from"
    )


def higher(scores: dict, values: tuple, intervals: dict | None = None) -> str:
    """Return in how many of the published numbers ours is the higher one, and in how many by more than its interval."""
    pairs = [
        (key, value) for key, value in zip(tables.RECALLS, values, strict=True) if value is not None
    ]
    ahead = lambda ours: WORDS[
        sum(round(100 * ours(way, k), 1) > value for (way, k), value in pairs)
    ]
    clear = (
        f" ({ahead(lambda way, k: intervals[way][k][0])} by more than the interval)"
        if intervals
        else ""
    )
    return f"{ahead(lambda way, k: scores[way][k])} of the {WORDS[len(pairs)]}{clear}"


def date(dataset: str, topic: str) -> str:
    """Return the day of a result in words."""
    return f"{datetime.date.fromisoformat(measured(dataset, topic)['date']):%-d %B %Y}"


def best_temperature(runs: dict) -> float:
    """Return by how much the best fixed temperature beats the learned one."""
    fixed = [row["dev_mean_recall"] for name, row in runs.items() if name != "learned"]
    return max(fixed) - runs["learned"]["dev_mean_recall"]


if __name__ == "__main__":
    main()
