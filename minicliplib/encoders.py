"""The two towers: pretrained encoders as lists of stages.

*An encoder is a list of stages; the first ``frozen`` ones run once and are cached, the rest train;
the head reads the pooled output of one stage or of several.* Locked towers (LiT, Zhai et al. 2022)
freeze every stage, full fine-tuning freezes none, and any number in between works too. Frozen means
frozen: no gradient, eval mode, batch-norm statistics fixed.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .datasets.views import square_view

if TYPE_CHECKING:
    from .interop.pretrained import Stage


ImageLike = str | Path | Image.Image


class Hidden(NamedTuple):
    """What the frozen stages of a tower give for B inputs; this is what we cache.

    ``state`` (B, ...) goes on into the trainable stages; of a locked tower it is empty, (B, 0).
    ``pooled`` (B, R) is what the head reads of the frozen stages; R is 0 where it reads none.
    """

    state: Tensor
    pooled: Tensor

    def rows(self, which: slice | Tensor) -> "Hidden":
        """Return some of the B inputs."""
        return Hidden(self.state[which], self.pooled[which])


class Encoder(nn.Module):
    """A pretrained model cut into ``stages``, a list of ``(name, steps)``; the base of both towers.

    The first ``frozen`` stages are the trunk, the others are the trainable top. ``reads`` are the
    numbers of the stages whose pooled outputs the head reads, side by side: ``dim`` numbers in all.
    """

    model: Any  # a model of timm or transformers
    # The type in which autocast runs the stages, or None. They always return float32.
    precision: torch.dtype | None = None

    dim: int

    def __init__(self, model: nn.Module, stages: list["Stage"], trainable: int, reads: str):
        super().__init__()
        self.reads = stage_numbers(stages, reads)
        # The stages after the last one that is read never run.
        unread = stages[self.reads[-1] + 1 :]
        stages = stages[: self.reads[-1] + 1]
        if not -1 <= trainable <= len(stages):
            names = ", ".join(name for name, _ in stages)
            raise ValueError(
                f"The number of trainable stages must be -1 (all) to {len(stages)}, "
                f"not {trainable}. Stages: {names}."
            )
        self.model = model
        self.stages = stages
        self.frozen = 0 if trainable == -1 else len(stages) - trainable

        # What belongs to no stage, such as a position embedding, freezes with the first one.
        model.requires_grad_(self.frozen == 0)
        for module in modules_of(stages[self.frozen :]):
            module.requires_grad_(True)
        for module in modules_of(unread):
            module.requires_grad_(False)
        self.train(False)

    @property
    def locked(self) -> bool:
        """Whether every stage is frozen (LiT)."""
        return self.frozen == len(self.stages)

    def modules_from(self, start: int) -> list[nn.Module]:
        """Return the modules of the stages from ``start`` on."""
        return modules_of(self.stages[start:])

    def train(self, mode: bool = True) -> "Encoder":
        """Set train mode on the trainable top only; batch-norm statistics never change."""
        super().train(False)
        for module in self.modules_from(self.frozen):
            module.train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        self.training = mode
        return self

    def run(
        self, x: Tensor, mask: Tensor | None = None, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Run stages ``start`` to ``stop``: input (B, ...) or hidden state -> hidden state."""
        autocast = torch.autocast(x.device.type, self.precision) if self.precision else None
        with autocast or nullcontext():
            x = self._run_stages(x, mask, start, len(self.stages) if stop is None else stop)
        return x.float() if x.is_floating_point() else x

    def _run_stages(self, x: Tensor, mask: Tensor | None, start: int, stop: int) -> Tensor:
        for _, steps in self.stages[start:stop]:
            for step in steps:
                x = self._step(step, x, mask)
        return x

    def run_and_keep(
        self, x: Tensor, mask: Tensor | None = None, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run stages ``start`` to ``stop`` -> hidden state, and that after each stage read."""
        kept = []
        stop = len(self.stages) if stop is None else stop
        for stage in self.reads:
            if start <= stage < stop:
                x = self.run(x, mask, start, stage + 1)
                kept.append(x)
                start = stage + 1
        return self.run(x, mask, start, stop), kept

    @torch.no_grad()
    def trunk(self, x: Tensor, mask: Tensor | None = None) -> Hidden:
        """Run the frozen stages, without a gradient: input (B, ...) -> what we cache."""
        state, kept = self.run_and_keep(x, mask, 0, self.frozen)
        pooled = [self.pool(hidden, mask) for hidden in kept]
        nothing = torch.zeros(len(x), 0, device=x.device)
        return Hidden(nothing if self.locked else state, torch.cat([nothing, *pooled], 1))

    def top(self, hidden: Hidden, mask: Tensor | None = None) -> Tensor:
        """Run the trainable stages: what the trunk gave -> all that the head reads (B, dim)."""
        _, kept = self.run_and_keep(hidden.state, mask, self.frozen)
        return torch.cat([hidden.pooled, *(self.pool(state, mask) for state in kept)], 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Input (B, ...) -> all that the head reads (B, dim)."""
        return self.top(self.trunk(x, mask), mask)

    def _step(self, step: Callable, x: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def pool(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool the hidden state after any stage: (B, ...) -> one vector each."""
        raise NotImplementedError


def modules_of(stages: list["Stage"]) -> list[nn.Module]:
    """Return the modules among the steps of some stages."""
    modules = []
    for _, steps in stages:
        modules += [step for step in steps if isinstance(step, nn.Module)]
    return modules


def stage_numbers(stages: list["Stage"], reads: str) -> list[int]:
    """Return the numbers of the stages that ``reads`` names, such as "layer3+last", ascending."""
    names = [name for name, _ in stages]
    numbers = set()
    for read in reads.split("+"):
        if read == "last":
            numbers.add(len(names) - 1)
        elif read in names:
            numbers.add(names.index(read))
        else:
            known = ", ".join(names)
            raise ValueError(f"There is no stage {read!r} to read. Stages: {known}, or last.")
    return sorted(numbers)


class ImageEncoder(Encoder):
    """A timm model as stages: a stem, one per residual or transformer block, a final layer."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "efficientnet_lite0",
        trainable: int = 0,
        reads: str = "last",
        pretrained: bool = True,
    ):
        from .interop.pretrained import load_image_model

        model, stages, settings = load_image_model(name, pretrained)
        super().__init__(model, stages, trainable, reads)

        # The size and the normalisation that the model was pretrained with.
        self.size: int = settings["input_size"][-1]
        for statistic in ("mean", "std"):
            values = torch.tensor(settings[statistic]).view(1, 3, 1, 1)
            self.register_buffer(statistic, values, persistent=False)
        self.to(memory_format=torch.channels_last)  # about 1.5 times faster on a CPU

        if reads == "last":
            self.dim = model.head_hidden_size
        else:
            with torch.no_grad():
                self.dim = self(self._empty_image()).shape[1]

    @cached_property
    def state_shape(self) -> torch.Size:
        """The shape of what goes on from the trunk for one image."""
        return self.trunk(self._empty_image()).state.shape[1:]

    def _empty_image(self) -> Tensor:
        return torch.zeros(1, 3, self.size, self.size, device=self.mean.device)

    def _step(self, step: Callable, x: Tensor, mask: Tensor | None) -> Tensor:
        return step(x)

    def pool(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool as in pretraining (mean over positions, or class token): hidden -> (B, dim)."""
        return self.model.forward_head(hidden, pre_logits=True)

    def prepare(
        self,
        images: Sequence[ImageLike],
        views: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Decode, resize and normalise: n images -> (n, 3, size, size) float32, on the device.

        The whole image is squeezed to a square: a caption may speak of its edges, which a centre
        crop would cut away. View 0 of an image is plain, 1 is mirrored, and any other is a random
        crop, which its seed repeats.
        """
        plain = [0] * len(images)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            squares = list(pool.map(self.square, images, views or plain, seeds or plain))
        stacked = np.stack([np.asarray(square) for square in squares])
        pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2)  # (n, 3, size, size)
        return pixels.to(self.mean.device).float().div_(255).sub_(self.mean).div_(self.std)

    def square(self, image: ImageLike, view: int = 0, seed: int = 0) -> Image.Image:
        """Decode and resize: one image in its view -> an RGB image of size x size."""
        return square_view(image, self.size, view, seed)


def check_texts(texts: Sequence[str]) -> None:
    """Refuse a text without a word."""
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"Text {i} is empty: each text needs at least one word.")


class TextEncoder(Encoder):
    """A transformers model as stages: embeddings, then one per layer; mean pooling over tokens."""

    def __init__(
        self,
        name: str = "minilm",
        trainable: int = 0,
        reads: str = "last",
        max_tokens: int = 40,
        dropout: float = 0.0,
        pretrained: bool = True,
    ):
        from .interop.pretrained import load_text_model

        model, stages, tokenizer = load_text_model(name, dropout, pretrained)
        super().__init__(model, stages, trainable, reads)
        self.dim = model.config.hidden_size * len(self.reads)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

        # The pooler plays no part here, and several processes would wait for its gradient.
        if getattr(model, "pooler", None) is not None:
            model.pooler.requires_grad_(False)

    def _step(self, step: Callable, x: Tensor, mask: Tensor | None) -> Tensor:
        # A family that is not cut into stages runs as a whole.
        if step is self.model:
            return step(input_ids=x, attention_mask=mask).last_hidden_state
        # The first stage turns token ids into embeddings.
        if not x.is_floating_point():
            return step(x)
        # A layer adds a very low number to the scores of the tokens that do not count.
        assert mask is not None, "a text layer needs a mask"
        lowest = torch.finfo(x.dtype).min
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * lowest  # (B, 1, 1, T)
        out = step(x, attention_mask=bias)
        return out[0] if isinstance(out, tuple) else out

    def top(self, hidden: Hidden, mask: Tensor | None = None) -> Tensor:
        """Run the trainable stages: states (B, T, D) and mask (B, T) -> all read (B, dim).

        Captions of like length run together, which saves half of the padding.
        """
        if self.locked:
            return hidden.pooled
        assert mask is not None, "a text tower needs a mask"
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = (mask * positions).amax(1)  # up to the last token that counts
        groups = lengths.argsort().chunk(4)
        pooled = []
        for rows in groups:
            longest = int(lengths[rows].max())
            shorter = Hidden(hidden.state[rows, :longest], hidden.pooled[rows])
            pooled.append(super().top(shorter, mask[rows, :longest]))
        back_in_order = torch.cat(groups).argsort()
        return torch.cat(pooled)[back_in_order]

    def pool(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average the tokens that count: (B, T, D) and mask (B, T) -> (B, D)."""
        assert mask is not None, "a text tower needs a mask"
        weights = mask.to(hidden.dtype).unsqueeze(-1)  # (B, T, 1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    def prepare(self, texts: Sequence[str], padding: bool | str = True) -> tuple[Tensor, Tensor]:
        """Tokenize: n texts -> ids and mask, both (n, T).

        With ``padding=True`` T is the longest of these texts, with ``"max_length"`` it is always
        ``max_tokens``.
        """
        check_texts(texts)
        batch = self.tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(next(self.parameters()).device)
        return batch["input_ids"], batch["attention_mask"]
