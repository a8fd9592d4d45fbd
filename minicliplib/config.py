"""Settings and places: what makes a run, saved with every checkpoint and result, and where its files lie."""

import hashlib
import json
import os
import platform
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class DataConfig:
    """Which image-caption pairs."""

    name: str = "sample"  # several may be joined: "flickr8k+sample"
    root: str | Path | None = None  # None: data_root() / name
    limit: int | None = None  # use only the first so many images of each split


@dataclass(frozen=True)
class EncoderConfig:
    """Which towers, and how much of each one trains, counted in stages from the top."""

    image: str = "efficientnet_lite0"
    text: str = "minilm"
    image_trainable: int = 0  # 0 is a locked tower (LiT), -1 is full fine-tuning
    text_trainable: int = 0
    max_tokens: int = 40  # longer captions are cut
    looks: int = 1  # how many looks at a picture encode_image averages: 1, 2 (mirrored, too) or 4 (its middle, too)


@dataclass(frozen=True)
class HeadConfig:
    """The projection heads, one per tower, alike but for their input width."""

    kind: str = "mlp"  # "mlp" (residual, with LayerNorm) or "linear"
    dim: int = 256  # width of the shared space
    dropout: float = 0.1
    image_dropout: float = 0.0  # of the image tower's features, on their way into the head


@dataclass(frozen=True)
class LossConfig:
    """What pulls pairs together."""

    name: str = "infonce"  # "infonce", "multi_positive", "sigmoid" or "max_margin"
    captions_per_image: int = 1  # in a batch; more than one needs a loss with several positives
    temperature: float = 0.07  # at the start; the logit scale is its inverse
    learn_temperature: bool = True
    max_scale: float = 100.0  # above which the logit scale is not used (CLIP, section 2.5)
    soft: float = 0.0  # share of targets softened by how alike the captions are to the pretrained text tower
    soft_temperature: float = 0.1  # of that likeness


@dataclass(frozen=True)
class TrainConfig:
    """Optimiser, schedule and augmentation."""

    epochs: int = 30
    batch_size: int = 128
    chunk_size: int | None = None  # two-pass accumulation (GradCache) in chunks of so many images
    lr_heads: float = 1e-3
    lr_image: float = 2e-4
    lr_text: float = 2e-4
    weight_decay: float = 0.1  # on matrices only: not on biases, norms or the logit scale
    warmup: float = 0.1  # share of all steps
    clip_norm: float = 1.0
    average: float = 0.0  # decay of the averaged weights that are evaluated and kept; 0 is off
    views: int = 1  # cached views per image: plain, mirrored, then random crops
    map_crop: float = 1.0  # side of the random window cut from a cached convolution map
    word_dropout: float = 0.0  # share of a caption's tokens hidden from the trainable top
    tower_dropout: float = 0.0  # dropout inside the trainable text stages
    shuffle: int = 0  # another number draws other batches, crops and dropout from the same start
    soup: int = 1  # runs that differ in ``shuffle`` alone, whose weights are averaged (Wortsman et al. 2022)
    patience: int = 10  # epochs without a better dev recall before stopping
    cache_dtype: str = "float16"  # of the cached trunk outputs
    precision: str = "no"  # mixed precision, of the towers in use, too: "no", "bf16" or "fp16"


