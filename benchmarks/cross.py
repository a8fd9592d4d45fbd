"""Train on Flickr8k, on COCO and on both, and test each model on both: what carries over, and does more data help?

python benchmarks/cross.py         writes report/results/benchmarks/cross.json (make bench-cross)

The recipe is that of the preset ``flickr8k`` (less its soup) where Flickr8k is in, and that of ``coco`` on COCO alone;
what is not trained yet is trained. Whether COCO's pairs help Flickr8k is asked of its dev split, by several runs on
both: their counterparts on Flickr8k alone are the runs of the shipped soup, whose dev recalls notebook 8 recorded. The
test splits are measured for the tables only, and choose nothing.
"""

import json
import os
import time

os.environ["TQDM_DISABLE"] = "1"

import minicliplib as mc

RUNS = 2  # on both datasets, which differ in their draws alone


def main() -> None:
    started = time.perf_counter()
    final = mc.preset("flickr8k").updated(**{"train.soup": 1})
    both = [final.updated(**{"data.name": "flickr8k+coco", "train.shuffle": k}) for k in range(RUNS)]
    models = {}
    for config in (final, mc.preset("coco"), both[0]):
        model, name = mc.fit(config).model, config.data.name
        for dataset, split in (("flickr8k", "dev"), ("flickr8k", "test"), ("coco", "test")):
            report = mc.evaluate(model, mc.load_dataset(dataset, split))
            models.setdefault(name, {}).setdefault(dataset, {})[split] = report
            print(f"{name} -> {dataset} {split}: mean recall {report['scores']['mean_recall']:.1%}", flush=True)
    runs = {"test": [], "dev_mean_recall_one_look": []}
    for config in both:
        model = mc.fit(config).model
        runs["test"].append(mc.evaluate(model, mc.load_dataset("flickr8k", "test"))["scores"])
        dev = mc.load_dataset("flickr8k", "dev")
        ranked = mc.ranks_from_embeddings(
            model.encode_image(dev.images, looks=1), model.encode_text(dev.flat_captions), dev.owner
        )
        runs["dev_mean_recall_one_look"].append(mc.summarise(ranked, len(dev))["mean_recall"])
    print(json.dumps(runs["dev_mean_recall_one_look"]))
    metrics = {"models": models, "runs_on_both": runs}
    mc.save_result("benchmarks", "cross", metrics, both[0], time.perf_counter() - started)


if __name__ == "__main__":
    main()
