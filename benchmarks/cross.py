"""Train on Flickr8k, on COCO and on both, and test each model on both: what carries over, and does more data help?

python benchmarks/cross.py         writes report/results/benchmarks/cross.json (make bench-cross)

One run each, with the recipe of the preset ``flickr8k`` (less its soup) where Flickr8k is in, and that of ``coco`` on
COCO alone; trains what is not trained yet. The dev split answers the question whether COCO's pairs help Flickr8k; the
test splits are measured for the table only, and choose nothing.
"""

import os
import time

os.environ["TQDM_DISABLE"] = "1"

import minicliplib as mc


def main() -> None:
    started = time.perf_counter()
    final, coco = mc.preset("flickr8k").updated(**{"train.soup": 1}), mc.preset("coco")
    both = final.updated(**{"data.name": "flickr8k+coco"})
    models = {config.data.name: mc.fit(config).model for config in (final, coco, both)}
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
