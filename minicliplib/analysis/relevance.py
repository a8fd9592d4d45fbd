"""Why this image, why this word: maps and shares of a similarity, and the checks that tell whether to believe them.

The gradient flows from a hidden state, so frozen towers are explained like tuned ones, and the model is left as it was.
A picture is explained as it is, without the further looks that ``encode_image`` may average.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..datasets.images import load_image
from ..datasets.scenes import KIND
from ..encoders import ImageLike
from ..model import MiniCLIP, eval_mode

SIZES = (
    1,
    2,
)  # of the picture, in tower inputs: a map of 7 x 7 places, and one of 14 x 14 that localises better
STEPS = 8  # of integrated gradients; 64 give the same agreement with leave_one_out
NO_WORD = "."  # what is left of a caption of one word without its word


def relevance_map(model: MiniCLIP, image: ImageLike, text: str) -> np.ndarray:
    """Where a caption looks: (size, size) float32 in [0, 1] over the whole picture, squeezed to the tower's square.

    Of a convolutional tower Grad-CAM (Selvaraju et al. 2017) of the cosine at the last map before pooling, of the
    picture as the tower sees it and at twice that size, in equal parts; of a ViT the rollout of attention weighted by
    its gradient (Chefer et al. 2021). The peak is 1; where nothing speaks for the caption the map is 0.

    Raises:
        ValueError: the text is empty, or the tower has neither a map nor attention to look at.
        DataError: the image cannot be read.

    """
    encoder = model.image_encoder
    with eval_with_grad(model):
        vector, pixels = model.encode_text(text)[0].clone(), encoder.prepare([image])
        relevance = (_rollout if isinstance(encoder.model, VisionTransformer) else _grad_cam)(
            model, pixels, vector
        )
    return (relevance / relevance.max().clamp(min=1e-12)).cpu().numpy()


def overlay(image, heat: np.ndarray, hint: int = 224) -> Image.Image:
    """A picture in grey under its map (size, size) in [0, 1], the more relevant the brighter."""
    grey = load_image(image, hint).convert("L").convert("RGB")
    heat = np.asarray(Image.fromarray(heat).resize(grey.size, Image.Resampling.BILINEAR))[..., None]
    weight = 0.15 + 0.6 * heat
    return Image.fromarray(
        (
            weight * 255 * colormaps["inferno"](heat[..., 0])[..., :3]
            + (1 - weight) * np.asarray(grey)
        ).astype(np.uint8)
    )


def word_relevance(model: MiniCLIP, image: ImageLike, text: str) -> list[tuple[str, float]]:
    """Each word of a caption with its signed share in the cosine: integrated gradients (Sundararajan et al. 2017).

    The way leads from the same caption with every wordpiece unknown; the shares add up to what the words change in the
    cosine. A word beyond the tower's ``max_tokens`` has 0.
    """
    encoder, words = model.text_encoder, text.split()
    ids, mask = encoder.prepare([text])
    if len(encoder.stages) < 2:
        raise ValueError(
            f"{type(encoder.model).__name__} is not cut into stages: use leave_one_out for its words."
        )
    pieces = encoder.tokenizer(
        text, truncation=True, max_length=encoder.max_tokens, return_offsets_mapping=True
    )
    image_vector = _plain(model, image)
    special = torch.tensor(
        encoder.tokenizer.get_special_tokens_mask(ids[0].tolist(), already_has_special_tokens=True)
    )
    blank = torch.where(special.bool().to(ids.device), ids, encoder.tokenizer.unk_token_id)
    with eval_with_grad(model):
        start, end = encoder.run(torch.cat([blank, ids]), mask.repeat(2, 1), stop=1).detach()
        way = (torch.arange(STEPS, device=start.device) + 0.5)[
            :, None, None
        ] / STEPS  # middles of equal steps
        hidden = (start + way * (end - start)).requires_grad_()  # (STEPS, T, D)
        mask = mask.repeat(STEPS, 1)
        pooled = encoder.pool(encoder.run(hidden, mask, start=1), mask)
        cosine = F.normalize(model.text_head(pooled), dim=-1) @ image_vector
        (gradient,) = torch.autograd.grad(cosine.sum(), hidden)
    shares = ((end - start) * gradient.mean(0)).sum(-1).tolist()  # (T,)
    ends = np.cumsum([len(word) for word in words])
    total = [0.0] * len(words)
    for share, (first, last) in zip(shares, pieces["offset_mapping"], strict=True):
        if last > first:  # a piece of the text, not a special token
            total[np.searchsorted(ends, len("".join(text[:first].split())), side="right")] += share
    return list(zip(words, total, strict=True))


def leave_one_out(model: MiniCLIP, image: ImageLike, text: str) -> list[tuple[str, float]]:
    """Each word of a caption with the drop in cosine when it is left out; a caption of one word leaves a full stop."""
    words, vector = text.split(), _plain(model, image)
    shorter = [" ".join(words[:i] + words[i + 1 :]) or NO_WORD for i in range(len(words))]
    with eval_with_grad(model):
        cosine = (model.encode_text([text, *shorter]) @ vector).tolist()
    return [(word, cosine[0] - without) for word, without in zip(words, cosine[1:], strict=True)]


def randomised(model: MiniCLIP, share: float = 1.0, seed: int = 0) -> MiniCLIP:
    """Return a copy whose heads and this share of each tower's stages, from the top down, forget what they learned.

    Cascading randomisation (Adebayo et al. 2018): 0 is the heads alone, 1 everything. A tensor's values change places
    among each other, so that signals keep their size.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 (the heads alone) to 1 (everything), not {share}.")
    model, shuffle = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = [model.image_head, model.text_head]
    for encoder in (model.image_encoder, model.text_encoder):
        count = round(share * len(encoder.stages))
        parts += [encoder] if share == 1 else encoder._modules_from(len(encoder.stages) - count)
    for parameter in {id(p): p for part in parts for p in part.parameters()}.values():
        order = torch.randperm(parameter.numel(), generator=shuffle).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return model


