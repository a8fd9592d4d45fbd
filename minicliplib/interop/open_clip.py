"""A Mini-CLIP in open_clip's calling convention: tools written for open_clip's models take it as it is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import transforms

from ..model import MiniCLIP


class OpenCLIP(nn.Module):
    """Gives the vectors of ``MiniCLIP.encode_image`` and ``encode_text``, of length 1 whatever ``normalize`` says."""

    def __init__(self, model: MiniCLIP):
        super().__init__()
        self.model, self.logit_scale = (
            model,
            model.logit_scale,
        )  # the scale's logarithm, as in open_clip
        self.eval()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Pixels (B, 3, h, w) -> (B, E), averaged over the config's looks."""
        return self.model.encode_image(image)

    @torch.inference_mode()
    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, T), padded -> (B, E)."""
        mask = (text != self.model.text_encoder.tokenizer.pad_token_id).long()
        used = mask.any(0)
        text, mask = text[:, used], mask[:, used]
        return self.model.project_text(self.model.text_encoder.trunk(text, mask), mask)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (B, 3, h, w) and token ids (M, T) -> (B, E), (M, E) and the scale."""
        return self.encode_image(image), self.encode_text(text), self.model.scale()


def as_open_clip(model: MiniCLIP) -> tuple[OpenCLIP, Callable, Callable]:
    """Return model, transform (PIL -> (3, size, size)) and tokenizer (texts -> (n, T)) as open_clip has them."""
    image, text = model.image_encoder, model.text_encoder
    normalise = transforms.Normalize(image.mean.flatten().tolist(), image.std.flatten().tolist())
    transform = transforms.Compose([image.square, transforms.ToTensor(), normalise])
    tokenizer = lambda texts: text.prepare(
        [texts] if isinstance(texts, str) else texts, "max_length"
    )[0].cpu()
    return OpenCLIP(model), transform, tokenizer
