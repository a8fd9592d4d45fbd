"""Train the checkpoints that come with the package, put them in their place, and measure them.

    python report/checkpoints.py flickr8k      Flickr8k's training split alone
    python report/checkpoints.py everyday      all captions at hand
    python report/checkpoints.py measure       writes report/results/checkpoints/everyday.json

Neither is ever trained on the dev or test photos of Flickr8k or COCO. Notebooks 04 and 05 measure
``flickr8k``. Afterwards ``report/cards.py`` renews their cards.

``everyday`` learns from four sources: Flickr8k, COCO's subset, ``data/folder`` (more photos of
COCO, most with one caption), and the scenes of the sample. Its epoch is chosen on the dev photos of
Flickr8k and COCO together.
"""

import argparse
import time
from typing import Any

import numpy as np

import minicliplib as mc
from minicliplib.datasets.labelled import class_phrase
from minicliplib.datasets.load import joined
from minicliplib.interop.checkpoint import SHIPPED

# The first images of each class are for choosing names and prompts, as in notebook 05.
DEV_PER_CLASS = {"cifar10": 100, "caltech101": 5}


def main() -> None:
    """Train the checkpoints that are named, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=("flickr8k", "everyday", "measure"))
    for name in parser.parse_args().names:
        if name == "measure":
            measure_everyday()
            continue
        train, dev = everyday_data() if name == "everyday" else (None, None)
        run = mc.fit(mc.preset(name), train=train, dev=dev)
        run.model.save(SHIPPED / name)
        print(SHIPPED / name)


def measure_everyday() -> None:
    """Measure ``everyday`` on test photos that it was not trained on."""
    started = time.perf_counter()
    model = mc.load("everyday")
    retrieval = {}
    intervals = {}
    for dataset in ("flickr8k", "coco", "photos+sample"):
        report = mc.evaluate(model, mc.load_dataset(dataset, "test"))
        retrieval[dataset] = report["scores"]
        intervals[dataset] = report["interval"]
        print(f"{dataset}: {report['scores']['mean_recall']:.1%}", flush=True)
    zero_shot = {name: zero_shot_on_test(model, name) for name in DEV_PER_CLASS}
    metrics = {"retrieval": retrieval, "intervals": intervals, "zero_shot": zero_shot}
    seconds = time.perf_counter() - started
    mc.save_result("checkpoints", "everyday", metrics, model.config, seconds)


def zero_shot_on_test(model: mc.MiniCLIP, name: str) -> dict[str, Any]:
    """Return the accuracy on the test part of a labelled set, from its class names alone."""
    data = mc.load_labelled(name)
    test = np.flatnonzero(~data.first_of_each_class(DEV_PER_CLASS[name])).tolist()
    classes = [class_phrase(spelled) for spelled in data.classes]
    classifier = mc.ZeroShotClassifier(model, classes, mc.PHOTO_TEMPLATES)
    report = mc.classification(classifier.scores([data.images[i] for i in test]), data.labels[test])
    print(f"{name}: top-1 {report['top1']:.1%}, top-5 {report['top5']:.1%}", flush=True)
    return report


def everyday_data() -> tuple[mc.CaptionedImages, mc.CaptionedImages]:
    """Return the training pairs of ``everyday``, and the dev pairs that choose its epoch."""
    folder = mc.load_dataset("folder", "all")
    with_captions = [i for i, texts in enumerate(folder.captions) if texts]
    parts = [
        mc.load_dataset("flickr8k+coco", "train"),
        folder.subset(with_captions),
        mc.load_dataset("sample", "train"),
    ]
    train = joined("flickr8k+coco+folder+sample", parts)
    return train, mc.load_dataset("flickr8k+coco", "dev")


if __name__ == "__main__":
    main()
