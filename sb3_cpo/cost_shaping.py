"""Learned cost shaping: a bonus on the costs for states from which a cost is near (Achiam et al., 2017, section 6.3)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.nn import functional as F

from sb3_cpo import distributed
from sb3_cpo.buffers import CostRolloutBuffer, parts_of, slice_observations


def coming_costs(costs: np.ndarray, episode_ends: np.ndarray, horizon: int) -> np.ndarray:
    """
    Whether any cost occurs in the steps t .. t + horizon - 1 of the same episode, this step included.

    :param costs: (n_steps, n_envs, n_costs)
    :param episode_ends: (n_steps, n_envs)
    :return: booleans, shape of the costs
    """
    labels = np.zeros(costs.shape, dtype=bool)
    steps_to_cost = np.full(costs.shape[1:], horizon)
    for step in reversed(range(len(costs))):
        steps_to_cost = np.where(episode_ends[step][:, None], horizon, steps_to_cost + 1)
        steps_to_cost = np.where(costs[step] > 0, 0, steps_to_cost)
        labels[step] = steps_to_cost < horizon
    return labels


class FailurePredictor:
    """
    Predicts whether a cost is near, and adds the probability to the cost: ``c+ = c + coef * P(obs)`` (equation 15).

    The bonus of a batch comes from the predictor fitted on *earlier* batches; the first two batches have none.

    :param horizon: steps ahead in which a cost counts (paper: 5 for Point-Circle, 20 elsewhere)
    :param coef: weight of the bonus (paper: 1; 0.01 in Ant-Gather)
    :param n_updates: full-batch Adam steps per iteration, fewer when the loss no longer moves (paper: 25; 10 in Ant-Gather)
    :param learning_rate: of Adam
    :param hidden: units of the hidden layer
    :param paper_init: begin with the outputs of an untrained network (0.3 to 0.75), as published; summed over an episode of
        500 steps they swamp a limit of 10 for tens of iterations. Otherwise the outputs begin near 0.01
    """

    def __init__(
        self,
        horizon: int = 20,
        coef: float | Sequence[float] = 1.0,
        n_updates: int = 25,
        learning_rate: float = 1e-3,
        hidden: int = 32,
        paper_init: bool = False,
    ):
        if horizon < 1 or int(horizon) != horizon:
            raise ValueError(f"horizon must be a whole number of steps, at least 1, not {horizon}")
        if n_updates < 1:
            raise ValueError(f"n_updates must be at least 1, not {n_updates}")
        if not (np.isfinite(coef).all() and (np.asarray(coef) >= 0).all()):
            raise ValueError(f"coef must be finite and not negative, not {coef}")
        self.horizon = horizon
        self.coef = coef
        self.n_updates = n_updates
        self.learning_rate = learning_rate
        self.hidden = hidden
        self.paper_init = paper_init
        self.n_batches = 0
        self._network: nn.Sequential | None = None

    def setup(self, observation_space: spaces.Space, n_costs: int, device: th.device) -> None:
        """
        Build the network, or bring a restored one to the device. The algorithm calls it.

        :raises ValueError: the predictor belongs to a problem with other observations or another number of costs
        """
        self._observation_space, self._device = observation_space, device
        n_features = sum(get_flattened_obs_dim(space) for space in parts_of(observation_space).values())
        if self._network is None:
            self._network = nn.Sequential(
                nn.Linear(n_features, self.hidden), nn.Sigmoid(), nn.Linear(self.hidden, n_costs), nn.Sigmoid()
            )
            if not self.paper_init:
                nn.init.constant_(self._network[2].bias, -5.0)  # type: ignore[arg-type]
        shape = (self._network[0].in_features, self._network[2].out_features)
        if shape != (n_features, n_costs):
            raise ValueError(
                f"this FailurePredictor was made for {shape[0]} features and {shape[1]} costs, "
                f"not for {n_features} and {n_costs}: give each model its own"
            )
        self._network.to(device)
        self._make_optimizer()

    def copy_from_first(self) -> None:
        """On several processes, all begin with the network of the first one."""
        assert self._network is not None
        distributed.copy_from_first(self._network)

    def __getstate__(self) -> dict[str, Any]:
        """Independent of the device: a model saved on a GPU loads on a CPU."""
        state = dict(self.__dict__)
        if self._network is not None:
            state["_network"] = deepcopy(self._network).cpu()
            state["_optimizer_state"] = state.pop("_optimizer").state_dict()
            state["_device"] = th.device("cpu")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy goes on where the original is, on the CPU until ``setup`` says otherwise."""
        self.__dict__.update(state)
        if self._network is not None:
            self._make_optimizer()

    def _make_optimizer(self) -> None:
        assert self._network is not None
        before: th.optim.Optimizer | None = self.__dict__.get("_optimizer")
        state = self.__dict__.pop("_optimizer_state", None if before is None else before.state_dict())
        self._optimizer = th.optim.Adam(self._network.parameters(), lr=self.learning_rate)
        if state is not None:
            self._optimizer.load_state_dict(state)

    def _features(self, obs: Any) -> th.Tensor:
        tensors, parts = parts_of(obs_as_tensor(obs, self._device)), parts_of(self._observation_space)
        return th.cat([preprocess_obs(tensors[key], space).flatten(1) for key, space in parts.items()], dim=1)  # type: ignore[union-attr]

    def add_bonus(self, buffer: CostRolloutBuffer, n_steps: int) -> np.ndarray:
        """
        Add the bonus to the costs of the buffer's first steps.

        :return: the bonus, (n_steps, n_envs, n_costs)
        """
        obs = slice_observations(buffer.flat_observations(), slice(n_steps * buffer.n_envs))
        buffer.cost_bonus = np.zeros_like(buffer.costs)
        buffer.cost_bonus[:n_steps] = self.bonus(obs).reshape(buffer.costs[:n_steps].shape)
        return buffer.cost_bonus[:n_steps]

    def fit_to(self, buffer: CostRolloutBuffer) -> float:
        """Fit to the costs of a rollout; return the loss before the last step."""
        labels = coming_costs(buffer.costs, buffer.episode_ends, self.horizon)
        return self.fit(buffer.flat_observations(), labels.reshape(-1, buffer.n_costs))

    @th.no_grad()
    def bonus(self, obs: Any) -> np.ndarray:
        """
        What is added to the costs.

        :param obs: (n, ...) observations, as in the buffer
        :return: (n, n_costs); zeros until the predictor has seen two batches
        """
        assert self._network is not None
        probabilities = self._network(self._features(obs)).cpu().numpy().astype(np.float64)
        return np.asarray(self.coef) * probabilities * (self.n_batches >= 2)

    def fit(self, obs: Any, labels: np.ndarray) -> float:
        """
        Fit to one batch, mean squared error.

        :param obs: (n, ...) observations
        :param labels: (n, n_costs), see :func:`coming_costs`
        :return: loss before the last step
        """
        assert self._network is not None
        features = self._features(obs)
        targets = th.as_tensor(labels, dtype=th.float32, device=self._device)
        previous = np.inf
        for _ in range(self.n_updates):
            loss = F.mse_loss(self._network(features), targets)
            self._optimizer.zero_grad()
            loss.backward()
            distributed.average_gradients(self._network.parameters())
            self._optimizer.step()
            present = distributed.mean(loss.detach()).item()
            if abs(previous - present) < 1e-6:
                break
            previous = present
        self.n_batches += 1
        return present
