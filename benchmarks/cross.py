"""Train on Flickr8k, on COCO and on both, and test each model on both: what carries over, and does more data help?

python benchmarks/cross.py         writes report/results/benchmarks/cross.json (make bench-cross)

One run each, with the recipe of the preset ``flickr8k`` (less its soup) where Flickr8k is in, and that of ``coco`` on
COCO alone; trains what is not trained yet. The dev split answers the question whether COCO's pairs help Flickr8k; the
test splits are measured for the table only, and choose nothing.
"""

import os
import time

os.environ["TQDM_DISABLE"] = "1"

import numpy as np

import minicliplib as mc


def main() -> None:
    started = time.perf_counter()
    final, coco = mc.preset("flickr8k").updated(**{"train.soup": 1}), mc.preset("coco")
    both = final.updated(**{"data.name": "flickr8k+coco"})
    models, on_dev = {}, {}
    for config in (final, coco, both):
        name, model = config.data.name, mc.fit(config).model
        for dataset, split in (("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test")):
            report, recalls = measure(model, mc.load_dataset(dataset, split))
            models.setdefault(name, {}).setdefault(dataset, {})[split] = report
            on_dev.setdefault(name, recalls)  # those of the first, Flickr8k's dev split
            print(
                f"{name} -> {dataset} {split}: mean recall {report['scores']['mean_recall']:.1%}",
                flush=True,
            )
    gain = on_dev["flickr8k+coco"] - on_dev["flickr8k"]
    draws = np.random.default_rng(0).choice(gain, (1000, len(gain))).mean(1)
    metrics = {
        "models": models,
        "gain": {"mean": gain.mean(), "interval": np.percentile(draws, [2.5, 97.5]).tolist()},
    }
    print(f"gain by COCO on Flickr8k's dev split: {metrics['gain']}")
    mc.save_result("benchmarks", "cross", metrics, both, time.perf_counter() - started)


def measure(model: mc.MiniCLIP, data: mc.CaptionedImages) -> tuple[dict, np.ndarray]:
    """Return recalls with their intervals, and each image's part in mean recall: (N,), for a paired comparison."""
    ranked = mc.ranks_from_embeddings(
        model.encode_image(data.images),
        model.encode_text(data.flat_captions),
        data.image_of_caption,
    )
    report = {
        "scores": mc.summarise(ranked, len(data)),
        "interval": mc.bootstrap(ranked, data.image_of_caption),
    }
    found = {way: np.mean([ranks < k for k in (1, 5, 10)], axis=0) for way, ranks in ranked.items()}
    by_caption = np.bincount(data.image_of_caption, found["text_to_image"]) / np.bincount(
        data.image_of_caption
    )
    return report, (found["image_to_text"] + by_caption) / 2


if __name__ == "__main__":
    main()
