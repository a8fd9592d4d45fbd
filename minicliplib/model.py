"""Mini-CLIP: two towers, two projection heads and a logit scale (Radford et al. 2021, figure 3)."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import Config, HeadConfig, no_bar, write_atomically
from .encoders import EncoderError, ImageEncoder, ImageLike, TextEncoder

FORMAT = 1  # of the checkpoint folder: config.json + model.safetensors
SHIPPED = Path(__file__).parent / "assets" / "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or of another shape or version; the message says what to do."""


class ProjectionHead(nn.Module):
    """Maps a tower's features into the shared space: (B, D) -> (B, E); not yet of unit length."""

    def __init__(self, width: int, config: HeadConfig, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)  # of the features
        if config.kind not in ("linear", "mlp"):
            raise ValueError(f"Unknown projection head {config.kind!r}. Known: linear, mlp.")
        self.project = nn.Linear(width, config.dim)
        self.residual = None
        if config.kind == "mlp":
            self.residual = nn.Sequential(nn.GELU(), nn.Linear(config.dim, config.dim), nn.Dropout(config.dropout))
            self.norm = nn.LayerNorm(config.dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        x = self.project(self.dropout(features))
        return x if self.residual is None else self.norm(x + self.residual(x))


class MiniCLIP(nn.Module, PyTorchModelHubMixin):
    """An image tower and a text tower that share one space.

    ``encode_image`` and ``encode_text`` are for users: anything in, unit vectors out. ``forward`` is for
    training: it takes the cached hidden states of the frozen trunks and returns what the loss needs.
    """

    def __init__(self, config: Config | None = None, pretrained: bool = True):
        super().__init__()
        self.config = config or Config()
        enc, heads, dropout = self.config.encoders, self.config.heads, self.config.train.tower_dropout
        if enc.looks not in (1, 2, 4):
            raise ValueError(f"encoders.looks must be 1, 2 or 4, not {enc.looks}.")
        self.image_encoder = ImageEncoder(enc.image, enc.image_trainable, pretrained)
        self.text_encoder = TextEncoder(enc.text, enc.text_trainable, enc.max_tokens, dropout, pretrained)
        for tower in (self.image_encoder, self.text_encoder):
            tower.precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.train.precision)
        self.dim = heads.dim
        self.image_head = ProjectionHead(self.image_encoder.dim, heads, heads.image_dropout)
        self.text_head = ProjectionHead(self.text_encoder.dim, heads)
        scale = torch.tensor(-math.log(self.config.loss.temperature))
        self.logit_scale = nn.Parameter(scale, requires_grad=self.config.loss.learn_temperature)
        self.bound_scale()
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.logit_scale.device

    def forward(self, image_hidden: Tensor, text_hidden: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk outputs of B images and M captions -> unit vectors (B, E), (M, E) and the scale."""
        return self.project_image(image_hidden), self.project_text(text_hidden, text_mask), self.scale()

    def scale(self) -> Tensor:
        """Inverse temperature, at most ``loss.max_scale``."""
        return self.logit_scale.clamp(max=math.log(self.config.loss.max_scale)).exp()

    def bound_scale(self) -> None:
        """Bring the stored scale back to just below its bound (CLIP, section 2.5): above, it has no gradient."""
        self.logit_scale.data.clamp_(max=math.log(self.config.loss.max_scale) - 1e-6)

    def project_image(self, hidden: Tensor) -> Tensor:
        """Trunk output -> unit vectors (B, E) float32."""
        return F.normalize(self.image_head(self.image_encoder.top(hidden)).float(), dim=-1)

    def project_text(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Trunk output (B, T, D) and mask (B, T) -> unit vectors (B, E) float32."""
        return F.normalize(self.text_head(self.text_encoder.top(hidden, mask)).float(), dim=-1)

    @torch.inference_mode()
    def encode_image(
        self,
        images: Sequence[ImageLike] | ImageLike | Tensor,
        batch_size: int = 32,
        progress: bool = False,
        looks: int | None = None,
    ) -> Tensor:
        """Embed n images: paths, PIL images or prepared pixels (n, 3, h, w) -> (n, E) float32, unit length.

        ``looks`` is how many looks at a picture are averaged, 1, 2 or 4 (default: the config's); time grows with it.
        """
        if isinstance(images, ImageLike):
            images = [images]
        out = torch.empty(len(images), self.dim, device=self.device)
        ready = lambda batch: batch.to(self.device) if isinstance(batch, Tensor) else self.image_encoder.prepare(batch)
        starts = range(0, len(images), batch_size)
        batches = _ahead(ready(images[start : start + batch_size]) for start in starts)
        with eval_mode(self):
            for start, pixels in zip(tqdm(starts, "images", disable=no_bar(progress)), batches, strict=True):
                views = _looks(pixels, looks or self.config.encoders.looks)
                vectors = sum(self.project_image(self.image_encoder.trunk(view)) for view in views)
                out[start : start + batch_size] = F.normalize(vectors, dim=-1)
        return out

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str] | str, batch_size: int = 128, progress: bool = False) -> Tensor:
        """Embed n texts -> (n, E) float32, unit length; an empty text is a ``ValueError``."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = torch.empty(len(texts), self.dim, device=self.device)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: less padding
        with eval_mode(self):
            for start in tqdm(range(0, len(texts), batch_size), "texts", disable=no_bar(progress)):
                batch = order[start : start + batch_size]
                ids, mask = self.text_encoder.prepare([texts[i] for i in batch])
                out[batch] = self.project_text(self.text_encoder.trunk(ids, mask), mask)
        return out

    def learned_state(self) -> dict[str, Tensor]:
        """Return what training can change: the heads, the logit scale and the tuned tops, not the trunks."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad or n == "logit_scale"}

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Take over a ``learned_state``; another set of tensors or another shape is a ``CheckpointError``."""
        own = self.learned_state()
        if wrong := sorted(own.keys() ^ state.keys()):
            raise CheckpointError(f"The checkpoint does not fit its config: tensor {wrong[0]!r} has no partner.")
        for name, tensor in state.items():
            if own[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, the model wants {tuple(own[name].shape)}"
                raise CheckpointError(f"The checkpoint does not fit its config: {name!r} is {shapes}.")
            own[name].copy_(tensor)

    def fingerprint(self) -> str:
        """Return eight hex digits that tell models apart whose vectors differ."""
        content = hashlib.sha256(json.dumps(asdict(self.config.encoders)).encode())
        for tensor in self.learned_state().values():
            content.update(tensor.cpu().numpy().tobytes())
        return content.hexdigest()[:8]

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write the checkpoint to a folder, in half precision; a kill never leaves half a checkpoint."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "config": self.config.to_dict()}
        tensors = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in self.learned_state().items()}
        write_atomically(folder / "config.json", lambda path: path.write_text(json.dumps(record, indent=1)))
        write_atomically(folder / "model.safetensors", lambda path: save_file(tensors, path))
        return folder

    _save_pretrained = save  # what PyTorchModelHubMixin.save_pretrained and push_to_hub call

    @classmethod
    def _from_pretrained(cls, *, model_id, revision, cache_dir, force_download, local_files_only, token, **_):
        """Serve ``MiniCLIP.from_pretrained``: a local folder or a hub id."""
        if Path(model_id).is_dir():
            return load(model_id)
        options = {"revision": revision, "cache_dir": cache_dir, "token": token}
        return load(_fetch(model_id, force_download=force_download, local_files_only=local_files_only, **options))


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


def _ahead(batches: Iterator) -> Iterator:
    """Yield the batches, each next one in the making meanwhile: decoding overlaps with the tower."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _looks(pixels: Tensor, count: int) -> list[Tensor]:
    """Return pictures (n, 3, h, w) as they are, mirrored, and the middle 85% of their sides, both ways."""
    if count <= 2:
        return [pixels, pixels.flip(-1)][:count]
    edge = round(0.075 * pixels.shape[-1])
    middle = F.interpolate(pixels[..., edge:-edge, edge:-edge], pixels.shape[-2:], mode="bicubic", align_corners=False)
    return [pixels, pixels.flip(-1), middle, middle.flip(-1)]


