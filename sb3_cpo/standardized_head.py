"""The output layer of a critic that is fitted to standardised targets, whatever their unit."""

import torch as th
from torch import nn

from sb3_cpo import distributed

# Of a float32 mean
RELATIVE_ROUNDING = 1e-6


class StandardizedLinear(nn.Linear):
    """
    A linear layer whose outputs are ``standardized * std + mean``, with running statistics of the targets.

    New statistics change no prediction: the layer is rewritten (van Hasselt et al., 2016, "Learning values across many orders
    of magnitude"). Before the first ones it is an ordinary linear layer. One output per signal.
    """

    mean: th.Tensor
    std: th.Tensor
    is_spread: th.Tensor
    """(out_features,) whether the targets have varied; where they have not, ``std`` is 1 and is no measurement."""
    count: th.Tensor

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.register_buffer("mean", th.zeros(out_features))
        self.register_buffer("std", th.ones(out_features))
        self.register_buffer("is_spread", th.zeros(out_features, dtype=th.bool))
        self.register_buffer("count", th.zeros(()))

    def forget(self) -> None:
        """No opinion before any targets were seen: a random one of 0.5, say, is large or small depending on their unit."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """(n, out_features) in the unit of the targets."""
        return self.standardized(features) * self.std + self.mean

    def standardized(self, features: th.Tensor) -> th.Tensor:
        """What the loss compares with :meth:`standardize`."""
        return super().forward(features)

    def standardize(self, targets: th.Tensor) -> th.Tensor:
        return (targets - self.mean) / self.std

    @th.no_grad()
    def update(self, targets: th.Tensor) -> None:
        """
        Take new targets into the statistics.

        :param targets: (n, out_features)
        """
        old_mean, old_std = self.mean.clone(), self.std.clone()
        # Old batches count for at most nine tenths: the targets move with the policy
        weight = 1.0 / min(float(self.count) + 1.0, 10.0)
        mean, variance, _ = distributed.moments(targets)
        shift = mean - old_mean
        old_variance = th.where(self.is_spread, old_std**2, th.zeros_like(old_std))
        new_variance = (1 - weight) * (old_variance + weight * shift**2) + weight * variance
        self.mean += weight * shift
        # A target that is always the same has no spread but for rounding; it is then left unscaled
        self.is_spread.copy_(new_variance > (RELATIVE_ROUNDING * self.mean) ** 2)
        self.std.copy_(th.where(self.is_spread, new_variance.sqrt(), th.ones_like(old_std)))
        self.count += 1
        if self.count == 1 and not self.weight.any() and not self.bias.any():
            # A critic that has no opinion yet says the mean
            return
        self.weight *= (old_std / self.std).unsqueeze(1)
        self.bias.copy_((self.bias * old_std + old_mean - self.mean) / self.std)
