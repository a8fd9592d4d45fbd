"""Train on Flickr8k, on COCO and on both, and test each model on both.

    python benchmarks/cross.py         writes report/results/benchmarks/cross.json

(``make bench-cross`` runs it.) There are two questions: what carries over from one dataset to the
other, and do more data help?

Each model is one run, which is trained if it is not there yet. Where Flickr8k is among the data,
the recipe is the preset ``flickr8k`` with one run instead of a soup; on COCO alone it is the preset
``coco``. Flickr8k's dev split decides whether COCO's pairs help Flickr8k. The test splits are
measured for the table only, and decide nothing.
"""

import time

import numpy as np

import minicliplib as mc
from minicliplib.metrics import DIRECTIONS, KS, bootstrap_mean

TESTED_ON = (("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test"))


def main() -> None:
    started = time.perf_counter()
    flickr8k = mc.preset("flickr8k").updated(train={"soup": 1})
    coco = mc.preset("coco")
    both = flickr8k.updated(data={"name": "flickr8k+coco"})

    # Train each model, and test it on every split.
    models = {}
    reports = {}
    for config in (flickr8k, coco, both):
        name = config.data.name
        models[name] = mc.fit(config, progress=False).model
        reports[name] = measure(name, models[name])

    # Compare two models on the same images.
    gain = gain_on_dev(models["flickr8k"], models["flickr8k+coco"])
    print(f"gain by COCO on Flickr8k's dev split: {gain}")
    metrics = {"models": reports, "gain": gain}
    mc.save_result("benchmarks", "cross", metrics, both, time.perf_counter() - started)


def measure(name: str, model: mc.MiniCLIP) -> dict[str, dict]:
    """Return a model's recalls with their intervals: ``{dataset: {split: report}}``."""
    reports = {}
    for dataset, split in TESTED_ON:
        found = mc.evaluate(model, mc.load_dataset(dataset, split))
        report = {"scores": found["scores"], "interval": found["interval"]}
        reports.setdefault(dataset, {})[split] = report
        mean = report["scores"]["mean_recall"]
        print(f"{name} -> {dataset} {split}: mean recall {mean:.1%}", flush=True)
    return reports


def gain_on_dev(before: mc.MiniCLIP, after: mc.MiniCLIP) -> dict[str, float | list[float]]:
    """Return how much mean recall on Flickr8k's dev split one model gains over another."""
    data = mc.load_dataset("flickr8k", "dev")
    gains = recall_of_images(after, data) - recall_of_images(before, data)
    return {"mean": float(gains.mean()), "interval": bootstrap_mean(gains)}


def recall_of_images(model: mc.MiniCLIP, data: mc.CaptionedImages) -> np.ndarray:
    """Return each image's part in mean recall: (N,); their mean is the mean recall.

    Every image needs equally many captions.
    """
    image_of_caption = data.image_of_caption
    ranked = mc.ranks_from_embeddings(
        model.encode_image(data.images), model.encode_text(data.flat_captions), image_of_caption
    )

    # For each query, the share of the Ks at which it finds what it asks for.
    found = {}
    for direction in DIRECTIONS:
        found[direction] = np.mean([ranked[direction] < k for k in KS], axis=0)

    # An image asks once. Its captions ask once each: take their mean.
    sums = np.bincount(image_of_caption, found["text_to_image"])
    by_captions = sums / np.bincount(image_of_caption)
    return (found["image_to_text"] + by_captions) / 2


if __name__ == "__main__":
    main()
