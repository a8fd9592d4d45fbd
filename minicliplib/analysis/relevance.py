"""Which part of an image, and which word, supports a match: maps, shares, and their checks.

A match is the cosine of an image and a caption. Its gradient flows back to a hidden state of the
tower, not to weights, so frozen towers are explained like tuned ones, and the model is left as it
was. An image is explained as it is, without the further views that ``encode_image`` may average.
:func:`text_attention` shows what the text tower itself computes: which token looks at which.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..datasets.images import load_image
from ..encoders import Encoder, ImageLike
from ..model import MiniCLIP, eval_mode

# A map adds what the tower sees at its own size and at twice that size, which has four times as
# many places and localises better.
IMAGE_SCALES = (1, 2)
PATH_STEPS = 8  # of integrated gradients; 64 agree no better with leave_one_out
NO_WORD = "."  # what is left of a caption of one word without its word
TINY = 1e-12  # keeps a division by an empty map from failing


# ---- maps ----------------------------------------------------------------------------


def relevance_map(model: MiniCLIP, image: ImageLike, text: str) -> np.ndarray:
    """Return which places of an image support a text.

    A convolutional tower is explained by Grad-CAM (Selvaraju et al. 2017) of the cosine, at the
    maps that the head reads. A vision transformer is explained by the rollout of its attention,
    weighted by the gradient of the cosine (Chefer et al. 2021).

    Args:
        model: The model to explain.
        image: A path or an image.
        text: A caption, or any part of one.

    Returns:
        (size, size) float32 over the whole image, squeezed to the tower's square. The peak is 1;
        where nothing supports the text, the map is 0.

    Raises:
        ValueError: The text is empty, or the tower has neither a map nor attention to look at.
        DataError: The image cannot be read.

    """
    from timm.models import VisionTransformer

    encoder = model.image_encoder
    with eval_with_grad(model):
        text_vector = model.encode_text(text)[0].clone()  # (E,)
        pixels = encoder.prepare([image])  # (1, 3, size, size)
        if isinstance(encoder.model, VisionTransformer):
            relevance = _rollout(model, pixels, text_vector)
        else:
            relevance = _grad_cam(model, pixels, text_vector)
    relevance = relevance / relevance.max().clamp(min=TINY)
    return relevance.cpu().numpy()


def overlay(image: ImageLike, heat: np.ndarray, hint: int = 224) -> Image.Image:
    """Return an image in grey under its map, the more relevant the brighter.

    Args:
        image: A path or an image.
        heat: Its map, (size, size) in [0, 1].
        hint: The size at which a large JPEG is decoded, as ``load_image`` has it.

    """
    from matplotlib import colormaps

    grey = load_image(image, hint).convert("L").convert("RGB")
    heat_image = Image.fromarray(heat).resize(grey.size, Image.Resampling.BILINEAR)
    heat = np.asarray(heat_image)  # (h, w)

    # Blend the grey image with the map's colours. They count for more where the map is higher.
    weight = (0.15 + 0.6 * heat)[..., None]
    colours = colormaps["inferno"](heat)[..., :3]
    blended = weight * 255 * colours + (1 - weight) * np.asarray(grey)
    return Image.fromarray(blended.astype(np.uint8))


def _grad_cam(model: MiniCLIP, pixels: Tensor, text_vector: Tensor) -> Tensor:
    """Return the relevance (size, size) of pixels (1, 3, size, size) for a text's vector (E,)."""
    encoder = model.image_encoder
    # A tower that is not cut into stages may accept no other size than its own.
    is_cut = len(encoder.stages) > 1
    scales = IMAGE_SCALES if is_cut else (1,)

    total = torch.zeros(pixels.shape[-2:], device=pixels.device)
    for scale in scales:
        scaled = F.interpolate(pixels, scale_factor=scale, mode="bicubic")
        with torch.no_grad():
            _, kept = encoder.run_and_keep(scaled)
        maps = [hidden.clone().requires_grad_() for hidden in kept]
        if any(read.ndim != 4 for read in maps):
            raise ValueError(
                f"{type(encoder.model).__name__} gives no map of the image to show relevance on. "
                "Use a convolutional tower or a vision transformer."
            )

        # Pooling is a mean over places, so each place has the same gradient.
        pooled = [encoder.pool(read) for read in maps]
        cosine = _cosine(model, pooled, text_vector)
        gradients = torch.autograd.grad(cosine, maps)

        # Sum over the channels, which towers that are not cut may keep in the last dimension.
        contributions = []
        for read, gradient in zip(maps, gradients, strict=True):
            channels_first = is_cut or read.shape[1] == encoder.model.num_features
            of_places = (read * gradient).detach().sum(1 if channels_first else 3)  # (1, h, w)
            # For each unit of area, since a map of fewer places has larger ones.
            contributions.append(of_places[None] * of_places.numel())

        # Sum over the maps that the head reads, at the size of the largest.
        largest = contributions[0].shape[2:]
        resized = [F.interpolate(part, largest, mode="bilinear") for part in contributions]
        places = torch.stack(resized).sum(0)[0, 0]  # (h, w)

        # Give both scales the same weight.
        cam = _enlarged(places, encoder.size)
        total += cam / cam.mean().clamp(min=TINY)
    return total