@dataclass(frozen=True)
class Config:
    """Everything that makes a run."""

    data: DataConfig = DataConfig()
    encoders: EncoderConfig = EncoderConfig()
    heads: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    seed: int = 0

    def flat(self) -> dict:
        """Return all settings by dotted name: ``{"data.name": "sample", ..., "seed": 0}``."""
        return _flatten(asdict(self))

    def updated(self, **changes) -> "Config":
        """Return a copy with settings changed by dotted name, e.g. ``updated(**{"train.epochs": 3})``."""
        config, known = self, self.flat()
        for dotted, value in changes.items():
            if dotted not in known:
                raise ValueError(f"There is no setting {dotted!r}. Known: {', '.join(known)}.")
            part, _, name = dotted.rpartition(".")
            kind = type(getattr(config, part) if part else config).__annotations__[name]
            if not isinstance(value, kind | int if kind is float else kind):
                raise ValueError(f"{dotted} takes {getattr(kind, '__name__', kind)}, not {value!r}.")
            value = replace(getattr(config, part), **{name: value}) if part else value
            config = replace(config, **{part or name: value})
        return config

    def to_dict(self) -> dict:
        """Return the tree as plain dicts for a record; where the data lay on this machine is left out."""
        return asdict(self.updated(**{"data.root": None}))

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Build a config from what ``to_dict`` gave; an unknown setting is an error that lists the known ones."""
        return cls().updated(**_flatten(values))

    @property
    def draws(self) -> int:
        """What seeds the draws of an epoch; the seed alone decides where training starts."""
        return self.seed + 7919 * self.train.shuffle

    def digest(self) -> str:
        """Return eight hex digits that name this config; of your own folder, its place and its captions.csv matter."""
        table = Path(self.data.root or "").expanduser().resolve() / "captions.csv"
        changed = table.stat().st_mtime_ns if table.exists() else 0
        place = f"{table} {changed}" if "folder" in self.data.name.split("+") else ""
        return hashlib.sha256((json.dumps(self.to_dict(), sort_keys=True) + place).encode()).hexdigest()[:8]


def _flatten(tree: dict) -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


_TUNED = Config(
    data=DataConfig("flickr8k"),
    encoders=EncoderConfig(image_trainable=6, text_trainable=2, looks=4),
    heads=HeadConfig(dim=512),
    loss=LossConfig("multi_positive", captions_per_image=2),
    train=TrainConfig(
        epochs=16, batch_size=256, average=0.98, views=6, map_crop=0.86, word_dropout=0.1, tower_dropout=0.1
    ),
)
PRESETS = {
    "sample": Config(),
    "flickr8k": _TUNED.updated(
        **{"heads.dim": 1024, "heads.image_dropout": 0.4, "loss.temperature": 0.04, "loss.soft": 0.5},
        **{"train.views": 10, "train.epochs": 14, "train.soup": 4},
    ),
    # For a part of val2017, where few images make short epochs.
    "coco": _TUNED.updated(**{"data.name": "coco", "train.epochs": 40, "train.batch_size": 128}),
    "mixed": _TUNED.updated(**{"data.name": "flickr8k+sample"}),  # for the demo, which shows photos and scenes
}


def preset(name: str) -> Config:
    """Return the config of a preset by name; raise ``ValueError`` listing the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}. Known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def set_seed(seed: int, threads: int | None = None) -> None:
    """Seed Python, NumPy and torch; ``threads=1`` also pins torch so that floats repeat to the last bit."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)


def no_bar(progress: bool) -> bool:
    """Return whether progress bars are off: by argument, or everywhere by ``$TQDM_DISABLE``."""
    return not progress or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")


CHECKOUT = Path(__file__).resolve().parents[1]
IN_CHECKOUT = (CHECKOUT / "pyproject.toml").exists()  # rather than installed somewhere


def data_root() -> Path:
    """Return where datasets, caches and runs lie: ``$MINICLIP_HOME``, the checkout's ``data/``, or ~/.cache."""
    default = CHECKOUT / "data" if IN_CHECKOUT else Path.home() / ".cache" / "minicliplib"
    return Path(os.environ.get("MINICLIP_HOME") or default)


def output_root() -> Path:
    """Return where ``figures/`` and ``report/`` are written: ``$MINICLIP_OUT``, the checkout, or here."""
    return Path(os.environ.get("MINICLIP_OUT") or (CHECKOUT if IN_CHECKOUT else Path.cwd()))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary neighbour of ``path``, then move it into place in one step."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def save_result(dataset: str, topic: str, metrics: dict, config: Config | None = None, seconds: float = 0) -> Path:
    """Write what a notebook measured, in so many ``seconds``, to ``report/results/<dataset>/<topic>.json``."""
    path = output_root() / "report" / "results" / dataset / f"{topic}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "topic": topic,
        "dataset": dataset,
        "metrics": metrics,
        "config": config.to_dict() | {"digest": config.digest()} if config else None,
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {p: version(p) for p in ("torch", "timm", "transformers", "minicliplib")},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
