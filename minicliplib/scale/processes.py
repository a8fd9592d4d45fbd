"""Several processes that train one model, each on its share of every batch."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather

if TYPE_CHECKING:
    from ..training import Batch


def share_of_batch(batch: "Batch", processes: int, mine: int) -> "Batch":
    """Return the part of a batch that process ``mine`` of so many ``processes`` works on."""
    image_of_caption = np.array_split(batch.image_of_caption, processes)[mine]
    return batch._replace(
        image_rows=np.array_split(batch.image_rows, processes)[mine],
        views=np.array_split(batch.views, processes)[mine],
        caption_rows=np.array_split(batch.caption_rows, processes)[mine],
        # Counted from the share's own first image.
        image_of_caption=image_of_caption - image_of_caption.min(),
    )


def gather_with_gradient(
    image: Tensor, text: Tensor, image_of_caption: Tensor, teacher_text: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Concatenate the batches of all processes; gradients flow back to each one's own part.

    Every process must hold equally many images and captions. Each computes the whole loss, so the
    sum over processes of the gathered gradients, which DistributedDataParallel then averages, is
    the gradient that one process with the whole batch would have.
    """
    parts = _gathered(image_of_caption)
    # The images of process 1 follow those of process 0, and so on.
    shifted = [part + rank * len(image) for rank, part in enumerate(parts)]
    if teacher_text is not None:
        teacher_text = torch.cat(_gathered(teacher_text))
    images = torch.cat(all_gather(image))
    texts = torch.cat(all_gather(text))
    return images, texts, torch.cat(shifted), teacher_text


def _gathered(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, without a gradient."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts
