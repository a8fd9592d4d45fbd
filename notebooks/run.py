"""Run the notebooks top to bottom on a dataset, and print what they measured.

By default everything they write goes to ``out/``, which git ignores. With ``--refresh`` the committed
figures and results are renewed, and on ``sample`` the notebooks' committed outputs too.
"""

import argparse
import base64
import io
import json
import os
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from PIL import Image

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run each notebook in its own kernel."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="sample", help="parameter `dataset` of the notebooks")
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="NN", help="only notebooks that start so"
    )
    parser.add_argument("--refresh", action="store_true", help="renew what is committed")
    options = parser.parse_args()
    out = HERE.parent if options.refresh else HERE.parent / "out"
    os.environ |= {"MINICLIP_OUT": str(out), "TQDM_DISABLE": "1"}
    for notebook in sorted(HERE.glob("[0-9]*.ipynb")):
        if notebook.name.startswith(tuple(options.only)):
            started = time.perf_counter()
            print(f"{notebook.name} ...", end=" ", flush=True)
            run(notebook, options.dataset, options.refresh and options.dataset == "sample")
            print(f"{time.perf_counter() - started:.0f} s", flush=True)
    print_table(out, options.dataset)


def run(notebook: Path, dataset: str, in_place: bool) -> None:
    """Execute one notebook into ``out/notebooks/<dataset>``, or over itself with the noise taken out."""
    target = HERE.parent / "out" / "notebooks" / dataset / notebook.name
    target.parent.mkdir(parents=True, exist_ok=True)
    parameters = {} if dataset == "sample" else {"dataset": dataset}
    quiet = {
        "progress_bar": False,
        "log_output": False,
        "extra_arguments": ["--log-level=40"],
    }  # of the kernel: errors
    papermill.execute_notebook(notebook, target, parameters, cwd=HERE, **quiet)
    if not in_place:
        return
    executed = nbformat.read(target, as_version=4)
    executed.metadata = {key: executed.metadata[key] for key in ("kernelspec", "language_info")}
    executed.metadata["language_info"] = {"name": "python"}
    for cell in executed.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        shrink_pictures(cell)
    nbformat.write(executed, notebook)


def shrink_pictures(cell: nbformat.NotebookNode) -> None:
    """Give the large PNGs among a cell's outputs 256 colours: half the size, and the notebook stays below 1 MB."""
    for output in cell.get("outputs", []):
        png = output.get("data", {}).get("image/png", "")
        if len(png) > 60_000:
            small = io.BytesIO()
            picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            picture.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def print_table(out: Path, dataset: str) -> None:
    """Print Recall@K of the trained and the untrained model beside chance, and where things lie."""
    path = out / "report" / "results" / dataset / "04_retrieval.json"
    if path.exists():
        metrics = json.loads(path.read_text())["metrics"]
        rows = {
            (way.replace("_", " "), name): {
                k: f"{100 * v:.1f}%" for k, v in metrics[name][way].items() if "@" in k
            }
            for way in ("image_to_text", "text_to_image")
            for name in ("trained", "untrained", "chance")
        }
        print(
            f"\n{dataset}, test split: {metrics['trained']['images']} images, {metrics['trained']['captions']} captions"
        )
        print(pd.DataFrame(rows).T.to_string())
    print(
        f"\nfigures: {out / 'figures' / dataset}\nresults: {out / 'report' / 'results' / dataset}"
    )
    print(f"executed notebooks: {HERE.parent / 'out' / 'notebooks' / dataset}")


if __name__ == "__main__":
    main()