def _rollout(model: MiniCLIP, pixels: Tensor, text_vector: Tensor) -> Tensor:
    """Return the relevance (size, size) of pixels (1, 3, size, size) for a text's vector (E,).

    For each block we multiply the attention weights with their gradient, keep what is positive, and
    average over the heads: A'. The relevance R of each token for each token starts as the identity,
    and each block adds to it: R <- R + A' R (Chefer et al. 2021, equations 5 and 6).
    """
    encoder = model.image_encoder
    vit: Any = encoder.model
    with _recorded_attention(vit) as attention:
        _, kept = encoder.run_and_keep(pixels.requires_grad_())
        cosine = _cosine(model, [encoder.pool(hidden) for hidden in kept], text_vector)
        gradients = torch.autograd.grad(cosine, attention)

    tokens = attention[0].shape[-1]
    rollout = torch.eye(tokens, device=text_vector.device)  # (T, T)
    for weights, gradient in zip(attention, gradients, strict=True):
        raises_cosine = (weights * gradient).float().relu()  # (1, heads, T, T)
        rollout = rollout + raises_cosine.mean((0, 1)).detach() @ rollout

    # The model pools either the class token, which comes first, or all patches.
    n_prefix = vit.num_prefix_tokens
    pooled = rollout[:1] if vit.global_pool == "token" else rollout[n_prefix:]
    patches = pooled.mean(0)[n_prefix:]

    # Leave out what all patches have in common.
    patches = patches - patches.min()
    return _enlarged(patches.view(vit.patch_embed.grid_size), encoder.size)


@contextmanager
def _recorded_attention(vit: Any) -> Iterator[list[Tensor]]:
    """Record the attention weights (B, heads, T, T) of each block while a model runs."""
    recorded: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recorded.append(output)

    layers = [block.attn for block in vit.blocks]
    were_fused = [layer.fused_attn for layer in layers]
    hooks = []
    try:
        for layer in layers:
            layer.fused_attn = False  # fused attention never shows its weights
            hooks.append(layer.attn_drop.register_forward_hook(record))
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
        for layer, was_fused in zip(layers, were_fused, strict=True):
            layer.fused_attn = was_fused


def _cosine(model: MiniCLIP, pooled: list[Tensor], text_vector: Tensor) -> Tensor:
    """Return the cosine of an image, from all that the head reads, and a text's unit vector."""
    image_vector = F.normalize(model.image_head(torch.cat(pooled, 1)), dim=-1)[0]
    return image_vector @ text_vector


