"""Gradients of a batch that is larger than memory, in two passes (GradCache, Gao et al. 2021)."""

from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from ..config import Config
from ..encoders import Hidden
from ..loss import config_loss
from ..model import MiniCLIP


def two_pass_backward(
    config: Config,
    model: MiniCLIP,
    hidden: tuple[Hidden, Hidden, Tensor],
    image_of_caption: Tensor,
    teacher_text: Tensor | None = None,
    accelerator: Accelerator | None = None,
) -> Tensor:
    """Compute a batch's loss and gradients, holding the activations of one chunk only.

    The loss needs the vectors of the whole batch, but not their activations. So the first pass
    computes all vectors without a graph, and the gradient of the loss at the vectors. The second
    pass runs each chunk again, with the same dropout, and continues that gradient into the weights.

    Args:
        config: the settings; a chunk is ``train.chunk_size`` images with their captions.
        model: the model whose parameters get the gradients.
        hidden: what the frozen stages give for B images and for M captions, and which tokens
            count (M, T).
        image_of_caption: the image of each caption (M,), ascending.
        teacher_text: the teacher's unit vectors of the captions (M, D), for soft targets.
        accelerator: averages the gradients where several processes train.

    """
    image, text, mask = hidden
    count = len(image.pooled)
    chunks = _chunks(count, config.train.chunk_size or count, image_of_caption)

    # First pass: all vectors, and the state of the random generators before each chunk.
    image_parts = []
    text_parts = []
    random_states = []
    generators = _random_generators(image.pooled.device)
    with torch.no_grad():
        for images, captions in chunks:
            random_states.append([generator.get_rng_state() for generator in generators])
            image_part, text_part, _ = model(
                image.rows(images), text.rows(captions), mask[captions]
            )
            image_parts.append(image_part)
            text_parts.append(text_part)

    # The loss of the whole batch, and its gradient at the vectors and at the logit scale.
    image_vectors = torch.cat(image_parts).requires_grad_()
    text_vectors = torch.cat(text_parts).requires_grad_()
    vectors = (image_vectors, text_vectors, model.scale())
    loss = config_loss(config.loss, vectors, image_of_caption, teacher_text)
    loss.backward()
    assert image_vectors.grad is not None, "the loss depends on every image"
    assert text_vectors.grad is not None, "the loss depends on every caption"

    # Second pass: each chunk again, with its part of that gradient.
    for (images, captions), states in zip(chunks, random_states, strict=True):
        for generator, state in zip(generators, states, strict=True):
            generator.set_rng_state(state)
        image_part, text_part, _ = model(image.rows(images), text.rows(captions), mask[captions])
        gradients = [image_vectors.grad[images], text_vectors.grad[captions]]
        torch.autograd.backward([image_part, text_part], gradients)

    if accelerator is not None and accelerator.num_processes > 1:
        _average_gradients(model, accelerator)
    return loss.detach()


def _chunks(count: int, size: int, image_of_caption: Tensor) -> list[tuple[slice, slice]]:
    """Cut a batch of ``count`` images into chunks: rows of images, and rows of their captions."""
    chunks = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        ends = torch.tensor([start, stop], device=image_of_caption.device)
        first, last = torch.searchsorted(image_of_caption, ends).tolist()
        chunks.append((slice(start, stop), slice(first, last)))
    return chunks


def _random_generators(device: torch.device) -> list[Any]:
    """Return what draws dropout: the CPU's generator, and the device's own."""
    if device.type == "cpu":
        return [torch]
    return [torch, torch.get_device_module(device)]


def _average_gradients(model: MiniCLIP, accelerator: Accelerator) -> None:
    """Average the gradients over the processes, as DistributedDataParallel does."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = cast(Tensor, accelerator.reduce(parameter.grad, "mean"))
