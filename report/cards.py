"""Write the model card of each shipped checkpoint from the committed results.

python report/cards.py             renew README.md and the results in config.json of each
"""

import json
from typing import Any

from tables import measured

from minicliplib.config import Config
from minicliplib.interop.checkpoint import SHIPPED
from minicliplib.interop.model_card import write_model_card
from minicliplib.paths import write_atomically

DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def main() -> None:
    """Renew the cards."""
    for folder in sorted(SHIPPED.iterdir()):
        path = folder / "config.json"
        record = json.loads(path.read_text())
        record["facts"] = facts_of(folder.name)
        text = json.dumps(record, indent=1)
        write_atomically(path, lambda part, text=text: part.write_text(text))
        write_model_card(folder, Config.from_dict(record["config"]), record["facts"])
        print(folder / "README.md")


def facts_of(name: str) -> dict[str, Any]:
    """Return what a shipped checkpoint's card says beside its settings."""
    return {"trained_on": data_of(name), "results": results_of(name)}


def data_of(name: str) -> dict[str, Any]:
    """Return what a shipped checkpoint was trained on, and how much of it there was."""
    if name not in ("flickr8k", "mixed"):
        raise ValueError(f"Say in report/cards.py what the checkpoint {name!r} has learned from.")
    datasets = ["flickr8k", "sample"] if name == "mixed" else ["flickr8k"]
    images = 0
    captions = 0
    for dataset in datasets:
        train = measured(dataset, "01_data")["metrics"]["splits"]["train"]
        images += train["images"]
        captions += train["captions"]
    return {"name": "+".join(datasets), "images": images, "captions": captions}


def results_of(name: str) -> list[dict[str, Any]]:
    """Return what was measured with a shipped checkpoint, with the sizes of the pools."""
    if name == "mixed":
        on_dev = measured("flickr8k", "07_demo")["metrics"]["scores"]["mixed"]
        on_free = measured("sample", "07_demo")["metrics"]["scores"]["mixed"]
        return [
            retrieval_result("flickr8k", "dev", on_dev),
            retrieval_result("photos+sample", "test", on_free),
        ]
    retrieval = measured("flickr8k", "04_retrieval")["metrics"]["trained"]
    results = [retrieval_result("flickr8k", "test", retrieval)]
    zero_shot = measured("flickr8k", "05_zero_shot")["metrics"]
    for dataset in ("cifar10", "caltech101"):
        report = zero_shot[dataset]
        results.append(
            {
                "dataset": dataset,
                "split": "test part",
                "images": report["images"],
                "classes": report["classes"],
                "metrics": {"top-1": report["top1"], "top-5": report["top5"]},
            }
        )
    return results


def retrieval_result(dataset: str, split: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Return the six recalls of a split, and their mean."""
    metrics = {}
    for direction, label in DIRECTIONS.items():
        for k in ("R@1", "R@5", "R@10"):
            metrics[f"{label} {k}"] = scores[direction][k]
    metrics["mean recall"] = scores["mean_recall"]
    return {
        "dataset": dataset,
        "split": split,
        "images": scores["images"],
        "captions": scores["captions"],
        "metrics": metrics,
    }


if __name__ == "__main__":
    main()
