"""Build report and slides, as HTML and as PDF: ``make report``.

Jinja fills numbers, tables and figures into the text, from ``report/results`` and ``figures``.
Pandoc resolves citations and formulas, and Typst sets the PDF. Nothing is fetched, and the same
inputs give the same files.
"""

import argparse
import base64
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date as calendar_date
from pathlib import Path
from typing import Any

import drawings
import jinja2
import pypandoc
import tables
import typst
from tables import measured

HERE = Path(__file__).resolve().parent
WORDS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}

# What the block between ``<% call ... %>`` and ``<% endcall %>`` holds.
Block = Callable[[], str]


def main() -> None:
    """Write the four files, beside this one or into another folder."""
    parser = argparse.ArgumentParser(description="Build report and slides, as HTML and as PDF.")
    parser.add_argument("--out", type=Path, default=HERE, help="where the files go")
    out = parser.parse_args().out
    for name in ("report", "slides"):
        build(name, out)


def build(name: str, out: Path) -> None:
    """Write ``<name>.html`` and ``<name>.pdf`` into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        text = Text(name, Path(folder))
        (out / f"{name}.html").write_text(text.html(), encoding="utf-8")
        text.pdf(out / f"{name}.pdf")


class Text:
    """A text with everything filled in: ``markdown``, and the ways to print it.

    The methods up to ``see`` are for the text itself, which calls them by name.

    Args:
        name: "report" or "slides".
        folder: Takes the images, and what Typst reads.

    Raises:
        SystemExit: A result or a figure is missing; the message says what to run.

    """

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.folder = folder
        self.alts: dict[str, str] = {}  # what an image shows, by the name of its file
        self.formulas: dict[str, str] = {}  # what a formula says, by its TeX
        self.numbers: dict[str, str] = {}  # "Figure 3", by the name of a figure or table
        template = self._environment().get_template(f"{name}.md")

        # Fill in twice. The text may speak of what comes later, and the second time that has its
        # number.
        for _ in range(2):
            self.counts: Counter[str] = Counter()
            self.markdown = template.render()
        for called, number in self.numbers.items():
            if not number:
                raise SystemExit(
                    f"report/{name}.md speaks of {called!r}, but no figure or table is called so."
                )

    def _environment(self) -> jinja2.Environment:
        """Return Jinja with all that the text may call."""
        environment = jinja2.Environment(
            block_start_string="<%",
            block_end_string="%>",
            variable_start_string="<<",
            variable_end_string=">>",
            comment_start_string="<#",
            comment_end_string="#>",
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            loader=jinja2.FileSystemLoader(HERE),
        )
        environment.filters |= {"pct": percent, "n": whole, "x": fixed, "word": in_letters}
        environment.globals["tables"] = tables
        functions = (measured, tables.studied, higher, against, date, lead_of_best_fixed)
        methods = (self.picture, self.figure, self.columns, self.formula, self.table, self.see)
        for function in (*functions, raw, small, *methods):
            environment.globals[function.__name__] = function
        return environment

    # ---- what the text calls ----

    def picture(self, name: str, alt: str, width: int = 100) -> str:
        """Return an image as Markdown, ``width`` percent wide.

        ``<dataset>/<figure>`` is a file of ``figures``; any other name is one of ``drawings``.
        """
        file = self._copied(name) if "/" in name else self._drawn(name)
        self.alts[file.name] = " ".join(alt.split())
        return f'![]({file.name}){{#{anchor(name)} alt="{self.alts[file.name]}" width={width}%}}'

    def figure(self, name: str, alt: str, width: int = 100, *, caller: Block) -> str:
        """Return a numbered image; the caption is what the call block holds."""
        number = self._next_number("Figure", name)
        caption = f"**{number}.** {' '.join(caller().split())}"
        picture = self.picture(name, alt, width)
        return f"\n{picture}\n\n".replace("![]", f"![{caption}]")

    def columns(self, shares: Sequence[int], *, caller: Block) -> str:
        """Return parts side by side, each with its share of the width.

        The call block holds them, with a line ``+++`` between two parts.
        """
        parts = []
        for part in caller().split("\n+++\n"):
            parts.append(f":::: column\n{part.strip()}\n::::\n")
        fractions = ", ".join(f"{share}fr" for share in shares)
        start = raw(f"#grid(columns: ({fractions}), gutter: 1.2em, align: horizon, [")
        between = raw("], [")
        end = raw("])")
        return f"\n::: columns\n{start}{between.join(parts)}{end}:::\n"

    def formula(self, tex: str, alt: str) -> str:
        """Return a displayed formula, with words for those who cannot see it."""
        markdown = f"$${tex}$$"
        self.formulas[markdown] = alt
        return markdown

    def table(
        self, name: str, markdown: str, widths: str = "", *, caller: Block | None = None
    ) -> str:
        """Return a numbered table: the first one of some Markdown.

        ``widths`` are parts of the whole width, one a column; without them all are alike.
        """
        lines = markdown.strip().split("\n\n")[0].splitlines()
        columns = lines[0].count("|") - 1
        parts = [int(width) for width in widths.split()] or [1] * columns

        # Pandoc reads the widths of columns from the dashes under their heads.
        dashes = ["-" * 9 * part for part in parts]
        lines[1] = f"|{'|'.join(dashes)}|"

        # A no-break space keeps an interval in one line.
        body = re.sub(r"\[([\d.]+), ([\d.]+)\]", "[\\1,\u00a0\\2]", "\n".join(lines))

        number = self._next_number("Table", name)
        caption = ""
        if caller:
            caption = f"\n\n: **{number}.** {' '.join(caller().split())}"
        attributes = f'#{anchor(name)} .wide tabindex="0" role="region" aria-label="{number}"'
        return f"\n::: {{{attributes}}}\n{body}{caption}\n:::\n"

    def see(self, name: str) -> str:
        """Return the number of a figure or table, wherever it stands, as a link to it."""
        number = self.numbers.setdefault(name, "")
        return f"[{number}](#{anchor(name)})"

    def _next_number(self, kind: str, name: str) -> str:
        """Give a figure or table the next number of its kind, and return it."""
        self.counts[kind] += 1
        self.numbers[name] = f"{kind} {self.counts[kind]}"
        return self.numbers[name]

    def _copied(self, name: str) -> Path:
        """Return the copy in our folder of a file of ``figures``."""
        # A figure with images is a JPEG, a chart is a PNG.
        for suffix in (".jpg", ".png"):
            source = tables.ROOT / "figures" / f"{name}{suffix}"
            if source.exists():
                file = self.folder / f"{name.replace('/', '-')}{suffix}"
                shutil.copy(source, file)
                return file
        dataset, topic = name.split("/")
        raise SystemExit(f"figures/{name} is missing. {tables.remedy(dataset, topic)}")

    def _drawn(self, name: str) -> Path:
        """Return a drawing in our folder; it is drawn once."""
        file = self.folder / f"{name}.svg"
        if not file.exists():
            drawings.write(name, file)
        return file

    # ---- what comes of it ----

    def html(self) -> str:
        """Return one page that needs no other file."""
        options = ["--mathml", "--wrap=none"]
        if self.name == "slides":
            options += ["--section-divs"]
        else:
            options += ["--toc", "--toc-depth=2", "--number-sections"]
        page = self._pandoc("html5", options)

        # Tell screen readers which cells are heads: the first row, and the first of each other row.
        page = re.sub(r"<th(?=[ >])", '<th scope="col"', page)
        first_cell = re.compile(r"<tr>\s*<td([^>]*)>(.*?)</td>", flags=re.DOTALL)
        page = first_cell.sub(r'<tr><th scope="row"\1>\2</th>', page)

        return re.sub(r'src="([\w.-]+)"', self._embedded, page)

    def pdf(self, path: Path) -> None:
        """Write the text as set by Typst, in the fonts that Typst brings."""
        text = self._pandoc("typst", [])

        # Pandoc passes on no words for those who cannot see: neither an image's nor a formula's.
        for name, alt in self.alts.items():
            text = text.replace(f'image("{name}"', f'image("{name}", alt: "{alt}"')
        displayed = re.compile(r"^\$ (.*) \$$", flags=re.MULTILINE)
        for alt in self.formulas.values():  # in their order in the text
            described = rf'#math.equation(block: true, alt: "{alt}", $ \1 $)'
            text = displayed.sub(described, text, count=1)

        source = self.folder / "text.typ"
        source.write_text(text, encoding="utf-8")
        typst.compile(
            source, path, root=self.folder, ignore_system_fonts=True, pdf_standards=["ua-1"]
        )

    def _pandoc(self, to: str, options: list[str]) -> str:
        """Return the text in another format, with citations resolved."""
        suffix = "html" if to == "html5" else "typ"
        arguments = [
            "--citeproc",
            f"--bibliography={HERE / 'references.bib'}",
            "--metadata=link-citations",
            f"--template={HERE / 'style' / f'{self.name}.{suffix}'}",
            *options,
        ]
        return pypandoc.convert_text(self.markdown, to, "markdown", extra_args=arguments)

    def _embedded(self, source: re.Match[str]) -> str:
        """Return an image's ``src="file"`` as one that holds the file."""
        file = self.folder / source[1]
        data = base64.b64encode(file.read_bytes()).decode()
        return f'src="data:{TYPES[file.suffix]};base64,{data}"'


