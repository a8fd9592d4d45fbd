"""Features: what the frozen stages give for every image and caption, computed once and cached.

Training starts from these hidden states, so an epoch costs only the trainable stages and the heads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm.auto import tqdm

from .datasets.base import CaptionedImages
from .encoders import Encoder
from .model import MiniCLIP
from .paths import show_bars

IN_MEMORY = 2 * 2**30  # bytes for all views of a dataset; larger caches stay on disk, memory-mapped
IMAGES_AT_A_TIME = 16  # so few stay in the processor's cache
CAPTIONS_AT_A_TIME = 128


class Features:
    """Hidden states of a dataset's images and captions, from which the trainable stages go on.

    With ``cache`` the frozen stages run once for each view, and what they give is kept under
    ``data_root()/cache``. Without it they run on every call, which is what the cache is tested and
    timed against.
    """

    def __init__(
        self,
        model: MiniCLIP,
        data: CaptionedImages,
        views: int = 1,
        cache: bool = True,
        progress: bool = True,
    ):
        self.model = model
        self.data = data
        self.captions = data.flat_captions
        self.cache = cache
        self.progress = show_bars(progress)
        # The captions of image i are those from first_caption[i] up to first_caption[i + 1].
        self.first_caption = np.searchsorted(data.image_of_caption, np.arange(len(data) + 1))
        self.dtype = np.dtype(model.config.features.cache_dtype)
        if not cache:
            return

        image_key = self._key(model.image_encoder, data.images)
        text_key = self._key(model.text_encoder, self.captions)
        self.images = []
        for view in range(views):
            self.images.append(self._image_states(view, views, image_key))
        # The tokens of caption j are those from starts[j] up to starts[j + 1].
        self.starts = self._stored("starts", text_key, self._write_token_starts)
        self.tokens = self._stored("tokens", text_key, self._write_token_states)

    def image_batch(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        """Rows of images, each in its view (default: plain) -> hidden states (B, ...)."""
        if views is None:
            views = np.zeros(len(rows), dtype=int)
        if not self.cache:
            encoder = self.model.image_encoder
            images = [self.data.images[row] for row in rows]
            return encoder.trunk(encoder.prepare(images, views.tolist(), rows.tolist()))
        hidden = np.stack([self.images[v][row] for v, row in zip(views, rows, strict=True)])
        return torch.from_numpy(hidden).to(self.model.device).float()

    def text_batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of captions -> hidden states (B, T, D), padded with zeros, and mask (B, T).

        A tower without frozen stages gives token ids (B, T).
        """
        if not self.cache:
            return self._run_text(rows)
        lengths = self.starts[rows + 1] - self.starts[rows]
        shape = (len(rows), lengths.max(), *self.tokens.shape[1:])
        hidden = np.zeros(shape, self.tokens.dtype)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            start = self.starts[row]
            hidden[i, :length] = self.tokens[start : start + length]
        counts = np.arange(shape[1]) < lengths[:, None]  # (B, T): does a token count?
        mask = torch.from_numpy(counts).long().to(self.model.device)
        states = torch.from_numpy(hidden).to(self.model.device)
        return states.float() if states.is_floating_point() else states, mask

    @torch.inference_mode()
    def teacher_text(self) -> np.ndarray:
        """Return unit vectors (M, D) of the captions by the whole text tower, as it is now."""
        encoder = self.model.text_encoder.eval()

        def write(part: Path) -> None:
            out = open_memmap(part, "w+", np.float32, (len(self.captions), encoder.dim))
            for rows in self._by_length():
                ids, mask = encoder.prepare([self.captions[row] for row in rows])
                out[rows] = F.normalize(encoder(ids, mask), dim=-1).cpu()
            out.flush()

        key = self._key(encoder, self.captions, whole=True)
        return self._stored("teacher", key, write)

    # ---- the cache ------------------------------------------------------------------------------

    def _stored(
        self, kind: str, key: str, write: Callable[[Path], None], arrays: int = 1
    ) -> np.ndarray:
        """Return an array from its file, and compute it first where there is none."""
        from .scale.cache import stored_array

        name = f"{self.data.name}-{self.data.split}-{kind}-{key}.npy"
        return stored_array(name, write, IN_MEMORY // arrays)

    def _key(self, encoder: Encoder, items: Sequence, whole: bool = False) -> str:
        """Return what tells these features from others; see ``scale.cache.feature_key``."""
        from .scale.cache import feature_key

        return feature_key(encoder, items, self.dtype, whole)

    def _image_states(self, view: int, views: int, key: str) -> np.ndarray:
        """Return the hidden states of all images in one of so many views: (N, ...)."""
        images = self.data.images
        encoder = self.model.image_encoder

        def write(part: Path) -> None:
            out = None
            starts = range(0, len(images), IMAGES_AT_A_TIME)
            title = f"{self.data.split} images, view {view}"
            for start in tqdm(starts, title, disable=not self.progress):
                rows = range(start, min(start + IMAGES_AT_A_TIME, len(images)))
                batch = [images[row] for row in rows]
                hidden = encoder.trunk(encoder.prepare(batch, [view] * len(rows), rows))
                if out is None:
                    out = open_memmap(part, "w+", self.dtype, (len(images), *hidden.shape[1:]))
                out[start : rows.stop] = hidden.cpu().numpy()
            assert out is not None, "a dataset has at least one image"
            out.flush()

        return self._stored(f"view{view}", key, write, arrays=views)

    def _write_token_states(self, part: Path) -> None:
        """Write the hidden states of all captions, one after the other: (all tokens, D)."""
        out = None
        title = f"{self.data.split} captions"
        for rows in tqdm(self._by_length(), title, disable=not self.progress):
            hidden, mask = self._run_text(rows)
            if out is None:
                dtype = self.dtype if hidden.is_floating_point() else np.int64
                out = open_memmap(part, "w+", dtype, (int(self.starts[-1]), *hidden.shape[2:]))
            lengths = mask.sum(1).tolist()
            for row, states, length in zip(rows, hidden.cpu().numpy(), lengths, strict=True):
                start = self.starts[row]
                out[start : start + length] = states[:length]
        assert out is not None, "a dataset has at least one caption"
        out.flush()

    def _write_token_starts(self, part: Path) -> None:
        """Write where each caption's tokens start, and where the last one's end: (M + 1,)."""
        lengths = np.ones(len(self.captions), dtype=int)  # a locked tower gives one vector each
        encoder = self.model.text_encoder
        if not encoder.locked:
            for rows in self._by_length():
                _, mask = encoder.prepare([self.captions[row] for row in rows])
                lengths[rows] = mask.sum(1).cpu()
        out = open_memmap(part, "w+", np.int64, (len(lengths) + 1,))
        out[0] = 0
        out[1:] = np.cumsum(lengths)
        out.flush()

    def _run_text(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Run the frozen stages on rows of captions -> hidden states and mask."""
        encoder = self.model.text_encoder
        ids, mask = encoder.prepare([self.captions[row] for row in rows])
        hidden = encoder.trunk(ids, mask)
        if encoder.locked:  # it has pooled: sequences of one token
            return hidden.unsqueeze(1), torch.ones_like(mask[:, :1])
        return hidden, mask

    def _by_length(self) -> list[np.ndarray]:
        """Return rows of captions in batches of like length, which need little padding."""
        order = np.argsort([len(text) for text in self.captions], kind="stable")
        return np.split(order, range(CAPTIONS_AT_A_TIME, len(order), CAPTIONS_AT_A_TIME))
