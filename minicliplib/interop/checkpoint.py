"""Checkpoint folders: written and read here, found among the shipped ones, on disk, or on the hub.

A checkpoint is three files. ``config.json`` holds the settings, ``model.safetensors`` holds what
training has learned, stored in half precision, and ``README.md`` is the model card.
"""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import Config
from ..model import CheckpointError
from ..paths import ASSETS, write_atomically
from .model_card import write_model_card

FORMAT = 1
SHIPPED = ASSETS / "checkpoints"
HUB_ID = r"[\w-][\w.-]*/[\w.-]+"  # such as "user/model"

State = dict[str, Tensor]
Facts = dict[str, Any]  # for the model card


def write_checkpoint(folder: Path, config: Config, tensors: State, facts: Facts) -> None:
    """Write a checkpoint and its model card; see ``write_model_card`` for its ``facts``."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "config": config.to_dict(), "facts": facts}
    text = json.dumps(record, indent=1)
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / "config.json", lambda path: path.write_text(text))
    write_atomically(folder / "model.safetensors", lambda path: save_file(on_cpu, path))
    write_model_card(folder, config, facts)


def read_checkpoint(name: str | Path) -> tuple[Config, State, Facts]:
    """Read a checkpoint by the name of a shipped one, a folder, or a hub id.

    A ``Path`` is always a folder, also if a shipped checkpoint has its name.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged, or of another version.

    """
    folder = _folder_of(name)
    try:
        record = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        version = record["format"]
        settings = record["config"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {_reason(error)}.") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, but this version of minicliplib reads "
            f"format {FORMAT}: install the version that wrote it, or train again."
        )
    try:
        config = Config.from_dict(settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {_reason(error)}.") from error
    return config, tensors, record.get("facts") or {}


def _reason(error: Exception) -> str:
    """Return an error in words."""
    return f"{type(error).__name__}: {error}"


def _folder_of(name: str | Path) -> Path:
    """Return the folder of a shipped checkpoint, of a local one, or of one from the hub."""
    shipped = sorted(path.name for path in SHIPPED.iterdir()) if SHIPPED.exists() else []
    folder = Path(name)
    if isinstance(name, str) and name in shipped:
        folder = SHIPPED / name
    elif isinstance(name, str) and not folder.is_dir() and re.fullmatch(HUB_ID, name):
        folder = fetch_checkpoint(name)
    if not folder.is_dir():
        known = ", ".join(shipped)
        raise CheckpointError(
            f"There is no checkpoint {str(name)!r}: name one of the shipped ({known}), a "
            "folder with config.json and model.safetensors, or a hub id like 'user/model'."
        )
    return folder


def fetch_checkpoint(name: str, **options: Any) -> Path:
    """Get a checkpoint from the hub, or from its cache; the options are those of the hub."""
    known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
    wanted = ["config.json", "model.safetensors"]
    given = {key: options[key] for key in known if key in options}
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, **given))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise CheckpointError(
            f"{name!r} is neither a folder here nor could the hub give it ({reason})."
        ) from error
