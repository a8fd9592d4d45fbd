"""Settings and places: what makes a run, and where its files lie.

One frozen dataclass tree drives the notebooks, the command line and the checkpoint, and is saved
with every checkpoint and every result, so a number can always say what made it.
"""

import hashlib
import json
import os
import platform
import random
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class DataConfig:
    """Which image-caption pairs."""

    name: str = "sample"
    root: str | None = None  # None: data_root() / name
    limit: int | None = None  # use only the first so many images of each split


@dataclass(frozen=True)
class EncoderConfig:
    """Which towers, and how much of each one trains, counted in stages from the top."""

    image: str = "efficientnet_lite0"
    text: str = "minilm"
    image_trainable: int = 0  # 0 is a locked tower (LiT), -1 is full fine-tuning
    text_trainable: int = 0
    max_tokens: int = 40  # longer captions are cut


@dataclass(frozen=True)
class HeadConfig:
    """The projection heads, one per tower, alike but for their input width."""

    kind: str = "mlp"  # "mlp" (residual, with LayerNorm) or "linear"
    dim: int = 256  # width of the shared space
    dropout: float = 0.1


@dataclass(frozen=True)
class LossConfig:
    """What pulls pairs together."""

    name: str = "infonce"  # "infonce", "multi_positive" or "sigmoid"
    captions_per_image: int = 1  # in a batch; more than one needs a loss with several positives
    temperature: float = 0.07  # at the start; the logit scale is its inverse
    learn_temperature: bool = True


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
    patience: int = 10  # epochs without a better dev recall before stopping
    cache_dtype: str = "float16"  # of the cached trunk outputs
    precision: str = "no"  # accelerate's mixed precision: "no", "bf16" or "fp16"


@dataclass(frozen=True)
class Config:
    """Everything that makes a run."""

    data: DataConfig = field(default_factory=DataConfig)
    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

    def to_dict(self) -> dict:
        """Return the tree as plain dicts, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Build a config from nested dicts; an unknown key is an error that lists the known ones."""
        return _build(cls, values, "config")

    def updated(self, **changes) -> "Config":
        """Return a copy with fields changed by dotted name, e.g. ``updated(**{"train.epochs": 3})``."""
        tree = self.to_dict()
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            node = tree
            for part in path:
                node = node.get(part) if isinstance(node, dict) else None
            if not isinstance(node, dict) or last not in node:
                raise ValueError(
                    f"There is no setting {dotted!r}. Known: {', '.join(_dotted(self.to_dict()))}."
                )
            node[last] = value
        return self.from_dict(tree)

    def digest(self) -> str:
        """Return eight hex digits that name this config; where the data lies does not matter."""
        tree = replace(self, data=replace(self.data, root=None)).to_dict()
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def _build(cls, values: dict, where: str):
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"Unknown {where} key {unknown[0]!r}. Known: {', '.join(known)}.")
    parts = {name: known[name].default_factory for name in values if is_dataclass(known[name].type)}
    return cls(**{k: _build(parts[k], v, f"{where}.{k}") if k in parts else v for k, v in values.items()})


def _dotted(tree: dict, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in tree.items()
        for name in (_dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    ]


PRESETS = {
    "sample": Config(),
    "flickr8k": Config(
        data=DataConfig("flickr8k"),
        encoders=EncoderConfig(image_trainable=6, text_trainable=2),
        train=TrainConfig(epochs=20, batch_size=256, views=4, map_crop=0.86, average=0.98),
    ),
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


def hidden(progress: bool) -> bool:
    """Return whether progress bars are off: by argument, or everywhere by ``$TQDM_DISABLE``."""
    return not progress or "TQDM_DISABLE" in os.environ


# ---- places ----------------------------------------------------------------------------------------


def project_root() -> Path:
    """Return the checkout this package runs from, or the working directory when it is installed elsewhere."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def data_root() -> Path:
    """Return where datasets, caches and runs lie: ``$MINICLIP_HOME``, the checkout's ``data/``, or ~/.cache."""
    if home := os.environ.get("MINICLIP_HOME"):
        return Path(home)
    checkout = project_root() / "data"
    return (
        checkout if (project_root() / "pyproject.toml").exists() else Path.home() / ".cache" / "minicliplib"
    )


def output_root() -> Path:
    """Return where ``figures/`` and ``report/`` are written: ``$MINICLIP_OUT``, or the checkout itself."""
    return Path(os.environ.get("MINICLIP_OUT") or project_root())


def save_result(
    dataset: str, topic: str, metrics: dict, config: Config | None = None, seconds: float = 0
) -> Path:
    """Write what a notebook measured to ``report/results/<dataset>/<topic>.json`` and return the path.

    ``seconds`` is how long the measurement took. Config, seed, versions and date are added here, once.
    """
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
