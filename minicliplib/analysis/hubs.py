"""Hubs: items that stand near the top of too many lists, and a correction for them.

A few items are close to almost every query. We measure this with a bank of typical queries, and
subtract it from the scores (a simple form of QB-Norm, Bogolin et al. 2022, with one number for each
item, as in the inverted softmax of Smith et al. 2017).
"""

import torch
from torch import Tensor


def hub_bias(gallery: Tensor, bank: Tensor, scale: float = 20.0) -> Tensor:
    """Return how close each item of a gallery is to typical queries: subtract it from its cosines.

    That is a soft maximum of its cosines with the bank: log-mean-exp, where ``scale`` says how much
    the closest queries count.

    Args:
        gallery: unit vectors of the items that are ranked (n, E).
        bank: unit vectors of training queries (b, E), never those that are asked.
        scale: above 0; 0 in the limit is the mean cosine, infinity the highest one.

    Raises:
        ValueError: the widths disagree, the bank is empty, or the scale is not above 0.

    """
    if gallery.ndim != 2 or bank.ndim != 2 or gallery.shape[1] != bank.shape[1]:
        shapes = f"{tuple(gallery.shape)} and {tuple(bank.shape)}"
        raise ValueError(f"Gallery and bank must hold vectors of one width, not {shapes}.")
    if len(bank) == 0:
        raise ValueError("The bank is empty: it needs one query or more.")
    if not scale > 0:
        raise ValueError(f"The scale must be above 0, not {scale}.")
    soft_sums = [torch.logsumexp(scale * part @ bank.T, 1) for part in gallery.split(1024)]
    mean = torch.cat(soft_sums) - torch.log(torch.tensor(float(len(bank))))
    return mean / scale