def best_device() -> str:
    """Return the fastest kind of device that torch finds here: "cuda", "mps" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load(name: str | Path, device: str | torch.device | None = None) -> MiniCLIP:
    """Load a model by the name of a shipped checkpoint, a run or checkpoint folder, or a hub id.

    It goes to ``device`` (default: the best one there is).

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged, or of another shape or version.

    """
    shipped = sorted(path.name for path in SHIPPED.iterdir()) if SHIPPED.exists() else []
    folder = SHIPPED / name if str(name) in shipped else Path(name)
    if not folder.is_dir() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
        folder = _fetch(str(name))
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no checkpoint {str(name)!r}: name one of the shipped ({', '.join(shipped)}), "
            "a folder with config.json and model.safetensors, or a hub id like 'user/model'."
        )
    try:
        record = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        if record["format"] != FORMAT:
            versions = f"format {record['format']}, this version of minicliplib reads format {FORMAT}"
            raise CheckpointError(f"{folder} has checkpoint {versions}: install the one that wrote it, or train again.")
        model = MiniCLIP(Config.from_dict(record["config"]))
    except (CheckpointError, EncoderError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({type(error).__name__}: {error}).") from error
    model.load_learned_state(tensors)
    return model.to(device or best_device())


def _fetch(name: str, **options) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"], **options))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise CheckpointError(f"{name!r} is neither a folder here nor could the hub give it ({reason}).") from error
