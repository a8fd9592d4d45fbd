"""Several image towers that work as one."""

import torch
from torch import Tensor, nn

from ..encoders import Encoder, ImageEncoder
from .pretrained import Stage


class SideBySide(ImageEncoder):
    """Several convolutional towers that see the same pixels, as one tower.

    Each stage is that of all towers, and its map holds their channels one after the other. So the
    towers need equally many stages, maps of the same size, and pixels normalised alike.
    """

    def __init__(
        self, names: str, trainable: int = 0, reads: str = "last", pretrained: bool = True
    ):
        towers = [ImageEncoder(name, 0, "last", pretrained) for name in names.split("+")]
        _check_side_by_side(names, towers)
        stages: list[Stage] = []
        for parts in zip(*(tower.stages for tower in towers), strict=True):
            steps = [step for _, part_steps in parts for step in part_steps]
            stages.append((parts[0][0], steps))
        models = nn.ModuleList([tower.model for tower in towers])
        Encoder.__init__(self, models, stages, trainable, reads)
        self.towers = towers  # a plain list: their parameters are in self.model already

        self.size = max(tower.size for tower in towers)
        self.register_buffer("mean", towers[0].mean, persistent=False)
        self.register_buffer("std", towers[0].std, persistent=False)
        self.channels = self._channels_after_stages()
        self.dim = sum(sum(self.channels[stage]) for stage in self.reads)

    @torch.no_grad()
    def _channels_after_stages(self) -> list[list[int]]:
        """Return how many channels each tower has after each stage."""
        maps = [torch.zeros(1, 3, self.size, self.size) for _ in self.towers]
        channels = []
        for i in range(len(self.stages)):
            for k, tower in enumerate(self.towers):
                maps[k] = tower.run(maps[k], None, i, i + 1)
            channels.append([x.shape[1] for x in maps])
            if len({x.shape[2:] for x in maps}) > 1:
                raise ValueError("Towers side by side need maps of the same size at every stage.")
        return channels

    def _run_stages(self, x: Tensor, mask: Tensor | None, start: int, stop: int) -> Tensor:
        """Run these stages of every tower on its own channels, and join what they give."""
        if start >= stop:
            return x
        shares = x.split(self.channels[start - 1], 1) if start else [x] * len(self.towers)
        outputs = []
        for tower, share in zip(self.towers, shares, strict=True):
            outputs.append(tower.run(share, mask, start, stop))
        return torch.cat(outputs, 1)

    def pool(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average over the places: (B, C, h, w) -> (B, C)."""
        return hidden.mean((2, 3))


def _check_side_by_side(names: str, towers: list[ImageEncoder]) -> None:
    """Refuse towers that cannot stand side by side."""
    first = towers[0]
    problem = None
    for tower in towers:
        if tower.stages[0][0] != "stem" or tower.stages[-1][0] == "norm":
            problem = "only EfficientNets and ResNets can"
        elif len(tower.stages) != len(first.stages):
            problem = f"they have {len(first.stages)} and {len(tower.stages)} stages"
        elif not (torch.equal(tower.mean, first.mean) and torch.equal(tower.std, first.std)):
            problem = "they expect pixels of another mean or standard deviation"
    if problem:
        raise ValueError(f"The towers {names!r} cannot stand side by side: {problem}.")
