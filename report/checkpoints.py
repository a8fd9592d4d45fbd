"""Train the checkpoints that come with the package, and put them in their place.

    python report/checkpoints.py flickr8k      Flickr8k's training split alone
    python report/checkpoints.py everyday      all captions at hand

Neither is ever trained on the dev or test photos of Flickr8k or COCO. Afterwards
``report/cards.py`` renews their cards.

``everyday`` learns from four sources: Flickr8k, COCO's subset, ``data/folder`` (more photos of
COCO, most with one caption), and the scenes of the sample. Its epoch is chosen on the dev photos of
Flickr8k and COCO together.
"""

import argparse

import minicliplib as mc
from minicliplib.datasets.load import joined
from minicliplib.interop.checkpoint import SHIPPED


def main() -> None:
    """Train the checkpoints that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=("flickr8k", "everyday"))
    for name in parser.parse_args().names:
        train, dev = everyday_data() if name == "everyday" else (None, None)
        run = mc.fit(mc.preset(name), train=train, dev=dev)
        run.model.save(SHIPPED / name)
        print(SHIPPED / name)


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
