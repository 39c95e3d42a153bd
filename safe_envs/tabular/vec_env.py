"""Many copies of one tabular CMDP, stepped together: SB3 trains on them in seconds."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from safe_envs.tabular.cmdp import TabularCMDP
from safe_envs.tabular.env import TabularEnv, cost_info


class TabularVecEnv(VecEnv):
    """
    ``n_envs`` copies of :class:`~safe_envs.tabular.TabularEnv`. The laws of the episodes are the same, the draws are not:
    all copies share one generator.

    :param cost_names: as in ``TabularEnv``
    """

    actions: np.ndarray
    render_mode = None

    def __init__(
        self, cmdp: TabularCMDP, n_envs: int, seed: int | None = None, cost_names: Sequence[str] | None = None
    ) -> None:
        env = TabularEnv(cmdp, cost_names)
        super().__init__(n_envs, env.observation_space, env.action_space)
        self.cmdp = cmdp
        self.cost_names = cost_names
        self.cost_limit = env.cost_limit
        self.cumulative = env.cumulative
        self.rng = np.random.default_rng(seed)
        self.states = np.zeros(n_envs, dtype=np.int64)
        self.returns = np.zeros(n_envs)
        self.lengths = np.zeros(n_envs, dtype=np.int64)

    def reset(self) -> np.ndarray:
        # SB3's convention: seed() fills _seeds, and the next reset uses them.
        if self._seeds[0] is not None:
            self.rng = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._start(np.arange(self.num_envs))
        return self.states.copy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        rewards = self.cmdp.rewards[self.states, self.actions]
        costs = self.cmdp.costs[:, self.states, self.actions].T
        self.returns += rewards
        self.lengths += 1
        draws = self.rng.random((self.num_envs, 1))
        next_states = (draws >= self.cumulative[self.states, self.actions]).sum(axis=1)
        dones = next_states == self.cmdp.n_states
        infos: list[dict[str, Any]] = [{**cost_info(row, self.cost_names), "TimeLimit.truncated": False} for row in costs]
        over = np.flatnonzero(dones)
        for i in over.tolist():
            infos[i]["terminal_observation"] = self.states[i]
            infos[i]["episode"] = {"r": float(self.returns[i]), "l": int(self.lengths[i]), "t": 0.0}
        self.states = next_states
        self._start(over)
        return self.states.copy(), rewards.astype(np.float32), dones, infos

    def _start(self, indices: np.ndarray) -> None:
        self.states[indices] = self.rng.choice(self.cmdp.n_states, size=len(indices), p=self.cmdp.initial)
        self.returns[indices] = 0.0
        self.lengths[indices] = 0

    def get_checkpoint_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for checkpoints of a training."""
        names = ("states", "returns", "lengths", "rng", "_seeds", "_options")
        return {name: deepcopy(vars(self)[name]) for name in names}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(deepcopy(state))

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("The copies share their attributes")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise NotImplementedError("The copies have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
