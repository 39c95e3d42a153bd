"""Running statistics of observations inside the policy: what ``VecNormalize`` does outside, without a second file to keep."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import nn

from sb3_cpo import distributed
from sb3_cpo.buffers import parts_of

# As VecNormalize
CLIP, EPSILON = 10.0, 1e-8


class RunningMoments(nn.Module):
    """
    Mean and variance of all observations so far, per entry; part of the ``state_dict``.

    :param shape: of one observation
    """

    mean: th.Tensor
    variance: th.Tensor
    count: th.Tensor

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("mean", th.zeros(shape))
        self.register_buffer("variance", th.ones(shape))
        self.register_buffer("count", th.zeros(()))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """As it is before the first update, then standardised and clipped."""
        if self.count == 0:
            return obs
        return ((obs - self.mean) / (self.variance + EPSILON).sqrt()).clamp(-CLIP, CLIP)

    def update(self, obs: np.ndarray) -> None:
        """
        Take observations into the moments (Chan et al., 1983, in double precision).

        :param obs: (n, *shape)
        """
        mean, variance, n = distributed.moments(th.as_tensor(obs.astype(np.float64)))
        # Before the first update, with a count of 0, the variance of 1 stands for nothing that was seen
        moments = RunningMeanStd(epsilon=float(self.count))
        moments.mean, moments.var = (own.cpu().numpy().astype(np.float64) for own in (self.mean, self.variance))
        moments.update_from_moments(mean.numpy(), variance.numpy(), n)
        self.mean.copy_(th.as_tensor(moments.mean))
        self.variance.copy_(th.as_tensor(moments.var))
        self.count.fill_(moments.count)


class ObservationNormalizer(nn.Module):
    """
    Standardises observations that are vectors of numbers; images, discrete observations and the like pass as they are.

    A policy that was trained on observations as they are (PPO's, as a warm start) keeps them so: its normalizer is frozen.

    The statistics rest during a rollout and are updated between updates, so that old and new log-probabilities of a rollout
    are of the same inputs; the networks' first layers are rewritten with them (:func:`keep_outputs`). In the first rollout
    observations are not standardised: nothing has been seen. Its statistics are taken before the first update, and its
    log-probabilities are those of the same weights with them.

    :param space: of the observations; a ``Dict`` is treated part by part
    """

    is_frozen: th.Tensor

    def __init__(self, space: spaces.Space):
        super().__init__()
        self._keys = normalized_keys(space)
        self.register_buffer("is_frozen", th.zeros((), dtype=th.bool))
        self.moments = nn.ModuleList(RunningMoments(parts_of(space)[key].shape) for key in self._keys)

    def forward(self, obs: Any) -> Any:
        """
        :param obs: preprocessed observations, (n, ...); a dictionary of them for a ``Dict`` space
        """
        if not isinstance(obs, dict):
            return self.moments[0](obs)
        moments = dict(zip(self._keys, self.moments, strict=True))
        return {key: moments[key](value) if key in moments else value for key, value in obs.items()}

    def shift_and_scale(self) -> tuple[th.Tensor, th.Tensor]:
        """What is subtracted from flattened observations and what they are divided by, in double precision."""
        moments: Any = self.moments
        means = [part.mean.double().flatten() for part in moments]
        return th.cat(means), th.cat([(part.variance.double() + EPSILON).sqrt().flatten() for part in moments])

    @property
    def is_new(self) -> bool:
        """Whether it will have statistics, and has none yet."""
        return not self.is_frozen and all(moments.count == 0 for moments in self.moments)

    @th.no_grad()
    def update(self, obs: Any) -> None:
        """
        :param obs: (n, ...) observations as the environment gave them; a dictionary of them for a ``Dict`` space
        """
        if self.is_frozen:
            return
        parts = parts_of(obs)
        for key, moments in zip(self._keys, self.moments, strict=True):
            moments.update(parts[key])  # type: ignore[operator]


@th.no_grad()
def keep_outputs(layers: Iterable[nn.Linear], before: tuple[th.Tensor, th.Tensor], now: tuple[th.Tensor, th.Tensor]) -> None:
    """
    Rewrite layers that see standardised observations, so that other statistics change none of their outputs (those of clipped
    observations excepted).

    :param before: shift and scale of the observations so far, see :meth:`ObservationNormalizer.shift_and_scale`
    :param now: from now on
    """
    (old_shift, old_scale), (shift, scale) = before, now
    growth, move = scale / old_scale, (shift - old_shift) / old_scale
    # What has hardly varied so far was clipped wherever it did: its weights mean nothing yet
    is_known = growth <= CLIP
    growth, move = th.where(is_known, growth, 1.0), th.where(is_known, move, 0.0)
    for layer in layers:
        weight = layer.weight.double()
        if layer.bias is not None:
            layer.bias.add_((weight @ move).to(layer.bias.dtype))
        layer.weight.copy_(weight * growth)


def normalized_keys(space: spaces.Space) -> list[str | None]:
    """Keys of a ``Dict`` space whose parts are vectors of numbers; [None] for such a space itself; else empty."""
    parts = parts_of(space).items()
    return [key for key, part in parts if isinstance(part, spaces.Box) and not is_image_space(part)]
