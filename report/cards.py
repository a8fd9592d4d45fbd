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
        record["facts"] = facts_of(folder.name, record["facts"]["trained_on"])
        text = json.dumps(record, indent=1)
        write_atomically(path, lambda part, text=text: part.write_text(text))
        write_model_card(folder, Config.from_dict(record["config"]), record["facts"])
        print(folder / "README.md")


def facts_of(name: str, trained_on: dict[str, Any]) -> dict[str, Any]:
    """Return what a shipped checkpoint's card says beside its settings.

    What it has learned from stands in the checkpoint since it was trained.
    """
    if name == "flickr8k":
        results = results_of_flickr8k()
    elif name == "everyday":
        results = results_of_everyday()
        # The folder that it learned from held photos of COCO's train2017.
        trained_on = trained_on | {"name": "flickr8k+coco+sample"}
    else:
        raise ValueError(f"Nothing is known of the checkpoint {name!r}: add it to report/cards.py.")
    return {"trained_on": trained_on, "results": results}


def results_of_everyday() -> list[dict[str, Any]]:
    """Return what ``report/checkpoints.py measure`` gave."""
    metrics = measured("checkpoints", "everyday")["metrics"]
    results = []
    for dataset, scores in metrics["retrieval"].items():
        results.append(retrieval_result(dataset, "test", scores))
    for dataset, report in metrics["zero_shot"].items():
        results.append(zero_shot_result(dataset, report))
    return results


def results_of_flickr8k() -> list[dict[str, Any]]:
    """Return what notebooks 04 and 05 gave on Flickr8k."""
    retrieval = measured("flickr8k", "04_retrieval")["metrics"]["trained"]
    results = [retrieval_result("flickr8k", "test", retrieval)]
    zero_shot = measured("flickr8k", "05_zero_shot")["metrics"]
    for dataset in ("cifar10", "caltech101"):
        results.append(zero_shot_result(dataset, zero_shot[dataset]))
    return results


def zero_shot_result(dataset: str, report: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracy on the test part of a labelled set."""
    return {
        "dataset": dataset,
        "split": "test part",
        "images": report["images"],
        "classes": report["classes"],
        "metrics": {"top-1": report["top1"], "top-5": report["top5"]},
    }


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
