"""Places: where files lie, how they are written, and the results that notebooks leave."""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .config import Config

PACKAGE = Path(__file__).resolve().parent
ASSETS = PACKAGE / "assets"
CHECKOUT = PACKAGE.parent
IN_CHECKOUT = (CHECKOUT / "pyproject.toml").exists()  # rather than installed somewhere


def data_root() -> Path:
    """Return where datasets, caches and runs lie: ``$MINICLIP_HOME``, or the default.

    The default is ``data/`` in a checkout, and ``~/.cache/minicliplib`` where the package is
    installed.
    """
    default = CHECKOUT / "data" if IN_CHECKOUT else Path.home() / ".cache" / "minicliplib"
    return Path(os.environ.get("MINICLIP_HOME") or default)


def output_root() -> Path:
    """Return where ``figures/`` and ``report/`` are written: ``$MINICLIP_OUT``, or the default.

    The default is the checkout, or the current folder where the package is installed.
    """
    default = CHECKOUT if IN_CHECKOUT else Path.cwd()
    return Path(os.environ.get("MINICLIP_OUT") or default)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary neighbour of ``path``, then move it into place in one step."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def show_bars(progress: bool) -> bool:
    """Return whether to show progress bars: if asked for, unless ``$TQDM_DISABLE`` is set."""
    return progress and os.environ.get("TQDM_DISABLE", "0") in ("", "0")


def short_hash(*parts: object, digits: int = 12) -> str:
    """Return so many hex digits that tell these values, written as text, from others."""
    text = "\n".join(map(str, parts))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def save_result(
    dataset: str,
    topic: str,
    metrics: dict[str, Any],
    config: Config | None = None,
    seconds: float = 0,
) -> Path:
    """Write what was measured to ``report/results/<dataset>/<topic>.json`` and return the path.

    The file also holds the settings, the ``seconds`` that measuring took, the date, the versions of
    the libraries and the machine.
    """
    import torch

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
    write_atomically(path, lambda part: part.write_text(json.dumps(record, indent=1) + "\n"))
    return path