def _enlarged(places: Tensor, size: int) -> Tensor:
    """Return what supports the text, per pixel (size, size), from signed relevance (h, w)."""
    positive = places.relu()[None, None]
    return F.interpolate(positive, (size, size), mode="bilinear")[0, 0]


# ---- attention -----------------------------------------------------------------------


@torch.inference_mode()
def text_attention(model: MiniCLIP, text: str) -> tuple[list[str], Tensor]:
    """Return a text's tokens, and where each token looks in each layer of the text tower.

    Returns:
        The T tokens, and the attention weights (layers, heads, T, T) of Vaswani et al. 2017,
        equation 1. A row is a token that looks, a column one that is looked at; rows sum to 1.

    Raises:
        ValueError: The text is empty.

    """
    encoder = model.text_encoder
    ids, mask = encoder.prepare([text])
    transformer = encoder.model
    # The quick implementations of attention do not keep its weights.
    usual = transformer.config._attn_implementation
    transformer.set_attn_implementation("eager")
    try:
        with eval_mode(model):
            out = transformer(input_ids=ids, attention_mask=mask, output_attentions=True)
    finally:
        transformer.set_attn_implementation(usual)
    tokens = encoder.tokenizer.convert_ids_to_tokens(ids[0])
    return tokens, torch.cat(out.attentions).cpu()


# ---- words ---------------------------------------------------------------------------


def word_relevance(model: MiniCLIP, image: ImageLike, text: str) -> list[tuple[str, float]]:
    """Return each word of a caption with its signed share in the cosine.

    The shares are integrated gradients (Sundararajan et al. 2017, equation 1). The path leads from
    the same caption with every wordpiece unknown to the caption itself. The shares add up to what
    the words change in the cosine. A word beyond the tower's ``max_tokens`` has 0.

    Args:
        model: The model to explain.
        image: A path or an image.
        text: A caption of at least one word.

    Raises:
        ValueError: The text is empty, or the text tower is not cut into stages.
        DataError: The image cannot be read.

    """
    encoder = model.text_encoder
    ids, mask = encoder.prepare([text])  # (1, T) each
    if len(encoder.stages) < 2:
        raise ValueError(
            f"{type(encoder.model).__name__} is not cut into stages, so its words cannot be "
            "followed by gradients. Use leave_one_out for them."
        )
    image_vector = _plain_vector(model, image)

    with eval_with_grad(model):
        # Embed the caption without and with its words: the ends of the path.
        both_ids = torch.cat([_without_words(model, ids), ids])
        start, end = encoder.run(both_ids, mask.repeat(2, 1), stop=1).detach()  # (T, D) each

        # Walk the path in equal steps, and look at the middle of each.
        steps = torch.arange(PATH_STEPS, device=start.device)
        fractions = (steps + 0.5)[:, None, None] / PATH_STEPS
        hidden = (start + fractions * (end - start)).requires_grad_()  # (PATH_STEPS, T, D)

        # Take the gradient of the cosine at every step.
        step_mask = mask.repeat(PATH_STEPS, 1)
        _, kept = encoder.run_and_keep(hidden, step_mask, start=1)
        if 0 in encoder.reads:
            kept.insert(0, hidden)
        pooled = [encoder.pool(state, step_mask) for state in kept]
        cosines = F.normalize(model.text_head(torch.cat(pooled, 1)), dim=-1) @ image_vector
        (gradient,) = torch.autograd.grad(cosines.sum(), hidden)

    piece_shares = ((end - start) * gradient.mean(0)).sum(-1)  # (T,)
    return _shares_of_words(model, text, piece_shares.tolist())


