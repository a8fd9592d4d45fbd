"""What a tower weighs and costs, stage by stage: parameters, arithmetic, and what is cached."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..encoders import Encoder

BYTES_PER_NUMBER = 2  # half precision, in which features are cached


@torch.no_grad()
def stage_costs(encoder: Encoder, x: Tensor, mask: Tensor | None = None) -> pd.DataFrame:
    """Run B inputs through a tower; return a row per stage, by its name.

    Columns: ``shape`` after the stage, ``parameters``, ``gflops`` forward for one input (a
    multiplication and an addition are two), and whether it is ``frozen``. Torch counts convolutions
    and matrix products, and leaves out additions, activations and norms. The class token and the
    positions of a ViT belong to no stage, so they are not counted among the parameters.
    """
    rows = []
    for i, (name, _) in enumerate(encoder.stages):
        # The flop counter does not know the fused kernels of attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            x = encoder.run(x, mask, start=i, stop=i + 1)
        parameters = 0
        for module in encoder.modules_from(i):
            parameters += sum(p.numel() for p in module.parameters())
        gflops = counter.get_total_flops() / len(x) / 1e9
        rows.append((name, tuple(x.shape), parameters, gflops, i < encoder.frozen))

    table = pd.DataFrame(rows, columns=["stage", "shape", "parameters", "gflops", "frozen"])
    # So far a row counts the parameters of all later stages as well.
    table["parameters"] -= table["parameters"].shift(-1, fill_value=0)
    return table.set_index("stage")


def freeze_dial(
    costs: pd.DataFrame, reads: list[int], tokens: int | None = None
) -> dict[str, list[Any]]:
    """Return what each number of trainable stages, 0, 1, ... from the top, trains and stores.

    A step of training costs three times the forward pass of what trains. Cached is the output of
    the last frozen stage, and the mean of each frozen stage that the head reads. A locked tower
    needs the means alone. Where nothing is frozen, nothing is cached: None.

    Args:
        costs: what :func:`stage_costs` gives.
        reads: the numbers of the stages that the head reads.
        tokens: how many tokens a caption has; None for an image tower.

    """
    shapes = [shape[1:] for shape in costs["shape"]]
    # A stage gives tokens (T, D) or a map (C, h, w).
    widths = [shape[-1] if len(shape) == 2 else shape[0] for shape in shapes]
    kilobytes: list[float | None] = []
    for frozen in range(len(costs), -1, -1):
        numbers = sum(widths[i] for i in reads if i < frozen)
        if 0 < frozen < len(costs):
            last = frozen - 1
            numbers += tokens * widths[last] if tokens else int(np.prod(shapes[last]))
        kilobytes.append(BYTES_PER_NUMBER * numbers / 1e3 if frozen else None)

    from_top = costs.iloc[::-1]
    parameters = [0, *from_top["parameters"].cumsum()]
    gflops = [0, *(3 * from_top["gflops"].cumsum())]
    return {
        "million_parameters": [round(count / 1e6, 3) for count in parameters],
        "gflops": [round(value, 4) for value in gflops],
        "kilobytes": [None if value is None else round(value, 2) for value in kilobytes],
    }
