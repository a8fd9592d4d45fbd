"""The cache of features: where it lies, and what makes it outdated."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..datasets.images import identity
from ..encoders import Encoder, TextEncoder
from ..paths import PACKAGE, data_root, short_hash, write_atomically

# The modules that compute features.
FEATURE_CODE = (
    "datasets/images",
    "datasets/views",
    "encoders",
    "features",
    "interop/pretrained",
    "interop/side_by_side",
    "scale/cache",
)
# The modules that decide what a run learns, features included.
TRAINING_CODE = (
    *FEATURE_CODE,
    "config",
    "model",
    "loss",
    "metrics",
    "training",
    "analysis/measures",
    "scale/averaging",
    "scale/processes",
    "scale/runs",
    "scale/soup",
    "scale/two_pass",
)
LIBRARIES = ("torch", "timm", "transformers", "tokenizers", "accelerate", "pillow", "numpy")


def code_version(modules: Sequence[str] = TRAINING_CODE) -> str:
    """Return a hash of these modules' source and of the libraries' versions.

    Results that are computed once and kept have it in their name. After a change of the code, or of
    a library, they are computed again.
    """
    libraries = [f"{name} {version(name)}" for name in LIBRARIES]
    sources = [(PACKAGE / f"{name}.py").read_text(encoding="utf-8") for name in modules]
    return short_hash(*libraries, *sources)


def feature_key(encoder: Encoder, items: Sequence, dtype: np.dtype, whole: bool) -> str:
    """Return what tells the features of these items from others: all that they are made from.

    That is the weights of the frozen stages (or of the ``whole`` tower) and how many stages they
    are, the layers, the precision, the size of the input, the tokenizer, our code, the libraries'
    versions, and the items.
    """
    weights = hashlib.sha256()
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if whole or not tensor.requires_grad:
            weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return short_hash(
        weights.hexdigest(),
        len(encoder.stages) if whole else encoder.frozen,
        encoder.reads,
        encoder.precision,
        dtype,
        repr(encoder.model),  # its layers and their settings
        getattr(encoder, "size", None),  # of an image tower's input, in pixels
        _tokenizer_key(encoder),
        code_version(FEATURE_CODE),
        *map(identity, items),
    )


def _tokenizer_key(encoder: Encoder) -> str:
    """Return what a text tower's tokenizer does, as text; an image tower has none."""
    if not isinstance(encoder, TextEncoder):
        return ""
    rules = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    # How the last call padded and cut its texts is kept there too, and says nothing.
    rules["padding"] = None
    rules["truncation"] = {"max_length": encoder.max_tokens}
    return json.dumps(rules, sort_keys=True)


def stored_array(name: str, write: Callable[[Path], None], in_memory: int) -> np.ndarray:
    """Return an array from its file in the cache, and write the file first where there is none.

    An array of more bytes than ``in_memory`` stays on disk, memory-mapped.
    """
    path = data_root() / "cache" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may want the same array at once: the second waits for the first.
    with FileLock(f"{path}.lock"):
        if not path.exists():
            write_atomically(path, write)
    fits = path.stat().st_size <= in_memory
    return np.load(path, mmap_mode=None if fits else "r")
