"""Towers for tests: a small tokenizer, the hub's cache as a download leaves it, and settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import constants

from minicliplib.interop import pretrained

LETTERS = list("abcdefghijklmnopqrstuvwxyz,.")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "dog"]
REVISION = "0" * 40
# Each tower's head reads a frozen stage and, of its two last ones, which train, both.
READS = {
    "encoders": {
        "image_trainable": 2,
        "image_reads": "block9+block16+last",
        "text_trainable": 2,
        "text_reads": "layer2+layer5+last",
    }
}


def write_vocabulary(folder: Path) -> Path:
    """Write the list of word pieces, and return the file."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY))
    return path


def write_tokenizer(folder: Path) -> None:
    """Write a small word-piece tokenizer, as the folder of a text model holds it."""
    vocabulary = write_vocabulary(folder)
    transformers.BertTokenizerFast(str(vocabulary)).save_pretrained(folder)


def hub_snapshot(repository: str) -> Path:
    """Make the folder in which the hub's cache keeps the newest revision of a repository."""
    cached = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(REVISION)
    snapshot = cached / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot


def load_only_once(monkeypatch: pytest.MonkeyPatch, loader_name: str) -> None:
    """Load each pretrained model only once, for a test that cuts it at every depth."""
    load: Callable = getattr(pretrained, loader_name)
    loaded = {}

    def load_once(*key: Any) -> Any:
        if key not in loaded:
            loaded[key] = load(*key)
        return loaded[key]

    monkeypatch.setattr(pretrained, loader_name, load_once)
