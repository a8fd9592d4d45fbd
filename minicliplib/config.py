"""Settings: one frozen tree that makes a run, and is saved with every checkpoint and result.

A config is pure: it reads no file and does not know in which folder you are. The content of the
data is not a setting; ``CaptionedImages.fingerprint`` tells one set of images and captions from
another.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Which image-caption pairs."""

    name: str = "sample"  # names joined by a plus follow one another: "flickr8k+sample"
    root: str | Path | None = None  # where the dataset lies; None: data_root() / name
    limit: int | None = None  # use only so many images of each split


@dataclass(frozen=True)
class EncoderConfig:
    """Which towers, and how many stages of each one train, counted from the top."""

    image: str = "efficientnet_lite0"
    text: str = "minilm"
    image_trainable: int = 0  # 0 is a locked tower (LiT), -1 is full fine-tuning
    text_trainable: int = 0
    image_reads: str = "last"  # the stages that the head reads, each pooled: "block20+last"
    text_reads: str = "last"
    max_tokens: int = 40  # longer captions are cut
    text_dropout: float = 0.0  # inside the text tower's trainable stages
    precision: str = "no"  # mixed precision, in training and in use: "no", "bf16" or "fp16"


@dataclass(frozen=True)
class HeadConfig:
    """The two projection heads, and the temperature of the space that they share."""

    kind: str = "mlp"  # "mlp" (residual, with LayerNorm) or "linear"
    dim: int = 256  # width of the shared space
    dropout: float = 0.1  # inside an "mlp" head
    image_dropout: float = 0.0  # of the image features on their way into the head
    text_dropout: float = 0.0  # of the text features, likewise
    temperature: float = 0.07  # at the start; the logit scale is its inverse
    learn_temperature: bool = True
    max_scale: float = 100.0  # the logit scale's upper bound (CLIP, section 2.5)


@dataclass(frozen=True)
class LossConfig:
    """What pulls matching pairs together and pushes the others apart."""

    name: str = "infonce"  # "infonce", "multi_positive", "sigmoid" or "max_margin"
    soft: float = 0.0  # share of the targets that follows how alike the captions are
    soft_temperature: float = 0.1  # of that likeness, as the pretrained text tower sees it


@dataclass(frozen=True)
class FeatureConfig:
    """What is cached of the frozen stages' outputs."""

    views: int = 1  # per image: plain, then mirrored, then random crops
    cache_dtype: str = "float16"  # or "float32"


@dataclass(frozen=True)
class InferenceConfig:
    """How a trained model is used."""

    tta_views: int = 1  # test-time views averaged: 1 plain, 2 mirrored too, 4 the middle too


@dataclass(frozen=True)
class TrainConfig:
    """Batches, optimiser, schedule and augmentation."""

    epochs: int = 30
    batch_size: int = 128  # images
    # Drawn for each image of a batch, or all if it has fewer. More than one needs a loss with
    # several positives.
    captions_per_image: int = 1
    chunk_size: int | None = None  # two-pass gradients (GradCache) in chunks of so many images
    lr_heads: float = 1e-3
    lr_image: float = 2e-4
    lr_text: float = 2e-4
    weight_decay: float = 0.1  # on matrices only: not on biases, norms or the logit scale
    # Of training, its cached features included: "as_used" is encoders.precision, "auto" is bf16
    # where the processor computes in it, and "no", "bf16" and "fp16" are as there.
    mixed_precision: str = "as_used"
    warmup: float = 0.1  # share of all steps
    clip_norm: float = 1.0
    average: float = 0.0  # decay of the averaged weights that are evaluated and kept; 0 is off
    map_crop: float = 1.0  # side of the random window cut from a cached convolution map
    word_dropout: float = 0.0  # share of a caption's tokens hidden from the trainable stages
    shuffle: int = 0  # another number draws other batches, crops and dropout from the same start
    soup: int = 1  # runs that differ in ``shuffle`` alone, and whose weights are averaged
    patience: int = 10  # epochs without a better dev recall before training stops


