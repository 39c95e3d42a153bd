"""SB3's actor-critic policies with a critic of the costs beside the critic of the reward."""

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule, TensorDict
from torch import nn

from sb3_cpo.action_range import RangeLinear, action_range
from sb3_cpo.observation_normalizer import ObservationNormalizer, keep_outputs, normalized_keys
from sb3_cpo.standardized_head import StandardizedLinear


class CostActorCriticPolicy(ActorCriticPolicy):
    """
    Actor, reward critic and cost critic.

    All arguments of SB3's ``ActorCriticPolicy``, and ``net_arch=dict(pi=..., vf=..., cvf=...)``, where ``cvf`` are the hidden
    layers of the cost critic (those of ``vf`` when absent). The cost critic is a network of its own, with one output per
    constraint. It has its own features extractor when ``share_features_extractor=False``.

    The cost critic is fitted to standardised targets (an episode's cost may be 0.1 or 1000); :meth:`predict_cost_values` gives
    values in units of the cost.

    :param log_std_init: Logarithm of the first standard deviation of the actions, in their unit, as in SB3. None: by the
        range of an action, half of the way from its centre to its ends, more with fewer than six dimensions; means begin at
        the centre and are learned in the unit of the range. (With gSDE, and where actions have no range: SB3's.)
    :param n_costs: Number of constraints. The algorithm fills it in. With 0 there is no cost critic.
    :param normalize_observations: Standardise observations by their running mean and variance, which are part of the policy's
        parameters. The algorithm fills it in: it does where the observations are vectors and no ``VecNormalize`` does
    :param standardize_returns: Fit the reward critic to standardised returns too. The algorithm fills it in
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        log_std_init: float | None = None,
        n_costs: int = 0,
        normalize_observations: bool = False,
        standardize_returns: bool = False,
        **kwargs: Any,
    ):
        self.n_costs = n_costs
        self.standardize_returns = standardize_returns
        self._has_std_by_range = log_std_init is None
        self.normalize_observations = normalize_observations and bool(normalized_keys(observation_space))
        kwargs["log_std_init"] = 0.0 if log_std_init is None else log_std_init
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        # SB3 leaves the first two out: a policy saved alone would come back with other extractors and other preprocessing
        data.update(
            share_features_extractor=self.share_features_extractor,
            normalize_images=self.normalize_images,
            n_costs=self.n_costs,
            normalize_observations=self.normalize_observations,
            standardize_returns=self.standardize_returns,
        )
        if self._has_std_by_range:
            data["log_std_init"] = None
        return data

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self._has_std_by_range and isinstance(self.action_dist, DiagGaussianDistribution):
            self._use_range_of_actions()
        if self.standardize_returns:
            head = StandardizedLinear(self.value_net.in_features, 1)
            head.forget()
            self.value_net = head
        if self.n_costs > 0:
            # The random numbers that the rest of training draws stay those of SB3
            with th.random.fork_rng(devices=[]):
                self._build_cost_critic()
        if self.normalize_observations:
            self.observation_normalizer = ObservationNormalizer(self.observation_space)
            # Whatever the actor and the critics see comes through these; modules that share one see it once
            extractors = [module for name, module in self.named_children() if name.endswith("features_extractor")]
            for extractor in dict.fromkeys(extractors):
                extractor.register_forward_pre_hook(self._normalize)
        kwargs = dict(self.optimizer_kwargs)
        if self.optimizer_class is th.optim.Adam and not {"fused", "foreach"} & set(kwargs):
            # All parameters in one pass: the critics take hundreds of small steps per update
            kwargs["fused"] = True
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    def _use_range_of_actions(self) -> None:
        centre, half_range, first_std = action_range(self.action_space)  # type: ignore[arg-type]
        self.action_net: nn.Module = RangeLinear(self.action_net, centre, half_range)  # type: ignore[arg-type]
        with th.no_grad():
            self.log_std.copy_(first_std.log())

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        SB3's, bit for bit: actions, values and log-probabilities. Of a Gaussian, torch's distribution is not made: with a
        hundred copies, making and checking it takes a quarter of the time of the whole.
        """
        is_gaussian = type(self.action_dist) is DiagGaussianDistribution
        is_own = type(self)._get_action_dist_from_latent is not ActorCriticPolicy._get_action_dist_from_latent
        if not is_gaussian or is_own or deterministic or not self.share_features_extractor:
            return super().forward(obs, deterministic)
        latent_pi, latent_vf = self.mlp_extractor(self.extract_features(obs))
        values, mean, std = self.value_net(latent_vf), self.action_net(latent_pi), self.log_std.exp()
        actions = mean + th.empty_like(mean).normal_() * std
        log_prob = (-((actions - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))).sum(dim=1)
        if log_prob.isnan().any():
            # torch's distribution says what is wrong, unless its checks are switched off
            super().forward(obs)
            raise ValueError("the policy's actions are NaN: its parameters or the observations are not finite (parameter loc)")
        return actions.reshape(-1, *self.action_space.shape), values, log_prob  # type: ignore[misc]

    def _normalize(self, extractor: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.observation_normalizer(args[0]), *args[1:])

    @property
    def lacks_observation_statistics(self) -> bool:
        """Whether observations are to be standardised and none have been seen."""
        return self.normalize_observations and self.observation_normalizer.is_new

    def update_observation_statistics(self, observations: Any) -> None:
        """
        Take a rollout's observations into the running statistics, if there are any, between two updates.

        All but the first ones change no action and no value, since the networks' first layers are rewritten (where these see
        the observations themselves: with SB3's ``FlattenExtractor``; elsewhere they do change the policy, less and less).

        :param observations: (n, ...), a dictionary of arrays for a ``Dict`` space
        """
        if not self.normalize_observations:
            return
        normalizer = self.observation_normalizer
        first_layers = () if normalizer.is_new else self._first_layers()
        before = normalizer.shift_and_scale() if first_layers else None
        normalizer.update(observations)
        if before is not None:
            keep_outputs(first_layers, before, normalizer.shift_and_scale())

    def _first_layers(self) -> list[nn.Linear]:
        """The layers that see the standardised observations; none where others stand between."""
        extractors = [module for name, module in self.named_children() if name.endswith("features_extractor")]
        if not all(type(extractor) is FlattenExtractor for extractor in extractors):
            return []
        heads = [
            (getattr(self.mlp_extractor, "policy_net", None), self.action_net),
            (getattr(self.mlp_extractor, "value_net", None), self.value_net),
        ]
        if self.n_costs > 0:
            heads.append((self.cost_mlp_extractor, self.cost_value_net))
        layers: list[Any] = [
            network[0] if isinstance(network, nn.Sequential) and len(network) else head for network, head in heads
        ]
        is_known = all(isinstance(layer, nn.Linear) and layer.in_features == self.features_dim for layer in layers)
        # The noise of gSDE is made of what the last layer sees
        is_known = is_known and not (self.use_sde and layers[0] is self.action_net)
        return layers if is_known else []

    def _build_cost_critic(self) -> None:
        if self.share_features_extractor:
            self.cvf_features_extractor = self.features_extractor
        else:
            self.cvf_features_extractor = self.make_features_extractor()
        layers = self.net_arch.get("cvf", self.net_arch.get("vf", [])) if isinstance(self.net_arch, dict) else self.net_arch
        self.cost_mlp_extractor = nn.Sequential(*create_mlp(self.features_dim, -1, list(layers), self.activation_fn))
        self.cost_value_net = StandardizedLinear(layers[-1] if layers else self.features_dim, self.n_costs)
        if self.ortho_init:
            self.cost_mlp_extractor.apply(lambda module: self.init_weights(module, gain=np.sqrt(2)))
            if not self.share_features_extractor:
                self.cvf_features_extractor.apply(lambda module: self.init_weights(module, gain=np.sqrt(2)))
        self.cost_value_net.forget()

    def reset_cost_critic(self) -> None:
        """Forget what was learned of the costs: the cost critic and its statistics begin anew."""
        with th.random.fork_rng(devices=[]):
            fresh = type(self)(**{**self._get_constructor_parameters(), "lr_schedule": lambda _: 1.0})
        extractor = () if self.share_features_extractor else ("cvf_features_extractor",)
        names = ("cost_mlp_extractor", "cost_value_net", *extractor)
        state = {name: value for name, value in fresh.state_dict().items() if name.startswith(names)}
        self.load_state_dict(state, strict=False)
        for name, param in self.named_parameters():
            if name.startswith(names):
                self.optimizer.state.pop(param, None)

    def extract_cost_features(self, obs: PyTorchObs) -> th.Tensor:
        return super(ActorCriticPolicy, self).extract_features(obs, self.cvf_features_extractor)

    def predict_standardised_cost_values(self, obs: PyTorchObs) -> th.Tensor:
        """The cost critic's raw outputs, (batch_size, n_costs): what its loss compares with :meth:`standardise_costs`."""
        return self.predict_standardised_from_features(self.extract_cost_features(obs))

    def predict_standardised_from_features(self, features: th.Tensor) -> th.Tensor:
        return self.cost_value_net.standardized(self.cost_mlp_extractor(features))

    def predict_cost_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        The cost still to come, for each constraint, with the discount of the cost advantages.

        :param obs: Observation
        :return: (batch_size, n_costs), in units of the costs
        """
        return self.cost_value_net(self.cost_mlp_extractor(self.extract_cost_features(obs)))

    def standardise_costs(self, cost_returns: th.Tensor) -> th.Tensor:
        return self.cost_value_net.standardize(cost_returns)

    def update_cost_statistics(self, cost_returns: th.Tensor) -> None:
        """
        Take new targets of the cost critic into its statistics; no prediction changes.

        :param cost_returns: (n, n_costs)
        """
        self.cost_value_net.update(cost_returns)


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
