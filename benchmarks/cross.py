"""Train on Flickr8k, on COCO and on both, and test each model on both: what carries over, and does more data help?

python benchmarks/cross.py         writes report/results/benchmarks/cross.json (make bench-cross)

One run each, with the recipe of the preset ``coco``; trains what is not trained yet. The dev split answers the question
whether COCO's pairs help Flickr8k; the test splits are measured for the table only, and choose nothing.
"""

import os
import time

os.environ["TQDM_DISABLE"] = "1"

import minicliplib as mc


def main() -> None:
    started = time.perf_counter()
    coco = mc.preset("coco")
    long = coco.updated(**{"train.epochs": 16, "train.batch_size": 256})  # more images, as many steps
    both = long.updated(**{"data.name": "flickr8k+coco"})
    models = {"flickr8k": mc.load_or_fit(long.updated(**{"data.name": "flickr8k"})).model}
    models["coco"] = mc.load_or_fit(coco).model
    models["flickr8k+coco"] = mc.load_or_fit(both).model
    metrics = {}
    for trained_on, model in models.items():
        for dataset, split in (("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test")):
            report = mc.evaluate(model, mc.load_dataset(dataset, split))
            metrics.setdefault(trained_on, {}).setdefault(dataset, {})[split] = report
            recall = report["scores"]["mean_recall"]
            print(f"{trained_on} -> {dataset} {split}: mean recall {recall:.1%}", flush=True)
    mc.save_result("benchmarks", "cross", metrics, both, time.perf_counter() - started)


if __name__ == "__main__":
    main()
