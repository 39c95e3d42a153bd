"""SB3's actor-critic policies with a critic of the costs beside the critic of the reward."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule, TensorDict
from torch import nn


class CostActorCriticPolicy(ActorCriticPolicy):
    """
    Actor, reward critic and cost critic.

    All arguments of SB3's ``ActorCriticPolicy``, and ``net_arch=dict(pi=..., vf=..., cvf=...)``, where ``cvf`` are the hidden
    layers of the cost critic (those of ``vf`` when absent). The cost critic is a network of its own, with one output per
    constraint. It has its own features extractor when ``share_features_extractor=False``.

    The cost critic's outputs are standardised by ``cost_value_mean`` and ``cost_value_std``, running statistics of its
    targets (an episode's cost may be 0.1 or 1000); :meth:`predict_cost_values` gives values in units of the cost.

    :param n_costs: Number of constraints. The algorithm fills it in. With 0 the policy is SB3's.
    """

    cost_value_mean: th.Tensor
    cost_value_std: th.Tensor
    cost_value_count: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        n_costs: int = 0,
        **kwargs: Any,
    ):
        self.n_costs = n_costs
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # SB3 leaves the first two out: a policy saved alone would come back with other extractors and other preprocessing
        data.update(
            share_features_extractor=self.share_features_extractor,
            normalize_images=self.normalize_images,
            n_costs=self.n_costs,
        )
        return data

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.n_costs == 0:
            return
        # The random numbers that the rest of training draws stay those of SB3
        with th.random.fork_rng(devices=[]):
            self._build_cost_critic()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _build_cost_critic(self) -> None:
        if self.share_features_extractor:
            self.cvf_features_extractor = self.features_extractor
        else:
            self.cvf_features_extractor = self.make_features_extractor()
        layers = self.net_arch.get("cvf", self.net_arch.get("vf", [])) if isinstance(self.net_arch, dict) else self.net_arch
        self.cost_mlp_extractor = nn.Sequential(*create_mlp(self.features_dim, -1, list(layers), self.activation_fn))
        self.cost_value_net = nn.Linear(layers[-1] if layers else self.features_dim, self.n_costs)
        if self.ortho_init:
            self.cost_mlp_extractor.apply(lambda module: self.init_weights(module, gain=np.sqrt(2)))
            self.init_weights(self.cost_value_net, gain=1)
            if not self.share_features_extractor:
                self.cvf_features_extractor.apply(lambda module: self.init_weights(module, gain=np.sqrt(2)))
        self.register_buffer("cost_value_mean", th.zeros(self.n_costs))
        self.register_buffer("cost_value_std", th.ones(self.n_costs))
        self.register_buffer("cost_value_count", th.zeros(()))

    def reset_cost_critic(self) -> None:
        """Forget what was learned of the costs: the cost critic and its statistics begin anew."""
        with th.random.fork_rng(devices=[]):
            fresh = type(self)(**{**self._get_constructor_parameters(), "lr_schedule": lambda _: 1.0})
        extractor = () if self.share_features_extractor else ("cvf_features_extractor",)
        names = ("cost_mlp_extractor", "cost_value_net", "cost_value_mean", "cost_value_std", "cost_value_count", *extractor)
        state = {name: value for name, value in fresh.state_dict().items() if name.startswith(names)}
        self.load_state_dict(state, strict=False)
        for name, param in self.named_parameters():
            if name.startswith(names):
                self.optimizer.state.pop(param, None)

    def extract_cost_features(self, obs: PyTorchObs) -> th.Tensor:
        return super(ActorCriticPolicy, self).extract_features(obs, self.cvf_features_extractor)

    def predict_standardised_cost_values(self, obs: PyTorchObs) -> th.Tensor:
        """The cost critic's raw outputs, (batch_size, n_costs): what its loss compares with :meth:`standardise_costs`."""
        return self.cost_value_net(self.cost_mlp_extractor(self.extract_cost_features(obs)))

    def predict_cost_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        The cost still to come, for each constraint, with the discount of the cost advantages.

        :param obs: Observation
        :return: (batch_size, n_costs), in units of the costs
        """
        return self.predict_standardised_cost_values(obs) * self.cost_value_std + self.cost_value_mean

    def standardise_costs(self, cost_returns: th.Tensor) -> th.Tensor:
        return (cost_returns - self.cost_value_mean) / self.cost_value_std

    @th.no_grad()
    def update_cost_statistics(self, cost_returns: th.Tensor) -> None:
        """
        Take new targets into the running statistics, and rewrite the output layer so that no prediction changes
        (van Hasselt et al., 2016, "Learning values across many orders of magnitude").

        :param cost_returns: targets of the cost critic, (n, n_costs)
        """
        old_mean, old_std = self.cost_value_mean.clone(), self.cost_value_std.clone()
        # Old batches count for at most nine tenths: the targets move with the policy
        weight = 1.0 / min(float(self.cost_value_count) + 1.0, 10.0)
        mean, variance = cost_returns.mean(dim=0), cost_returns.var(dim=0, unbiased=False)
        shift = mean - old_mean
        # A standard deviation of exactly 1 stands for no spread so far, and must not count as one
        old_variance = th.where(old_std == 1, th.zeros_like(old_std), old_std**2)
        new_variance = (1 - weight) * (old_variance + weight * shift**2) + weight * variance
        self.cost_value_mean += weight * shift
        # A cost that never occurs has no spread; its targets are then left unscaled
        self.cost_value_std.copy_(th.where(new_variance > 1e-12, new_variance.sqrt(), th.ones_like(old_std)))
        self.cost_value_count += 1
        self.cost_value_net.weight *= (old_std / self.cost_value_std).unsqueeze(1)
        self.cost_value_net.bias.copy_(
            (self.cost_value_net.bias * old_std + old_mean - self.cost_value_mean) / self.cost_value_std
        )


class CostActorCriticCnnPolicy(CostActorCriticPolicy):
    """:class:`CostActorCriticPolicy` for images, with SB3's ``NatureCNN``."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, *args, features_extractor_class=features_extractor_class, **kwargs
        )


