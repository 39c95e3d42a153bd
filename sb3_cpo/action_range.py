"""Policies for continuous actions that know the range of the actions: the unit of an action does not matter."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

# First variances in half ranges: the dimensions of an action add up in what they do, and together they have this one,
FIRST_VARIANCE = 1.5
# but each has one in these bounds: 84 % of the actions that are drawn lie within the range at the upper one, 95 % at the lower
LEAST_VARIANCE, LARGEST_VARIANCE = 0.25, 0.5
# Of a half range: the squares of smaller and larger ones leave single precision. Such bounds stand for none
LEAST_RANGE, LARGEST_RANGE = 1e-15, 1e15


class RangeLinear(nn.Linear):
    """
    A linear layer for the means of actions: its outputs are ``centre + half_range * linear``.

    Weights that come from an ordinary linear layer (PPO's, or of a model from before) make it one: centre 0, half range 1.

    :param like: the layer whose weights it begins with
    :param centre: (n_actions,) of the range of each action
    :param half_range: (n_actions,) from the centre to the ends
    """

    centre: th.Tensor
    half_range: th.Tensor

    def __init__(self, like: nn.Linear, centre: th.Tensor, half_range: th.Tensor):
        with th.random.fork_rng(devices=[]):
            super().__init__(like.in_features, like.out_features)
        self.load_state_dict(like.state_dict())
        self.register_buffer("centre", centre)
        self.register_buffer("half_range", half_range)

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """(n, n_actions) in the unit of the actions."""
        return self.centre + self.half_range * super().forward(latent)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict:
            for name, plain in (("centre", th.zeros_like), ("half_range", th.ones_like)):
                if name in self._buffers:
                    state_dict.setdefault(prefix + name, plain(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ActionRange(NamedTuple):
    """Of each action, (n_actions,) float32."""

    centre: th.Tensor
    half_range: th.Tensor
    """From the centre to the ends."""
    first_std: th.Tensor
    """Standard deviation before any learning."""


def action_range(space: spaces.Box) -> ActionRange:
    """What the bounds of the actions say. Without a bound on both sides: centre 0, half range 1 and deviation 1, as in SB3."""
    low, high = space.low.astype(np.float64).flatten(), space.high.astype(np.float64).flatten()
    half_range = (high - low) / 2
    is_bounded = (half_range >= LEAST_RANGE) & (half_range <= LARGEST_RANGE)
    low, high = np.where(is_bounded, low, -1.0), np.where(is_bounded, high, 1.0)
    centre, half_range = (low + high) / 2, (high - low) / 2
    share = np.sqrt(np.clip(FIRST_VARIANCE / len(low), LEAST_VARIANCE, LARGEST_VARIANCE))
    first_std = np.where(is_bounded, share * half_range, 1.0)
    return ActionRange(*(th.as_tensor(part, dtype=th.float32) for part in (centre, half_range, first_std)))
