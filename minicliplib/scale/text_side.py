"""The half of a model that reads sentences: enough to search an index, and quicker to load."""

from typing import Any

import torch
from torch import Tensor, nn

from ..encoders import TextEncoder
from ..interop.checkpoint import read_checkpoint
from ..model import (
    MiniCLIP,
    ProjectionHead,
    best_device,
    fingerprint_of,
    load,
    precision_of,
)


class TextSide(nn.Module):
    """The text tower and its head, of a checkpoint by name, folder or hub id.

    ``encode_text`` and ``fingerprint`` are those of the whole model. Neither the image tower nor
    the library that it comes from is loaded.
    """

    encode_text = MiniCLIP.encode_text
    project_text = MiniCLIP.project_text

    def __init__(self, name: str):
        super().__init__()
        config, state, _ = read_checkpoint(name)
        self.identity = fingerprint_of(config, state)
        encoders = config.encoders
        self.text_encoder = TextEncoder(
            encoders.text, encoders.text_trainable, encoders.text_reads, encoders.max_tokens
        )
        self.text_encoder.precision = precision_of(encoders.precision)
        self.text_head = ProjectionHead(self.text_encoder.dim, config.heads)
        self.dim = config.heads.dim
        own = {name: tensor for name, tensor in state.items() if name.startswith("text_")}
        self.load_state_dict(own, strict=False)
        self.to(best_device()).eval()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def fingerprint(self) -> str:
        """Return what tells the whole model from others."""
        return self.identity


class QuickModel(TextSide):
    """A model whose image side is loaded when the first image is to be embedded.

    A search in photos that are indexed already needs the text side alone, which loads in half the
    time.
    """

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name
        self._whole: list[MiniCLIP] = []  # a list, so that it is no part of this module

    @property
    def whole(self) -> MiniCLIP:
        """The whole model."""
        if not self._whole:
            self._whole.append(load(self.name))
        return self._whole[0]

    def encode_image(self, *args: Any, **options: Any) -> Tensor:
        """Embed images, as the whole model does."""
        return self.whole.encode_image(*args, **options)