# Settings that had another name in checkpoints and results of version 0.1.
MOVED = {
    "encoders.looks": "inference.tta_views",
    "loss.captions_per_image": "train.captions_per_image",
    "loss.temperature": "heads.temperature",
    "loss.learn_temperature": "heads.learn_temperature",
    "loss.max_scale": "heads.max_scale",
    "train.views": "features.views",
    "train.cache_dtype": "features.cache_dtype",
    "train.tower_dropout": "encoders.text_dropout",
    "train.precision": "encoders.precision",
}


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: DataConfig = DataConfig()
    encoders: EncoderConfig = EncoderConfig()
    heads: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    features: FeatureConfig = FeatureConfig()
    inference: InferenceConfig = InferenceConfig()
    train: TrainConfig = TrainConfig()
    seed: int = 0

    def flat(self) -> dict[str, Any]:
        """Return all settings by dotted name: ``{"data.name": "sample", ..., "seed": 0}``."""
        return _flatten(asdict(self))

    def updated(self, **changes: Any) -> "Config":
        """Return a copy with some settings changed.

        Settings are named part by part, ``updated(train={"epochs": 3}, seed=1)``, or by dotted
        name, ``updated(**{"train.epochs": 3})``.

        Raises:
            ValueError: there is no setting of that name, or it takes another kind of value.

        """
        config = self
        for name, value in _flatten(changes).items():
            config = config._with(name, value)
        return config

    def _with(self, dotted: str, value: Any) -> "Config":
        """Return a copy with one setting changed."""
        if dotted in MOVED:
            raise ValueError(f"There is no setting {dotted!r}: it is called {MOVED[dotted]!r} now.")
        if dotted not in self.flat():
            known = ", ".join(self.flat())
            raise ValueError(f"There is no setting {dotted!r}. Known: {known}.")

        part_name, _, name = dotted.rpartition(".")
        part = getattr(self, part_name) if part_name else self
        kind = type(part).__annotations__[name]
        if kind is float and type(value) is int:
            value = float(value)  # 1 and 1.0 are one setting, and have one digest
        if not isinstance(value, kind):
            raise ValueError(f"{dotted} takes {getattr(kind, '__name__', kind)}, not {value!r}.")

        changed = replace(part, **{name: value})
        return replace(self, **{part_name: changed}) if part_name else changed

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain dicts, without the place where the data lay on this machine."""
        return asdict(self.updated(data={"root": None}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Build a config from what ``to_dict`` gave, in this version or in an earlier one.

        Raises:
            ValueError: a setting is unknown; the message lists the known ones.

        """
        flat = {MOVED.get(name, name): value for name, value in _flatten(values).items()}
        return cls().updated(**flat)

    def with_locked_towers(self) -> "Config":
        """Return these settings for heads alone, without what varies the input of tuned stages."""
        return self.updated(
            encoders={"image_trainable": 0, "text_trainable": 0},
            train={"map_crop": 1.0, "word_dropout": 0.0},
        )

    @property
    def epoch_seed(self) -> int:
        """Seed of an epoch's random draws; ``seed`` alone decides where training starts."""
        # The factor only keeps runs of other seeds and shuffles apart.
        return self.seed + 7919 * self.train.shuffle

    def digest(self) -> str:
        """Return eight hex digits that name these settings."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                flat[f"{name}.{inner}"] = inner_value
        else:
            flat[name] = value
    return flat


# The settings that all tuned recipes share.
_TUNED = Config(
    data=DataConfig("flickr8k"),
    encoders=EncoderConfig(image_trainable=6, text_trainable=2, text_dropout=0.1),
    heads=HeadConfig(dim=512),
    loss=LossConfig("multi_positive"),
    features=FeatureConfig(views=6),
    inference=InferenceConfig(tta_views=4),
    train=TrainConfig(
        epochs=16,
        batch_size=256,
        captions_per_image=2,
        average=0.98,
        map_crop=0.86,
        word_dropout=0.1,
    ),
)
# Two image towers side by side, and heads that read several stages.
_TWO_TOWERS = _TUNED.updated(
    encoders={
        "image": "efficientnet_lite1+efficientnet_lite2",
        "image_trainable": 3,
        "image_reads": "block20+block21+last",
        "text_reads": "layer1+layer3+layer5+last",
    },
    heads={"dim": 1024, "image_dropout": 0.5, "text_dropout": 0.2, "temperature": 0.04},
    loss={"soft": 0.5},
    features={"views": 4},
    train={"epochs": 16, "mixed_precision": "auto"},
)
PRESETS = {
    "sample": Config(),
    "flickr8k": _TWO_TOWERS.updated(train={"soup": 3}),
    # Made for use. To name things by their class, it reads the last image stage alone and leaves
    # the text tower as it is. To embed a folder quickly, it looks once at an image. The shipped
    # checkpoint was trained by report/checkpoints.py, on all of ``folder``.
    "everyday": _TWO_TOWERS.updated(
        data={"name": "flickr8k+coco+folder+sample"},
        encoders={"image_reads": "last", "text_trainable": 0},
        inference={"tta_views": 1},
        train={"captions_per_image": 5, "word_dropout": 0.0},
    ),
    # For a part of val2017, where few images make short epochs.
    "coco": _TUNED.updated(data={"name": "coco"}, train={"epochs": 40, "batch_size": 128}),
}


def preset(name: str) -> Config:
    """Return the config of a preset by name; raise ``ValueError`` listing the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}. Known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def set_seed(seed: int, threads: int | None = None) -> None:
    """Seed Python, NumPy and torch; ``threads=1`` also makes floats repeat to the last bit."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
