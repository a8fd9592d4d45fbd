"""Contrastive losses on unit vectors.

Everywhere: ``image`` (B, E) and ``text`` (M, E) are unit vectors, ``scale`` is the logit scale, and
``image_of_caption`` (M,) says to which of the B images each of the M captions belongs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

from .config import LossConfig


def infonce(image: Tensor, text: Tensor, scale: Tensor, image_of_caption: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, figure 3): cross-entropy over rows and over columns, averaged.

    A model that has learned nothing has a loss of about ln(B); collapsed vectors give exactly that.
    """
    if len(image_of_caption) != len(image):
        raise ValueError(
            "InfoNCE takes one caption for each image: for more, use multi_positive or sigmoid."
        )
    logits = scale * image @ text.T  # (B, B)
    targets = image_of_caption
    if not torch.equal(targets, torch.arange(len(logits), device=logits.device)):
        raise ValueError("InfoNCE takes the captions in the order of their images.")
    image_to_text = F.cross_entropy(logits, targets)
    text_to_image = F.cross_entropy(logits.T, targets)
    return (image_to_text + text_to_image) / 2


def multi_positive(image: Tensor, text: Tensor, scale: Tensor, image_of_caption: Tensor) -> Tensor:
    """InfoNCE with all captions of an image as its positives.

    An image's loss is the mean over its captions of the cross-entropy against the captions of
    *other* images, so that two captions of one image never push each other away (SupCon's L_out,
    Khosla et al. 2020, eq. 2). With one caption for each image it equals :func:`infonce`.
    """
    logits = scale * image @ text.T  # (B, M)
    positive = _matches(image, image_of_caption)
    # -log of exp(own) / (exp(own) + the sum over the captions of other images)
    others = logits.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
    losses = F.softplus(others - logits)  # (B, M)
    image_to_text = (losses * positive).sum(1) / positive.sum(1).clamp(min=1)
    text_to_image = F.cross_entropy(logits.T, image_of_caption)
    return (image_to_text.mean() + text_to_image) / 2


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, image_of_caption: Tensor) -> Tensor:
    """Pairwise sigmoid loss, summed over pairs and divided by B (SigLIP, Zhai et al. 2023, eq. 1).

    SigLIP learns a bias that starts at -10. Here the bias is -ln(M - 1): before any learning, one
    caption in M is expected to match.
    """
    bias = -math.log(max(len(text) - 1, 1))
    logits = scale * image @ text.T + bias  # (B, M)
    positive = _matches(image, image_of_caption)
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(image)


def max_margin(
    image: Tensor, text: Tensor, scale: Tensor, image_of_caption: Tensor, margin: float = 0.2
) -> Tensor:
    """Hinge loss against the hardest wrong caption and the hardest wrong image.

    The mean over captions (VSE++, Faghri et al. 2018, eq. 6); it does not use the logit scale.
    """
    cosines = image @ text.T  # (B, M)
    captions = torch.arange(len(text), device=cosines.device)
    matching = cosines[image_of_caption, captions]  # (M,)
    wrong = cosines.masked_fill(_matches(image, image_of_caption), -torch.inf)
    hardest_caption = wrong.amax(1)[image_of_caption]  # (M,)
    hardest_image = wrong.amax(0)  # (M,)
    losses = F.relu(margin + torch.stack([hardest_caption, hardest_image]) - matching)
    # Several processes wait for a gradient of every parameter: the scale gets 0.
    return losses.sum(0).mean() + 0 * scale


LOSSES = {
    "infonce": infonce,
    "multi_positive": multi_positive,
    "sigmoid": sigmoid,
    "max_margin": max_margin,
}


def soft_targets(
    image: Tensor, text: Tensor, scale: Tensor, image_of_caption: Tensor, likeness: Tensor
) -> Tensor:
    """Cross-entropy in both directions, with targets spread over all captions that are similar.

    ``likeness`` (M, M) holds logits of how alike the captions are; an image stands for the mean
    over its captions. So for a photo of a running dog, the caption of another running dog is less
    wrong than one of a bride (after SoftCLIP, Gao et al. 2024).
    """
    own = _matches(image, image_of_caption).T.to(likeness)  # (M, B)
    own = own / own.sum(0).clamp(min=1)
    logits = scale * image @ text.T  # (B, M)
    image_to_text = F.cross_entropy(logits, (own.T @ likeness).softmax(1))
    text_to_image = F.cross_entropy(logits.T, (likeness @ own).softmax(1))
    return (image_to_text + text_to_image) / 2


def contrastive_loss(
    name: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    image_of_caption: Tensor | None = None,
    teacher_text: Tensor | None = None,
    soft: float = 0.0,
    soft_temperature: float = 0.1,
) -> Tensor:
    """Compute a loss by name over the batch; under several processes, over all their batches.

    With ``teacher_text``, (M, D) unit vectors of the captions by the pretrained text tower, the
    share ``soft`` of the loss is :func:`soft_targets`.

    Raises:
        ValueError: the name is unknown, sizes disagree, or there are captions of fewer than two
            images, so that there is no wrong answer, or ``soft`` lacks its ``teacher_text``.

    """
    if name not in LOSSES:
        raise ValueError(f"Unknown loss {name!r}. Known: {', '.join(LOSSES)}.")
    if image_of_caption is None:
        image_of_caption = torch.arange(len(image), device=image.device)
    if len(text) != len(image_of_caption):
        named = len(image_of_caption)
        raise ValueError(
            f"There are {len(text)} captions, but image_of_caption says of {named} to which image "
            "they belong."
        )
    if soft and teacher_text is None:
        raise ValueError("Soft targets need teacher_text, the teacher's vectors of the captions.")
    if dist.is_available() and dist.is_initialized():
        from .scale.processes import gather_with_gradient

        image, text, image_of_caption, teacher_text = gather_with_gradient(
            image, text, image_of_caption, teacher_text
        )
    if len(image_of_caption.unique()) < 2:
        raise ValueError("A contrastive loss needs captions of two images or more, not of one.")

    loss = LOSSES[name](image, text, scale, image_of_caption)
    if teacher_text is None or not soft:
        return loss
    likeness = teacher_text @ teacher_text.T / soft_temperature
    softened = soft_targets(image, text, scale, image_of_caption, likeness)
    return (1 - soft) * loss + soft * softened


def config_loss(
    settings: LossConfig,
    vectors: tuple[Tensor, Tensor, Tensor],
    image_of_caption: Tensor,
    teacher_text: Tensor | None = None,
) -> Tensor:
    """Compute the loss of these settings from what a model returns: images, texts, the scale."""
    image, text, scale = vectors
    return contrastive_loss(
        settings.name,
        image,
        text,
        scale,
        image_of_caption,
        teacher_text,
        settings.soft,
        settings.soft_temperature,
    )


def _matches(image: Tensor, image_of_caption: Tensor) -> Tensor:
    """Which caption belongs to which image: (B, M) booleans."""
    return image_of_caption == torch.arange(len(image), device=image.device)[:, None]
