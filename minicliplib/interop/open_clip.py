"""A Mini-CLIP in open_clip's calling convention, for tools that were written for open_clip."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision import transforms

from ..model import MiniCLIP


class OpenCLIP(nn.Module):
    """A Mini-CLIP that is called like a model of open_clip.

    The vectors are those of ``MiniCLIP.encode_image`` and ``encode_text``. They always have length
    1, whatever ``normalize`` says.
    """

    def __init__(self, model: MiniCLIP):
        super().__init__()
        self.model = model
        self.logit_scale = model.logit_scale  # the scale's logarithm, as in open_clip
        self.eval()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Pixels (B, 3, h, w) -> (B, E), averaged over the config's test-time views."""
        return self.model.encode_image(image)

    @torch.inference_mode()
    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, T), padded -> (B, E)."""
        encoder = self.model.text_encoder
        mask = (text != encoder.tokenizer.pad_token_id).long()
        # Columns that are padding in every text cost time and change nothing.
        used = mask.any(0)
        text = text[:, used]
        mask = mask[:, used]
        return self.model.project_text(encoder.trunk(text, mask), mask)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, h, w) and token ids (M, T) -> (B, E), (M, E) and the scale."""
        return self.encode_image(image), self.encode_text(text), self.model.scale()


def as_open_clip(model: MiniCLIP) -> tuple[OpenCLIP, Callable, Callable]:
    """Return model, transform and tokenizer as open_clip's factories give them.

    The transform turns a PIL image into pixels (3, size, size), the tokenizer turns texts into
    token ids (n, T).
    """
    image_encoder = model.image_encoder
    normalise = transforms.Normalize(
        image_encoder.mean.flatten().tolist(), image_encoder.std.flatten().tolist()
    )
    transform = transforms.Compose([image_encoder.square, transforms.ToTensor(), normalise])

    def tokenizer(texts: Sequence[str] | str) -> Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        ids, _ = model.text_encoder.prepare(texts, "max_length")
        return ids.cpu()

    return OpenCLIP(model), transform, tokenizer
