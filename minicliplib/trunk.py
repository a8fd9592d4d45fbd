"""What the frozen trunks give, computed once: the hidden states at which the trainable tops begin."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from .config import data_root, no_bar, write_atomically
from .data import CaptionedImages
from .images import identity
from .model import MiniCLIP

IN_MEMORY = 2 * 2**30  # bytes for all views of a dataset; beyond that they stay on disk, memory-mapped


class TrunkOutputs:
    """Hidden states of a dataset's images and captions.

    With ``cache`` the trunks run once per view, and their outputs are kept in half precision under
    ``data_root()/cache``. Without it they run on every call, which is what the cache is tested and timed against.
    """

    def __init__(self, model: MiniCLIP, data: CaptionedImages, views: int = 1, cache=True, progress=True):
        self.model, self.data, self.cache, self.views = model, data, cache, views
        self.captions, self._progress = data.flat_captions, progress
        self.first = np.searchsorted(data.owner, np.arange(len(data) + 1))  # captions of i: first[i] to first[i + 1]
        self._dtype = np.dtype(model.config.train.cache_dtype)
        if cache:
            self.images = [self._stored(f"view{v}", data.images, self._image_states, v) for v in range(views)]
            self.starts = self._stored("starts", self.captions, self._token_starts)
            self.tokens = self._stored("tokens", self.captions, self._token_states)

    def image_batch(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Rows of images, each in its view (default: plain) -> hidden states (B, ...)."""
        views = np.zeros(len(rows), int) if views is None else views
        if not self.cache:
            encoder = self.model.image_encoder
            return encoder.trunk(encoder.prepare([self.data.images[i] for i in rows], views.tolist(), rows.tolist()))
        hidden = np.stack([self.images[v][i] for v, i in zip(views, rows, strict=True)])
        return torch.from_numpy(hidden).to(self.model.device).float()

    def text_batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of captions -> hidden states (B, T, D), padded, and mask (B, T); of a tower with no trunk, token ids."""
        if not self.cache:
            return self._run_text([self.captions[j] for j in rows])
        lengths = self.starts[rows + 1] - self.starts[rows]
        hidden = np.zeros((len(rows), lengths.max(), *self.tokens.shape[1:]), self.tokens.dtype)
        for row, (j, n) in enumerate(zip(rows, lengths, strict=True)):
            hidden[row, :n] = self.tokens[self.starts[j] : self.starts[j] + n]
        mask = torch.from_numpy(np.arange(hidden.shape[1]) < lengths[:, None]).long().to(self.model.device)
        hidden = torch.from_numpy(hidden).to(self.model.device)
        return hidden.float() if hidden.is_floating_point() else hidden, mask

    @torch.inference_mode()
    def meanings(self) -> np.ndarray:
        """Unit vectors of the captions as the whole text tower gives them now, before it is tuned: (M, D)."""
        encoder = self.model.text_encoder.eval()

        def compute(part: Path) -> None:
            out = np.lib.format.open_memmap(part, "w+", np.float32, (len(self.captions), encoder.dim))
            for rows in self._by_length():
                out[rows] = F.normalize(encoder(*encoder.prepare([self.captions[j] for j in rows])), dim=-1).cpu()
            out.flush()

        return self._stored("meanings", self.captions, compute)

    def _run_text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.model.text_encoder.prepare(captions)
        hidden = self.model.text_encoder.trunk(ids, mask)
        if not self.model.text_encoder.locked:
            return hidden, mask
        return hidden.unsqueeze(1), torch.ones_like(mask[:, :1])  # a locked tower pools: sequences of one token

    def _stored(self, kind: str, items: list, compute: Callable, *arguments) -> np.ndarray:
        """Return an array from its file, computing it first where there is none."""
        encoders = self.model.config.encoders
        setting = [encoders.image, self.model.image_encoder.frozen]
        if items is self.captions:
            setting = [encoders.text, self.model.text_encoder.frozen, encoders.max_tokens]
        weights = sorted(Path(setting[0]).glob("*.*")) if Path(setting[0]).is_dir() else []  # of a folder of one's own
        setting += [self.model.config.train.precision, self._dtype, *map(identity, weights)]
        content = "\n".join(map(str, [*setting, *map(identity, items)]))
        key = hashlib.sha256(content.encode()).hexdigest()[:12]
        path = data_root() / "cache" / f"{self.data.name}-{self.data.split}-{kind}-{key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # two notebooks may want the same at once
            if not path.exists():
                write_atomically(path, lambda part: compute(part, *arguments))
        return np.load(path, mmap_mode=None if path.stat().st_size <= IN_MEMORY / self.views else "r")

    def _image_states(self, part: Path, view: int) -> None:
        images, encoder, out = self.data.images, self.model.image_encoder, None
        starts = range(0, len(images), 16)  # small batches stay in the processor's cache
        for start in tqdm(starts, f"{self.data.split} images, view {view}", disable=no_bar(self._progress)):
            rows = range(start, min(start + 16, len(images)))
            hidden = encoder.trunk(encoder.prepare([images[i] for i in rows], [view] * len(rows), rows))
            if out is None:
                out = np.lib.format.open_memmap(part, "w+", self._dtype, (len(images), *hidden.shape[1:]))
            out[start : rows.stop] = hidden.cpu().numpy()
        out.flush()

    def _token_states(self, part: Path) -> None:
        out = None
        for rows in tqdm(self._by_length(), f"{self.data.split} captions", disable=no_bar(self._progress)):
            hidden, mask = self._run_text([self.captions[j] for j in rows])
            if out is None:
                dtype = self._dtype if hidden.is_floating_point() else np.int64
                out = np.lib.format.open_memmap(part, "w+", dtype, (int(self.starts[-1]), *hidden.shape[2:]))
            for j, states, n in zip(rows, hidden.cpu().numpy(), mask.sum(1).tolist(), strict=True):
                out[self.starts[j] : self.starts[j] + n] = states[:n]
        out.flush()

    def _token_starts(self, part: Path) -> None:
        lengths = np.ones(len(self.captions), int)
        if not self.model.text_encoder.locked:
            for rows in self._by_length():
                lengths[rows] = self.model.text_encoder.prepare([self.captions[j] for j in rows])[1].sum(1).cpu()
        np.lib.format.open_memmap(part, "w+", np.int64, (len(lengths) + 1,))[:] = np.cumsum([0, *lengths])

    def _by_length(self) -> list[np.ndarray]:
        order = np.argsort([len(text) for text in self.captions], kind="stable")  # little padding
        return [order[i : i + 128] for i in range(0, len(order), 128)]
