"""Features: what the frozen stages give for every image and caption, computed once and cached.

Training starts from these hidden states, so an epoch costs only the trainable stages and the heads.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm.auto import tqdm

from .datasets.base import CaptionedImages
from .encoders import Encoder, Hidden
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
        self.images = []
        for view in range(views):
            self.images.append(self._image_states(view, views, image_key))

        encoder = model.text_encoder
        self.text_key = self._key(encoder, self.captions)
        if not encoder.locked:
            # The tokens of caption j are those from starts[j] up to starts[j + 1].
            self.starts = self._stored("starts", self.text_key, self._write_token_starts)
            self.tokens = self._stored("tokens", self.text_key, self._write_token_states)
        # What the head reads of the frozen stages, a row for each caption.
        self.pooled_text = np.zeros((len(self.captions), 0), self.dtype)
        if encoder.reads[0] < encoder.frozen:
            self.pooled_text = self._stored("pooled", self.text_key, self._write_pooled_texts)

    def image_batch(self, rows: np.ndarray, views: np.ndarray | None = None) -> Hidden:
        """Rows of images, each in its view (default: plain) -> what the frozen stages give."""
        if views is None:
            views = np.zeros(len(rows), dtype=int)
        if not self.cache:
            encoder = self.model.image_encoder
            images = [self.data.images[row] for row in rows]
            return encoder.trunk(encoder.prepare(images, views.tolist(), rows.tolist()))
        stored = np.stack([self.images[v][row] for v, row in zip(views, rows, strict=True)])
        return self._unpacked(torch.from_numpy(stored).to(self.model.device).float())

    def text_batch(self, rows: np.ndarray) -> tuple[Hidden, Tensor]:
        """Rows of captions -> what the frozen stages give, and mask (B, T).

        The states (B, T, D) are padded with zeros. A tower without frozen stages gives token ids
        (B, T), and a locked one no states at all.
        """
        if not self.cache:
            return self._run_text(rows)
        pooled = torch.from_numpy(self.pooled_text[rows]).to(self.model.device).float()
        if self.model.text_encoder.locked:
            return Hidden(pooled[:, :0], pooled), torch.ones_like(pooled[:, :1]).long()
        lengths = self.starts[rows + 1] - self.starts[rows]
        shape = (len(rows), lengths.max(), *self.tokens.shape[1:])
        hidden = np.zeros(shape, self.tokens.dtype)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            start = self.starts[row]
            hidden[i, :length] = self.tokens[start : start + length]
        counts = np.arange(shape[1]) < lengths[:, None]  # (B, T): does a token count?
        mask = torch.from_numpy(counts).long().to(self.model.device)
        states = torch.from_numpy(hidden).to(self.model.device)
        if states.is_floating_point():
            states = states.float()
        return Hidden(states, pooled), mask

    @torch.inference_mode()
    def teacher_text(self) -> np.ndarray:
        """Return unit vectors (M, D) of the captions, by the last stage that is read as it is."""
        encoder = self.model.text_encoder.eval()
        width = encoder.dim // len(encoder.reads)
        if self.cache and encoder.locked:
            last = torch.from_numpy(self.pooled_text[:, -width:]).float()
            return F.normalize(last, dim=-1).numpy()

        def write(part: Path) -> None:
            out = open_memmap(part, "w+", np.float32, (len(self.captions), width))
            for rows in self._by_length():
                ids, mask = encoder.prepare([self.captions[row] for row in rows])
                last = encoder.pool(encoder.run(ids, mask), mask)
                out[rows] = F.normalize(last, dim=-1).cpu()
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
        """Return what the frozen stages give for all images in one of so many views: (N, ...).

        Each row holds an image's state, flattened, and after it what the head reads.
        """
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
                packed = torch.cat([hidden.state.flatten(1), hidden.pooled], 1)
                if out is None:
                    out = open_memmap(part, "w+", self.dtype, (len(images), packed.shape[1]))
                out[start : rows.stop] = packed.cpu().numpy()
            assert out is not None, "a dataset has at least one image"
            out.flush()

        return self._stored(f"view{view}", key, write, arrays=views)

    def _unpacked(self, rows: Tensor) -> Hidden:
        """Take apart what :meth:`_image_states` has stored."""
        shape = self.model.image_encoder.state_shape
        size = math.prod(shape)
        return Hidden(rows[:, :size].unflatten(1, shape), rows[:, size:])

    def _write_pooled_texts(self, part: Path) -> None:
        """Run the frozen stages on all captions, and write what the head reads of them: (M, R)."""
        batches = tqdm(self._by_length(), f"{self.data.split} captions", disable=not self.progress)
        pooled = ((rows, self._run_text(rows)[0].pooled.cpu().numpy()) for rows in batches)
        self._write_rows(part, pooled)

    def _write_rows(self, part: Path, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write vectors of captions, each batch to its rows: (M, R)."""
        out = None
        for rows, vectors in batches:
            if out is None:
                shape = (len(self.captions), vectors.shape[1])
                out = open_memmap(part, "w+", self.dtype, shape)
            out[rows] = vectors
        assert out is not None, "a dataset has at least one caption"
        out.flush()

    def _write_token_states(self, part: Path) -> None:
        """Write the hidden states of all captions, one after the other: (all tokens, D).

        What the head reads on the way is kept as well, so that the stages run only once.
        """
        out = None
        pooled = []
        title = f"{self.data.split} captions"
        for rows in tqdm(self._by_length(), title, disable=not self.progress):
            hidden, mask = self._run_text(rows)
            pooled.append((rows, hidden.pooled.cpu().numpy().astype(self.dtype)))
            state = hidden.state
            if out is None:
                dtype = self.dtype if state.is_floating_point() else np.int64
                out = open_memmap(part, "w+", dtype, (int(self.starts[-1]), *state.shape[2:]))
            lengths = mask.sum(1).tolist()
            for row, states, length in zip(rows, state.cpu().numpy(), lengths, strict=True):
                start = self.starts[row]
                out[start : start + length] = states[:length]
        assert out is not None, "a dataset has at least one caption"
        out.flush()

        _, first = pooled[0]
        if first.shape[1]:
            self._stored("pooled", self.text_key, lambda part: self._write_rows(part, pooled))

    def _write_token_starts(self, part: Path) -> None:
        """Write where each caption's tokens start, and where the last one's end: (M + 1,)."""
        lengths = np.zeros(len(self.captions), dtype=int)
        encoder = self.model.text_encoder
        for rows in self._by_length():
            _, mask = encoder.prepare([self.captions[row] for row in rows])
            lengths[rows] = mask.sum(1).cpu()
        out = open_memmap(part, "w+", np.int64, (len(lengths) + 1,))
        out[0] = 0
        out[1:] = np.cumsum(lengths)
        out.flush()

    def _run_text(self, rows: np.ndarray) -> tuple[Hidden, Tensor]:
        """Run the frozen stages on rows of captions -> what they give, and mask."""
        encoder = self.model.text_encoder
        ids, mask = encoder.prepare([self.captions[row] for row in rows])
        return encoder.trunk(ids, mask), mask

    def _by_length(self) -> list[np.ndarray]:
        """Return rows of captions in batches of like length, which need little padding."""
        order = np.argsort([len(text) for text in self.captions], kind="stable")
        return np.split(order, range(CAPTIONS_AT_A_TIME, len(order), CAPTIONS_AT_A_TIME))
