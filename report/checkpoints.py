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
    train = joined(
        mc.load_dataset("flickr8k", "train"),
        mc.load_dataset("coco", "train"),
        mc.load_dataset("folder", "all"),
        mc.load_dataset("sample", "train"),
    )
    dev = joined(mc.load_dataset("flickr8k", "dev"), mc.load_dataset("coco", "dev"))
    return train, dev


def joined(*parts: mc.CaptionedImages) -> mc.CaptionedImages:
    """Return datasets one after the other, without the images that have no caption."""
    names = []
    images = []
    captions = []
    for part in parts:
        names.append(part.name)
        for image, texts in zip(part.images, part.captions, strict=True):
            if texts:
                images.append(image)
                captions.append(texts)
    return mc.CaptionedImages("+".join(names), parts[0].split, images, captions)


if __name__ == "__main__":
    main()
