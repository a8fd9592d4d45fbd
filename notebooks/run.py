"""Run the notebooks top to bottom on a dataset, and print what they measured.

By default everything they write goes to ``out/``, which git ignores. With ``--refresh`` the
committed figures and results are renewed, and on ``sample`` the notebooks' committed outputs too.
"""

import argparse
import base64
import io
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from PIL import Image

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
OUT = CHECKOUT / "out"

WORKERS = 2
SLOWEST = ("08", "07", "06", "03", "00")  # so that none of them is left for the end

LARGE = 60_000  # characters of a PNG in a notebook, from which on it may be stored as a JPEG
QUALITY = 88  # of such a JPEG


def main() -> None:
    """Run each notebook in its own kernel."""
    options = parse_options()

    # The kernels take over these two: where to write, and to show no progress bars.
    root = CHECKOUT if options.refresh else OUT
    os.environ["MINICLIP_OUT"] = str(root)
    os.environ["TQDM_DISABLE"] = "1"

    # A notebook uses one thread of torch, so two of them run side by side, the slowest ones first.
    # What is committed holds seconds, too, and these are measured alone.
    notebooks = sorted(chosen_notebooks(options), key=slowest_first)
    with ProcessPoolExecutor(1 if options.refresh else WORKERS) as pool:
        runs = pool.map(run, notebooks, repeat(options.dataset))
        for notebook, (executed, seconds) in zip(notebooks, runs, strict=True):
            if options.refresh and options.dataset == "sample":
                renew(notebook, executed)
            print(f"{notebook.name}: {seconds:.0f} s", flush=True)

    if any(path.name.startswith("04") for path in notebooks):
        print_recalls(root, options.dataset)
    print(f"\nfigures: {root / 'figures' / options.dataset}")
    print(f"results: {root / 'report' / 'results' / options.dataset}")
    print(f"executed notebooks: {OUT / 'notebooks' / options.dataset}")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="sample", help="parameter `dataset` of the notebooks")
    parser.add_argument(
        "--only", nargs="*", metavar="NN", help="only notebooks that start so, or solutions"
    )
    parser.add_argument("--refresh", action="store_true", help="renew what is committed")
    return parser.parse_args()


def chosen_notebooks(options: argparse.Namespace) -> list[Path]:
    """Return the notebooks that were asked for, in order.

    By default these are the numbered ones, and the solutions too where they are to be renewed.
    """
    beginnings = options.only or ["0"]
    if options.refresh and options.dataset == "sample" and not options.only:
        beginnings.append("solutions")
    notebooks = sorted(HERE.glob("*.ipynb"))
    chosen = [path for path in notebooks if path.name.startswith(tuple(beginnings))]
    if not chosen:
        raise SystemExit(f"No notebook's name begins with {' or '.join(beginnings)}.")
    return chosen


def slowest_first(notebook: Path) -> int:
    """Return the place of a notebook in the order in which they start."""
    number = notebook.name[:2]
    return SLOWEST.index(number) if number in SLOWEST else len(SLOWEST)


def run(notebook: Path, dataset: str) -> tuple[Path, float]:
    """Execute a notebook into ``out/notebooks/<dataset>``; return the path and the seconds."""
    started = time.perf_counter()
    target = OUT / "notebooks" / dataset / notebook.name
    target.parent.mkdir(parents=True, exist_ok=True)
    # The notebooks' own default is "sample": for that no cell with parameters is added.
    parameters = {} if dataset == "sample" else {"dataset": dataset}
    papermill.execute_notebook(
        notebook,
        target,
        parameters,
        cwd=HERE,
        progress_bar=False,
        log_output=False,
        extra_arguments=["--log-level=40"],  # of the kernel: errors only
    )
    return target, time.perf_counter() - started


def renew(notebook: Path, executed: Path) -> None:
    """Write an executed notebook over the committed one, without what changes from run to run."""
    fresh = nbformat.read(executed, as_version=4)
    fresh.metadata = {
        "kernelspec": fresh.metadata["kernelspec"],
        "language_info": {"name": "python"},
    }
    for cell in fresh.cells:
        # Papermill notes when a cell started and how long it took. Only the tags are ours.
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        shrink_images(cell)
    nbformat.write(fresh, notebook)


def shrink_images(cell: nbformat.NotebookNode) -> None:
    """Store a large PNG among a cell's outputs as a JPEG, where that is smaller.

    Figures with images become much smaller, which keeps each notebook below 1.5 MB.
    """
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        png = data.get("image/png", "")
        if len(png) < LARGE:
            continue
        image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
        encoded = base64.b64encode(jpeg.getvalue()).decode()
        if len(encoded) < len(png):
            del data["image/png"]
            data["image/jpeg"] = encoded


def print_recalls(root: Path, dataset: str) -> None:
    """Print Recall@K of the trained and of the untrained model, beside chance."""
    path = root / "report" / "results" / dataset / "04_retrieval.json"
    if not path.exists():
        return
    metrics = json.loads(path.read_text())["metrics"]

    # A row for each direction and model, with a column for each K.
    rows = {}
    for direction in ("image_to_text", "text_to_image"):
        for name in ("trained", "untrained", "chance"):
            recalls = {}
            for measure, value in metrics[name][direction].items():
                if measure.startswith("R@"):
                    recalls[measure] = f"{100 * value:.1f}%"
            rows[direction.replace("_", " "), name] = recalls

    trained = metrics["trained"]
    pools = f"{trained['images']} images, {trained['captions']} captions"
    print(f"\n{dataset}, test split: {pools}")
    print(pd.DataFrame(rows).T.to_string())


if __name__ == "__main__":
    main()
