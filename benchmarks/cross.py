"""Train on Flickr8k, on COCO and on both, and test each model on both.

    python benchmarks/cross.py         writes report/results/benchmarks/cross.json

(``make bench-cross`` runs it.) There are two questions: what carries over from one dataset to the
other, and do more data help?

Each model is one run of the heads on locked towers, with the settings of the preset ``flickr8k``;
COCO alone, which has few images, gets more epochs of smaller batches. Flickr8k's dev split decides
whether COCO's pairs help Flickr8k. The test splits are measured for the table only, and decide
nothing.
"""

import time

import minicliplib as mc
from minicliplib.analysis.measures import recall_of_each_image
from minicliplib.metrics import bootstrap_mean

TESTED_ON = (("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test"))


def main() -> None:
    started = time.perf_counter()
    one_look = mc.preset("flickr8k").updated(train={"soup": 1}, inference={"tta_views": 1})
    flickr8k = one_look.with_locked_towers().updated(features={"views": 2})
    both = flickr8k.updated(data={"name": "flickr8k+coco"})
    coco = flickr8k.updated(data={"name": "coco"}, train={"epochs": 40, "batch_size": 128})

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
    found = []
    for model in (before, after):
        images = model.encode_image(data.images)
        captions = model.encode_text(data.flat_captions)
        ranked = mc.ranks_from_embeddings(images, captions, data.image_of_caption)
        found.append(recall_of_each_image(ranked, data.image_of_caption))
    gains = found[1] - found[0]
    return {"mean": float(gains.mean()), "interval": bootstrap_mean(gains)}


if __name__ == "__main__":
    main()