def leave_one_out(model: MiniCLIP, image: ImageLike, text: str) -> list[tuple[str, float]]:
    """Return each word of a caption with the drop in cosine when it is left out.

    Of a caption of one word a full stop is left.

    Raises:
        ValueError: The text is empty.
        DataError: The image cannot be read.

    """
    words = text.split()
    image_vector = _plain_vector(model, image)

    shortened = []
    for i in range(len(words)):
        rest = words[:i] + words[i + 1 :]
        shortened.append(" ".join(rest) or NO_WORD)

    with eval_with_grad(model):
        vectors = model.encode_text([text, *shortened])  # (1 + words, E)
        full, *without = (vectors @ image_vector).tolist()
    return [(word, full - cosine) for word, cosine in zip(words, without, strict=True)]


def _without_words(model: MiniCLIP, ids: Tensor) -> Tensor:
    """Return token ids (1, T) with each one unknown that stands for a piece of text."""
    tokenizer = model.text_encoder.tokenizer
    special = tokenizer.get_special_tokens_mask(ids[0].tolist(), already_has_special_tokens=True)
    is_special = torch.tensor(special, device=ids.device).bool()
    return torch.where(is_special, ids, tokenizer.unk_token_id)


def _shares_of_words(
    model: MiniCLIP, text: str, piece_shares: list[float]
) -> list[tuple[str, float]]:
    """Return each word of a text with the sum of its wordpieces' shares."""
    encoder = model.text_encoder
    pieces = encoder.tokenizer(
        text, truncation=True, max_length=encoder.max_tokens, return_offsets_mapping=True
    )
    words = text.split()
    totals = [0.0] * len(words)
    for share, (first, last) in zip(piece_shares, pieces["offset_mapping"], strict=True):
        is_text = last > first  # a special token covers no character
        if is_text:
            totals[_word_at(text, first)] += share
    return list(zip(words, totals, strict=True))


def _word_at(text: str, place: int) -> int:
    """Return which word of a text a wordpiece belongs to that begins at a character's place.

    A piece that begins with the space before a word belongs to that word.
    """
    before = text[:place]
    words_begun = len(before.split())
    after_space = not before or before[-1].isspace()
    if after_space or text[place].isspace():
        return words_begun
    return words_begun - 1


def _plain_vector(model: MiniCLIP, image: ImageLike) -> Tensor:
    """Return the unit vector (E,) of an image as it is, without further views."""
    encoder = model.image_encoder
    with eval_with_grad(model), torch.no_grad():
        pixels = encoder.prepare([image])
        return model.project_image(encoder.trunk(pixels))[0]


# ---- checks --------------------------------------------------------------------------


def randomised(model: MiniCLIP, share: float = 1.0, seed: int = 0) -> MiniCLIP:
    """Return a copy whose heads, and top stages of both towers, forget what they learned.

    This is cascading randomisation (Adebayo et al. 2018). An explanation that hardly changes does
    not explain what the model learned. The values of each tensor change places among each other,
    so that signals keep their size.

    Args:
        model: The model to copy.
        share: How much of each tower forgets, from the top down: 0 is the heads alone, 1 all of it.
        seed: Draws the new places.

    Raises:
        ValueError: ``share`` lies outside 0 to 1.

    """
    if not 0 <= share <= 1:
        raise ValueError(
            f"share must be a number from 0 (the heads alone) to 1 (everything), not {share}."
        )
    forgetful = copy.deepcopy(model)
    parts = nn.ModuleList([forgetful.image_head, forgetful.text_head])
    for encoder in (forgetful.image_encoder, forgetful.text_encoder):
        parts.extend(_top_modules(encoder, share))

    generator = torch.Generator().manual_seed(seed)
    for parameter in parts.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return forgetful


def _top_modules(encoder: Encoder, share: float) -> list[nn.Module]:
    """Return the modules of this share of a tower's stages, from the top down."""
    if share == 1:
        return [encoder]  # also what belongs to no stage, such as the class token
    count = round(share * len(encoder.stages))
    return encoder.modules_from(len(encoder.stages) - count)


@contextmanager
def eval_with_grad(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, with gradients, whatever the caller's settings are."""
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        yield