class CostMultiInputActorCriticPolicy(CostActorCriticPolicy):
    """:class:`CostActorCriticPolicy` for dictionary observations, with SB3's ``CombinedExtractor``."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, lr_schedule, *args, features_extractor_class=features_extractor_class, **kwargs
        )


def parameters_that_fit(
    load_path_or_dict: str | TensorDict, optimizer: th.optim.Optimizer, device: th.device | str = "auto"
) -> dict[str, Any]:
    """
    Parameters of another model, PPO's for instance, without the state of an optimizer that has other parameters.

    :param load_path_or_dict: a saved model, or what ``get_parameters`` gives
    :param optimizer: of the policy that takes them
    """
    if isinstance(load_path_or_dict, dict):
        params: dict[str, Any] = dict(load_path_or_dict)
    else:
        params = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1]
    if "policy.optimizer" in params and not _fits(params["policy.optimizer"], optimizer):
        del params["policy.optimizer"]
    return params


def _fits(state: dict[str, Any], optimizer: th.optim.Optimizer) -> bool:
    """Whether the saved state of an optimizer, Adam's moments for instance, has the shapes of the parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if len(params) != len(indices):
        return False
    return all(
        value.shape == param.shape
        for index, param in zip(indices, params, strict=True)
        for value in state["state"].get(index, {}).values()
        if isinstance(value, th.Tensor) and value.ndim > 0
    )


MlpPolicy = CostActorCriticPolicy
CnnPolicy = CostActorCriticCnnPolicy
MultiInputPolicy = CostMultiInputActorCriticPolicy

__all__ = [
    "CnnPolicy",
    "CostActorCriticCnnPolicy",
    "CostActorCriticPolicy",
    "CostMultiInputActorCriticPolicy",
    "MlpPolicy",
    "MultiInputPolicy",
]