# Words of which any may stand for any other in a sentence, and then changes its teacher_text.
ALTERNATIVES = {
    "number": ("two", "three", "four"),
    "colour": (
        "red",
        "blue",
        "green",
        "yellow",
        "white",
        "black",
        "brown",
        "golden",
        "grey",
        "pink",
        "purple",
    ),
    "side": ("left", "right"),
    "subject": (
        "man",
        "woman",
        "boy",
        "girl",
        *(n for n, kind in KIND.items() if kind in ("animal", "person")),
    ),
}


def altered(caption: str, kind: str, rng: np.random.Generator) -> str | None:
    """Return a caption's false twin, or None where there is none: the words are alike, the teacher_text is not.

    ``kind`` is "order" (the words shuffled), "roles" (two subjects change places), or a key of ``ALTERNATIVES``: one
    word, drawn at random, becomes another of its kind. In the spirit of ARO (Yuksekgonul et al. 2023).
    """
    words = caption.rstrip(".").split()
    group = ALTERNATIVES["subject" if kind == "roles" else kind] if kind != "order" else ()
    places = [i for i, word in enumerate(words) if word.lower() in group]
    if kind == "order":
        words = [words[i] for i in rng.permutation(len(words))]
    elif kind == "roles" and len({words[i] for i in places}) > 1:
        i, j = places[0], next(p for p in places if words[p] != words[places[0]])
        words[i], words[j] = words[j], words[i]
    elif kind != "roles" and places:
        i = rng.choice(places)
        words[i] = str(rng.choice([word for word in group if word not in caption.lower().split()]))
        words[i] = words[i].capitalize() if i == 0 else words[i]
    twin = " ".join(words) + "."
    if kind in ("subject", "roles"):  # no article may betray the exchange
        twin = re.sub(r"\b(a)n?(?= [aeiou])", r"\1n", twin, flags=re.I)
        twin = re.sub(r"\b(a)n(?= [^aeiou])", r"\1", twin, flags=re.I)
    return None if twin.lower().split() == (caption.rstrip(".") + ".").lower().split() else twin


@contextmanager
def eval_with_grad(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, whatever the caller's setting."""
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        yield


def _plain(model: MiniCLIP, image: ImageLike) -> Tensor:
    """The unit vector (E,) of the plain look at a picture."""
    with eval_with_grad(model), torch.no_grad():
        return model.project_image(model.image_encoder.trunk(model.image_encoder.prepare([image])))[
            0
        ]


def _grad_cam(model: MiniCLIP, pixels: Tensor, vector: Tensor) -> Tensor:
    """Pixels (1, 3, h, w) and a text's vector (E,) -> relevance (h, w)."""
    encoder, total = model.image_encoder, torch.zeros(pixels.shape[-2:], device=pixels.device)
    for scale in (
        SIZES if len(encoder.stages) > 1 else SIZES[:1]
    ):  # a tower that is not cut may want its own size
        hidden = (
            encoder.run(F.interpolate(pixels, scale_factor=scale, mode="bicubic"))
            .detach()
            .requires_grad_()
        )
        if hidden.ndim != 4:
            raise ValueError(
                f"{type(encoder.model).__name__} gives no map of the picture to show relevance on."
            )
        cosine = F.normalize(model.image_head(encoder.pool(hidden)), dim=-1)[0] @ vector
        places = (
            hidden * torch.autograd.grad(cosine, hidden)[0]
        )  # pooling is a mean: one gradient for all places
        channels = (
            1 if hidden.shape[1] == encoder.model.num_features else 3
        )  # some towers keep them last
        cam = _enlarged(places.detach().sum(channels)[0], encoder.size)
        total += cam / cam.mean().clamp(min=1e-12)
    return total


def _rollout(model: MiniCLIP, pixels: Tensor, vector: Tensor) -> Tensor:
    """Pixels (1, 3, h, w) and a text's vector (E,) -> relevance (h, w)."""
    vit, seen, hooks = model.image_encoder.model, [], []
    attentions = [block.attn for block in vit.blocks]
    fused = [attention.fused_attn for attention in attentions]
    try:
        for attention in attentions:
            attention.fused_attn = False  # fused attention never shows its weights
            hooks.append(
                attention.attn_drop.register_forward_hook(lambda *call: seen.append(call[-1]))
            )
        pooled = model.image_encoder.pool(model.image_encoder.run(pixels.requires_grad_()))
        cosine = F.normalize(model.image_head(pooled), dim=-1)[0] @ vector
        gradients = torch.autograd.grad(cosine, seen)
    finally:
        for hook in hooks:
            hook.remove()
        for attention, was in zip(attentions, fused, strict=True):
            attention.fused_attn = was
    rollout = torch.eye(seen[0].shape[-1], device=vector.device)
    for weights, gradient in zip(seen, gradients, strict=True):
        rollout = rollout + (weights * gradient).float().relu().mean((0, 1)).detach() @ rollout
    first = vit.num_prefix_tokens
    patches = (rollout[:1] if vit.global_pool == "token" else rollout[first:]).mean(0)[first:]
    return _enlarged(
        (patches - patches.min()).view(vit.patch_embed.grid_size), model.image_encoder.size
    )


def _enlarged(places: Tensor, size: int) -> Tensor:
    """Signed relevance of places (h', w') -> what speaks for the caption, pixel by pixel (size, size)."""
    return F.interpolate(places.relu()[None, None], (size, size), mode="bilinear")[0, 0]