# ---- how the text writes numbers -----------------------------------------------------------------


def percent(value: float, digits: int = 1) -> str:
    """Return a share in percent, without the sign: ``12.3``."""
    return f"{100 * value:.{digits}f}"


def whole(value: float) -> str:
    """Return a number without digits behind the point: ``12,345``."""
    return f"{value:,.0f}"


def fixed(value: float, digits: int = 1) -> str:
    """Return a number with so many digits behind the point: ``1.2``."""
    return f"{value:.{digits}f}"


def in_letters(value: float) -> str:
    """Return a small number as a word, and a large one as ``whole`` does."""
    if value < len(WORDS):
        return WORDS[int(value)]
    return whole(value)


def date(dataset: str, topic: str) -> str:
    """Return the day of a result in words."""
    day = calendar_date.fromisoformat(measured(dataset, topic)["date"])
    return f"{day:%-d %B %Y}"


# ---- what the text says of results ---------------------------------------------------------------


def against(ends: Sequence[float], value: float) -> str:
    """Return where an interval lies as seen from a value."""
    low, high = ends
    if low > value:
        return "above"
    if high < value:
        return "below"
    return "not distinguishable from"


def higher(
    scores: dict[str, Any], values: Sequence[float | None], intervals: dict[str, Any] | None = None
) -> str:
    """Return in how many of the published numbers ours is the higher one, in words.

    With ``intervals`` also in how many it is higher by more than its interval.
    """
    ahead = 0
    clearly_ahead = 0
    published = 0
    for (direction, cutoff), value in zip(tables.RECALLS, values, strict=True):
        if value is None:
            continue
        published += 1
        ahead += _is_higher(scores[direction][cutoff], value)
        if intervals:
            low, _ = intervals[direction][cutoff]
            clearly_ahead += _is_higher(low, value)

    sentence = f"{WORDS[ahead]} of the {WORDS[published]}"
    if intervals:
        sentence += f" ({WORDS[clearly_ahead]} by more than the interval)"
    return sentence


def _is_higher(ours: float, percentage: float) -> bool:
    """Return whether our share, with the digits that papers give, beats a published percentage."""
    return round(100 * ours, 1) > percentage


def lead_of_best_fixed(runs: dict[str, Any]) -> float:
    """Return by how much the best fixed temperature beats the learned one, at the last epoch."""
    fixed_recalls = []
    learned_recalls = []
    for name, history in runs.items():
        recalls = learned_recalls if name.startswith("learned") else fixed_recalls
        recalls.append(history["dev_mean_recall"][-1])
    return max(fixed_recalls) - max(learned_recalls)


# ---- Markdown ------------------------------------------------------------------------------------


def anchor(name: str) -> str:
    """Return the name of a figure or table as links have it."""
    return "at-" + name.replace("/", "-")


def raw(typst_code: str) -> str:
    """Return code for Typst alone, as Markdown."""
    return f"```{{=typst}}\n{typst_code}\n```\n"


def small(text: str) -> str:
    """Return a note in small type."""
    return f'[{text}]{{.small typst:text:size="13pt"}}'


if __name__ == "__main__":
    main()
