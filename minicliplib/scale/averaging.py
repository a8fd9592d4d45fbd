"""The average of a model's weights over its steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model import MiniCLIP


class WeightAverage:
    """An exponential moving average of what a model learns.

    It moves less from step to step than the weights themselves, and usually scores better. Over
    its first steps the average forgets faster, so that it does not stay near the start.

    Attributes:
        weights: the averages by name, as in ``MiniCLIP.learned_state``.

    """

    def __init__(self, model: MiniCLIP, decay: float):
        self.decay = decay
        self.weights = {name: weight.clone() for name, weight in model.learned_state().items()}

    def update(self, model: MiniCLIP, steps_done: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self.decay, steps_done / (9 + steps_done))
        for name, mean in self.weights.items():
            mean.lerp_(model.get_parameter(name).detach(), 1 - decay)

    @contextmanager
    def put_into(self, model: MiniCLIP) -> Iterator[None]:
        """Put the averages into the model for a while, and its own weights back afterwards."""
        own = {name: weight.clone() for name, weight in model.learned_state().items()}
        model.load_learned_state(self.weights)
        try:
            yield
        finally:
            model.load_learned_state(own)


def mean_state(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of several models' learned states, tensor by tensor."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
