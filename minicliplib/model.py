"""Mini-CLIP: two towers, two projection heads and a logit scale (Radford et al. 2021, figure 3)."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import Config, EncoderConfig, HeadConfig
from .datasets.views import prefetch
from .encoders import Hidden, ImageEncoder, ImageLike, TextEncoder, check_texts
from .paths import show_bars

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another shape or version; it says what to do."""


class ProjectionHead(nn.Module):
    """Maps a tower's features into the shared space: (B, D) -> (B, E); not yet of unit length."""

    def __init__(self, width: int, config: HeadConfig, feature_dropout: float = 0.0):
        super().__init__()
        if config.kind not in ("linear", "mlp"):
            raise ValueError(f"Unknown projection head {config.kind!r}. Known: linear, mlp.")
        self.dropout = nn.Dropout(feature_dropout)
        self.project = nn.Linear(width, config.dim)
        self.residual = None
        if config.kind == "mlp":
            self.residual = nn.Sequential(
                nn.GELU(), nn.Linear(config.dim, config.dim), nn.Dropout(config.dropout)
            )
            self.norm = nn.LayerNorm(config.dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        x = self.project(self.dropout(features))
        if self.residual is None:
            return x
        return self.norm(x + self.residual(x))


def image_tower(encoders: EncoderConfig, pretrained: bool = True) -> ImageEncoder:
    """Build the image tower of these settings: one tower, or several joined by a plus."""
    kind = ImageEncoder
    if "+" in encoders.image and not Path(encoders.image).is_dir():
        from .interop.side_by_side import SideBySide

        kind = SideBySide
    return kind(encoders.image, encoders.image_trainable, encoders.image_reads, pretrained)


class MiniCLIP(nn.Module, PyTorchModelHubMixin):
    """An image tower and a text tower that share one space.

    ``encode_image`` and ``encode_text`` are for users: anything in, unit vectors out. ``forward``
    is for training: it takes the cached outputs of the frozen stages and returns what the loss
    needs.
    """

    def __init__(self, config: Config | None = None, pretrained: bool = True):
        super().__init__()
        self.config = config or Config()
        self.facts: dict[str, Any] = {}  # what was measured with it, for the model card
        encoders = self.config.encoders
        heads = self.config.heads
        _tta_views_checked(self.config.inference.tta_views)
        precision = precision_of(encoders.precision)

        # Two towers ...
        self.image_encoder = image_tower(encoders, pretrained)
        self.text_encoder = TextEncoder(
            encoders.text,
            encoders.text_trainable,
            encoders.text_reads,
            encoders.max_tokens,
            encoders.text_dropout,
            pretrained,
        )
        self.run_in(precision)

        # ... a projection head on each ...
        self.dim = heads.dim
        self.image_head = ProjectionHead(self.image_encoder.dim, heads, heads.image_dropout)
        self.text_head = ProjectionHead(self.text_encoder.dim, heads, heads.text_dropout)

        # ... and one number that scales the cosines, kept as its logarithm.
        log_scale = torch.tensor(-math.log(heads.temperature))
        self.logit_scale = nn.Parameter(log_scale, requires_grad=heads.learn_temperature)
        self.bound_scale()
        self.eval()

    def run_in(self, precision: torch.dtype | None) -> None:
        """Let both towers run in mixed precision, or in float32 (None)."""
        self.image_encoder.precision = precision
        self.text_encoder.precision = precision

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.logit_scale.device

    def forward(
        self, image_hidden: Hidden, text_hidden: Hidden, text_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk outputs of B images and M captions -> unit vectors (B, E), (M, E), the scale."""
        image_vectors = self.project_image(image_hidden)
        text_vectors = self.project_text(text_hidden, text_mask)
        return image_vectors, text_vectors, self.scale()

    def scale(self) -> Tensor:
        """Inverse temperature, at most ``heads.max_scale``."""
        return self.logit_scale.clamp(max=math.log(self.config.heads.max_scale)).exp()

    def bound_scale(self) -> None:
        """Bring the stored scale back below its bound (CLIP, section 2.5).

        Above the bound it would have no gradient, and never come back.
        """
        self.logit_scale.data.clamp_(max=math.log(self.config.heads.max_scale) - 1e-6)

    def project_image(self, hidden: Hidden) -> Tensor:
        """Trunk output of B images -> unit vectors (B, E) float32."""
        return F.normalize(self.image_head(self.image_encoder.top(hidden)).float(), dim=-1)

    def project_text(self, hidden: Hidden, mask: Tensor) -> Tensor:
        """Trunk output of B captions and mask (B, T) -> unit vectors (B, E) float32."""
        return F.normalize(self.text_head(self.text_encoder.top(hidden, mask)).float(), dim=-1)

    @torch.inference_mode()
    def encode_image(
        self,
        images: Sequence[ImageLike] | ImageLike | Tensor,
        batch_size: int = 32,
        progress: bool = False,
        tta_views: int | None = None,
    ) -> Tensor:
        """Embed n images: (n, E) float32, unit length.

        Args:
            images: paths, PIL images, or prepared pixels (n, 3, h, w).
            batch_size: how many run at once.
            progress: show a progress bar.
            tta_views: how many views of an image are averaged, 1, 2 or 4 (default: the config's);
                time grows with it.

        """
        if isinstance(images, ImageLike):
            images = [images]
        count = self.config.inference.tta_views if tta_views is None else tta_views
        views = _tta_views_checked(count)
        starts = range(0, len(images), batch_size)
        # The next batch is decoded while the tower runs on this one.
        batches = prefetch(self._to_pixels(images[i : i + batch_size]) for i in starts)
        vectors = torch.empty(len(images), self.dim, device=self.device)
        with eval_mode(self):
            bar = tqdm(starts, "images", disable=not show_bars(progress))
            for start, pixels in zip(bar, batches, strict=True):
                total = torch.zeros(len(pixels), self.dim, device=self.device)
                for view in _views_of(pixels, views):
                    total += self.project_image(self.image_encoder.trunk(view))
                vectors[start : start + batch_size] = F.normalize(total, dim=-1)
        return vectors

    def _to_pixels(self, images: Sequence[ImageLike] | Tensor) -> Tensor:
        if isinstance(images, Tensor):
            return images.to(self.device)
        return self.image_encoder.prepare(images)

    @torch.inference_mode()
    def encode_text(
        self, texts: Sequence[str] | str, batch_size: int = 128, progress: bool = False
    ) -> Tensor:
        """Embed n texts: (n, E) float32, unit length; an empty text is a ``ValueError``."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        vectors = torch.empty(len(texts), self.dim, device=self.device)
        # Texts of like length run together, which saves padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        starts = range(0, len(texts), batch_size)
        with eval_mode(self):
            for start in tqdm(starts, "texts", disable=not show_bars(progress)):
                batch = order[start : start + batch_size]
                ids, mask = self.text_encoder.prepare([texts[i] for i in batch])
                vectors[batch] = self.project_text(self.text_encoder.trunk(ids, mask), mask)
        return vectors

    def learned_state(self) -> dict[str, Tensor]:
        """Return what training can change: heads, logit scale and tuned stages, not the trunks."""
        state = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad or name == "logit_scale":
                state[name] = parameter.detach()
        return state

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Take over a ``learned_state``; another set of tensors is a ``CheckpointError``."""
        own = self.learned_state()
        problem = "The checkpoint does not fit its config"
        if wrong := sorted(own.keys() ^ state.keys()):
            raise CheckpointError(f"{problem}: the tensor {wrong[0]!r} has no partner.")
        for name, tensor in state.items():
            given = tuple(tensor.shape)
            wanted = tuple(own[name].shape)
            if given != wanted:
                raise CheckpointError(f"{problem}: {name!r} is {given}, the model wants {wanted}.")
            own[name].copy_(tensor)

    def fingerprint(self) -> str:
        """Return eight hex digits that tell models apart whose vectors differ."""
        return fingerprint_of(self.config, self.learned_state())

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write the checkpoint and its model card; an interruption never leaves half a file."""
        from .interop.checkpoint import write_checkpoint

        tensors = {name: tensor.to(dtype) for name, tensor in self.learned_state().items()}
        write_checkpoint(Path(folder), self.config, tensors, self.facts)
        return Path(folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Serve ``save_pretrained`` and ``push_to_hub``."""
        self.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "MiniCLIP":
        """Serve ``MiniCLIP.from_pretrained``: a local folder or a hub id."""
        from .interop.checkpoint import fetch_checkpoint

        folder = Path(model_id)
        return load(folder if folder.is_dir() else fetch_checkpoint(model_id, **options))


def fingerprint_of(config: Config, state: dict[str, Tensor]) -> str:
    """Return the fingerprint of the model with these settings and this ``learned_state``."""
    encoders = asdict(config.encoders)
    for name in ("image_reads", "text_reads"):
        if encoders[name] == "last":  # as in every model of version 0.2
            del encoders[name]
    settings = [encoders, asdict(config.inference)]
    content = hashlib.sha256(json.dumps(settings).encode())
    for name in sorted(state):
        content.update(state[name].float().cpu().numpy().tobytes())
    return content.hexdigest()[:8]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module's own mode is given back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def precision_of(name: str) -> torch.dtype | None:
    """Return the type of mixed precision by its name in ``encoders.precision``."""
    if name not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"encoders.precision must be one of {known}, not {name!r}.")
    return PRECISIONS[name]


def _tta_views_checked(count: int) -> int:
    if count not in (1, 2, 4):
        raise ValueError(f"inference.tta_views must be 1, 2 or 4, not {count}.")
    return count


def _views_of(pixels: Tensor, count: int) -> list[Tensor]:
    """Return pixels (n, 3, h, w) plain, mirrored, and the same of the middle 85% of their sides."""
    if count <= 2:
        return [pixels, pixels.flip(-1)][:count]
    edge = round(0.075 * pixels.shape[-1])
    middle = F.interpolate(
        pixels[..., edge:-edge, edge:-edge], pixels.shape[-2:], mode="bicubic", align_corners=False
    )
    return [pixels, pixels.flip(-1), middle, middle.flip(-1)]


def best_device() -> str:
    """Return the fastest kind of device that torch finds here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(name: str | Path, device: str | torch.device | None = None) -> MiniCLIP:
    """Load a model by the name of a shipped checkpoint, a run or checkpoint folder, or a hub id.

    It goes to ``device`` (default: the best one there is).

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged, or of another version.

    """
    from .interop.checkpoint import read_checkpoint

    config, tensors, facts = read_checkpoint(name)
    model = MiniCLIP(config)
    model.load_learned_state(tensors)
    model.facts = facts
    return model.to(device or best_device())
