"""Contrastive losses on unit vectors: (B, E) images, (M, E) captions, and ``owner[j]``, the image row of caption j."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist


def _matches(image: Tensor, owner: Tensor) -> Tensor:
    """Which caption belongs to which image: (B, M) booleans."""
    return owner == torch.arange(len(image), device=image.device)[:, None]


def infonce(image: Tensor, text: Tensor, scale: Tensor, owner: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP, figure 3): cross-entropy over rows and over columns, averaged.

    No learning gives ln(B): collapsed embeddings exactly so.
    """
    if len(owner) != len(image):
        raise ValueError("InfoNCE takes one caption per image; use the multi_positive or sigmoid loss for more.")
    logits = scale * image @ text.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def multi_positive(image: Tensor, text: Tensor, scale: Tensor, owner: Tensor) -> Tensor:
    """InfoNCE with all captions of an image as its positives (SupCon's L_out, Khosla et al. 2020, eq. 2).

    An image's loss is the mean over its captions of the cross-entropy against the captions of *other*
    images: two captions of one image never push each other away. With one caption each it equals
    :func:`infonce`.
    """
    logits = scale * image @ text.T  # (B, M)
    positive = _matches(image, owner)
    others = logits.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
    rows = F.softplus(others - logits)  # -log of exp(own) / (exp(own) + sum over other images' captions)
    image_to_text = (rows * positive).sum(1) / positive.sum(1).clamp(min=1)
    return (image_to_text.mean() + F.cross_entropy(logits.T, owner)) / 2


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, owner: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023, eq. 1), with the bias at -ln(M - 1), per image.

    SigLIP learns the bias from -10; here it follows the batch, which puts the prior of a match at 1 in M.
    """
    logits = scale * image @ text.T - torch.log(torch.tensor(max(len(text) - 1.0, 1.0)))  # (B, M)
    positive = _matches(image, owner)
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(image)


def max_margin(image: Tensor, text: Tensor, scale: Tensor, owner: Tensor, margin: float = 0.2) -> Tensor:
    """Hinge loss against the hardest wrong caption and the hardest wrong image (VSE++, Faghri et al. 2018, eq. 6).

    The mean over captions; the logit scale plays no part in it.
    """
    sim = image @ text.T  # (B, M)
    wrong = sim.masked_fill(_matches(image, owner), -torch.inf)
    hardest = torch.stack([wrong.amax(1)[owner], wrong.amax(0)])  # (2, M): a caption, an image
    matching = sim[owner, torch.arange(len(text), device=sim.device)]  # (M,)
    return F.relu(margin + hardest - matching).sum(0).mean() + 0 * scale  # a gradient for all, as DDP wants


LOSSES = {"infonce": infonce, "multi_positive": multi_positive, "sigmoid": sigmoid, "max_margin": max_margin}


def soft_targets(image: Tensor, text: Tensor, scale: Tensor, owner: Tensor, likeness: Tensor) -> Tensor:
    """Cross-entropy both ways against targets spread over all that is alike (after SoftCLIP, Gao et al. 2024).

    ``likeness`` (M, M) holds logits of how alike the captions are; an image stands for the mean over its captions. So
    another photo of a running dog is less wrong than one of a bride.
    """
    own = _matches(image, owner).T.to(likeness)  # (M, B)
    own = own / own.sum(0).clamp(min=1)
    logits = scale * image @ text.T  # (B, M)
    image_to_text = F.cross_entropy(logits, (own.T @ likeness).softmax(1))
    return (image_to_text + F.cross_entropy(logits.T, (likeness @ own).softmax(1))) / 2


def contrastive_loss(
    name: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    owner: Tensor | None = None,
    meaning: Tensor | None = None,
    soft: float = 0.0,
    soft_temperature: float = 0.1,
) -> Tensor:
    """Compute a loss by name over the whole batch; under several processes, over all their batches together.

    With ``meaning``, (M, D) unit vectors of the captions, the share ``soft`` of it is :func:`soft_targets`.

    Raises:
        ValueError: unknown name, captions of fewer than two images (no negatives), or sizes that disagree.

    """
    if name not in LOSSES:
        raise ValueError(f"Unknown loss {name!r}. Known: {', '.join(LOSSES)}.")
    owner = torch.arange(len(image), device=image.device) if owner is None else owner
    if len(text) != len(owner):
        raise ValueError(f"{len(text)} captions do not match {len(image)} images; say which belongs to which.")
    if dist.is_available() and dist.is_initialized():
        image, text, owner, meaning = gather_with_gradient(image, text, owner, meaning)
    if len(owner.unique()) < 2:
        raise ValueError("A contrastive loss needs captions of at least two images: one alone has no negatives.")
    loss = LOSSES[name](image, text, scale, owner)
    if meaning is None or not soft:
        return loss
    return (1 - soft) * loss + soft * soft_targets(image, text, scale, owner, meaning @ meaning.T / soft_temperature)


def gather_with_gradient(image: Tensor, text: Tensor, owner: Tensor, meaning: Tensor | None = None) -> tuple:
    """Concatenate the batches of all processes, letting gradients flow back to each one's own part.

    Every process must hold equally many images and captions. Each computes the whole loss, so the sum
    over processes of the gathered gradients, which DDP then averages, is the one-process gradient.
    """
    from torch.distributed.nn.functional import all_gather

    def gather(tensor):
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    owner = torch.cat([part + rank * len(image) for rank, part in enumerate(gather(owner))])
    meaning = None if meaning is None else torch.cat(gather(meaning))
    return torch.cat(all_gather(image)), torch.cat(all_gather(text)), owner, meaning
