"""A vectorised environment of gymnasium as one of SB3's."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

OF_THE_END = ("final_obs", "final_observation", "final_info")


class GymnasiumVecEnv(VecEnv):
    """
    ``gym.make_vec(...)`` for SB3. The algorithms here put it around a ``gymnasium.vector.VectorEnv`` by themselves.

    gymnasium's ``infos`` is a dictionary of arrays with one entry per copy (and masks, where only some copies have the key);
    SB3's is a list of dictionaries, one per copy. Where episodes end, SB3 expects the first observation of the next one, and
    the last one and its ``info`` beside it: the copies must be reset in the step that ends their episode, or by us. Last
    observations are those under ``final_obs``, or ``final_observation`` as in gymnasium 0.29. Tensors become arrays.

    :param venv: its ``autoreset_mode`` is ``SAME_STEP`` or ``DISABLED``. With ``NEXT_STEP``, gymnasium's default, a
        ``SyncVectorEnv`` or ``AsyncVectorEnv``: these let us reset single copies before they do it themselves
    :raises ValueError: another one with ``NEXT_STEP``: an episode would have a step more, without action
    """

    def __init__(self, venv: gym.vector.VectorEnv):
        self.venv = venv
        mode = getattr(venv.unwrapped, "autoreset_mode", None) or venv.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self.autoreset_mode = AutoresetMode(mode)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and not _resets_single_copies(venv.unwrapped):
            raise ValueError(
                f"{venv} resets its copies in the step after the end of an episode (autoreset_mode=AutoresetMode.NEXT_STEP); "
                "SB3 wants that in the same step: make it with autoreset_mode=AutoresetMode.SAME_STEP, if it takes that, or "
                'take gym.make_vec(id, num_envs=8, vectorization_mode="sync"), which can be passed as it is'
            )
        super().__init__(venv.num_envs, venv.single_observation_space, venv.single_action_space)
        self._actions: np.ndarray | None = None

    def reset(self) -> VecEnvObs:
        seeds: Any = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        options = self._options[0] if self._options and self._options[0] else None
        observations, infos = self.venv.reset(seed=seeds, options=options)
        self.reset_infos = split_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return _to_numpy(observations)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, terminated, truncated, infos = map(_to_numpy, self.venv.step(self._actions))
        terminated, truncated = np.asarray(terminated, dtype=bool), np.asarray(truncated, dtype=bool)
        dones = terminated | truncated
        rows = split_infos(infos, self.num_envs)
        for index in np.flatnonzero(dones).tolist():
            row = rows[index]
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                # The row is of the reset, with the end of the episode beside it
                self.reset_infos[index] = {key: value for key, value in row.items() if key not in OF_THE_END}
                rows[index] = dict(row.get("final_info") or row)
                last = row.get("final_obs", row.get("final_observation"))
                if last is not None:
                    rows[index]["terminal_observation"] = last
            else:
                row["terminal_observation"] = _entry(observations, index)
        for index, row in enumerate(rows):
            row["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        if self.autoreset_mode != AutoresetMode.SAME_STEP and dones.any():
            observations, infos = map(_to_numpy, self.venv.reset(options={"reset_mask": dones}))
            for index, row in enumerate(split_infos(infos, self.num_envs)):
                if dones[index]:
                    self.reset_infos[index] = row
        return observations, np.asarray(rewards, dtype=np.float32), dones, rows

    def close(self) -> None:
        self.venv.close()

    def has_attr(self, attr_name: str) -> bool:
        inner: Any = self.venv.unwrapped
        # A copy in another process does not survive being asked for what it has not
        if isinstance(inner, AsyncVectorEnv):
            return all(inner.call("has_wrapper_attr", attr_name))
        return super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        inner: Any = self.venv.unwrapped
        # nor for what cannot be pickled: the spec may hold a user's lambda
        if attr_name == "spec" and isinstance(inner, AsyncVectorEnv):
            return [inner.spec for _ in self._get_indices(indices)]
        if hasattr(inner, "get_attr"):  # of the copies
            values = inner.get_attr(attr_name)
        else:
            values = [getattr(self.venv, attr_name)] * self.num_envs
        return [values[index] for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError("attributes of gymnasium's vectorised environments are set on them")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        inner: Any = self.venv.unwrapped
        results = inner.call(method_name, *args, **kwargs)
        return [results[index] for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        images: Any = self.venv.render()
        return list(images) if images is not None else [None] * self.num_envs


def _resets_single_copies(venv: Any) -> bool:
    """Whether a copy that was reset with ``reset_mask`` is not reset once more in the next step."""
    # Workers without shared memory forget that they were
    return isinstance(venv, SyncVectorEnv) or (isinstance(venv, AsyncVectorEnv) and venv.shared_memory)


def split_infos(infos: dict[str, Any] | list[dict[str, Any]], n_envs: int) -> list[dict[str, Any]]:
    """
    Arrays per copy to a dictionary per copy.

    :param infos: arrays (or tensors, or such dictionaries) whose first axis is the copy, each with a mask ``_key`` where only
        some copies have it. What has no such axis is that of all copies. Or a dictionary per copy already (``DictInfoToList``)
    """
    if isinstance(infos, list):
        return [dict(info) for info in infos]
    rows: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        columns = split_infos(value, n_envs) if isinstance(value, dict) else value
        is_per_copy = isinstance(value, dict) or (
            hasattr(value, "__len__") and not isinstance(value, str) and len(value) == n_envs
        )
        for index, row in enumerate(rows):
            if mask is None or mask[index]:
                row[key] = columns[index] if is_per_copy else value
    return rows


def _to_numpy(value: Any) -> Any:
    """Tensors of simulators that compute on a GPU, in dictionaries too; other values as they are."""
    if isinstance(value, dict):
        return {key: _to_numpy(entry) for key, entry in value.items()}
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _entry(observations: Any, index: int) -> Any:
    """The observation of one copy, of a batch that the environment may write into again."""
    if isinstance(observations, dict):
        return {key: _entry(value, index) for key, value in observations.items()}
    return np.array(observations[index])
