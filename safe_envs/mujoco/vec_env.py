"""``BatchVecEnv``: all copies of one of our tasks in one process, stepped together, as an SB3 ``VecEnv``."""

import itertools
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common import env_util
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from safe_envs.monitor_rows import write_row
from safe_envs.mujoco import vec_env_state
from safe_envs.mujoco.task import BatchedTask, Episode

# rl_zoo3 replaces gymnasium's class by a subclass when it is imported
_TimeLimit: type[TimeLimit] = next(base for base in TimeLimit.__mro__ if base.__name__ == "TimeLimit")

# What a copy's environment only knows after it has been brought up to date
_LIVE_ATTRIBUTES = ("data", "robot_state", "episode")
# What would leave the batch behind
_FORBIDDEN_METHODS = {
    "step": "call step of the BatchVecEnv",
    "reset": "call reset of the BatchVecEnv",
    "close": "call close of the BatchVecEnv",
    "add_scenery": "the batch already runs on the model",
}


class _Layers(NamedTuple):
    """What an environment was made of."""

    monitor: Monitor | None
    max_episode_steps: int | None
    task: BatchedTask


def _peel(env: gym.Env) -> _Layers:
    monitor: Monitor | None = None
    max_episode_steps: int | None = None
    layer: Any = env
    while not isinstance(layer, BatchedTask):
        if isinstance(layer, Monitor) and monitor is None:
            monitor = layer
        elif isinstance(layer, _TimeLimit):
            steps = layer._max_episode_steps
            max_episode_steps = steps if max_episode_steps is None else min(steps, max_episode_steps)
        elif not isinstance(layer, OrderEnforcing | PassiveEnvChecker):
            name = f"{type(layer).__module__}.{type(layer).__name__}"
            raise TypeError(
                f"BatchVecEnv steps the tasks of safe_envs without their wrappers and does not know {name} in {env}. "
                "Remove it, use a VecEnv wrapper instead, or take DummyVecEnv or SubprocVecEnv."
            )
        layer = layer.env
    if layer.env is not layer.unwrapped:
        raise TypeError(f"BatchVecEnv does not know {type(layer.env).__name__} between the task and the robot in {env}.")
    if monitor is not None and monitor.reset_keywords:
        raise ValueError(
            f"BatchVecEnv passes nothing to reset: Monitor(reset_keywords={monitor.reset_keywords}) cannot be filled."
        )
    return _Layers(monitor, max_episode_steps, layer)


def _describe(layers: _Layers) -> dict[str, Any]:
    """What must be equal among copies that are stepped together."""
    base: Any = layers.task.unwrapped
    arguments = getattr(base, "_arguments", None) or {"arguments": (base._ezpickle_args, base._ezpickle_kwargs)}
    return {
        "task": type(layers.task).__name__,
        **getattr(layers.task, "_saved_kwargs", {}),
        "environment": type(base).__name__,
        **arguments,
        "max_episode_steps": layers.max_episode_steps,
    }


@lru_cache(maxsize=64)
def _dict_maker(keys: tuple[str, ...]) -> Callable[..., list[dict[str, Any]]]:
    """
    A function that makes one dict per row of some columns. Like ``collections.namedtuple``, it is compiled for its keys:
    with 256 copies and more, ``dict(zip(keys, row))`` costs more than the simulation of the Point.
    """
    names = [f"value_{index}" for index in range(len(keys))]
    entries = ", ".join(f"{key!r}: {name}" for key, name in zip(keys, names, strict=True))
    rows = f"for {', '.join(names)} in zip(*columns)"
    return eval(f"lambda columns: [{{{entries}, 'TimeLimit.truncated': False}} {rows}]")


class BatchVecEnv(VecEnv):
    """
    A drop-in for ``DummyVecEnv``, for environments of ``safe_envs``: the same numbers, bit for bit, at the speed of MuJoCo.

    Physics runs through ``mujoco.batch`` on native threads, everything else in numpy over all copies at once. The copies
    must be the same task with the same arguments. ``Monitor``, ``TimeLimit``, ``OrderEnforcing`` and ``PassiveEnvChecker``
    are peeled off and done here; any other wrapper is an error. ``info["episode"]`` is written with or without a Monitor
    and holds the episode's sum of the costs beside r, l and t.

    The environments themselves are kept for rendering and for ``get_attr``; they are brought up to date when one asks.

    :param env_fns: functions that make one copy each
    :param n_threads: threads for the physics; 0: all cores, or this process's share of them under ``torchrun``
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], n_threads: int = 0):
        self.envs = [_patch_env(env_fn()) for env_fn in env_fns]
        if len({id(env.unwrapped) for env in self.envs}) != len(self.envs):
            raise ValueError("Two of the functions returned the same environment: each must make a new one (see DummyVecEnv).")
        layers = [_peel(env) for env in self.envs]
        expected = _describe(layers[0])
        for index, other in enumerate(map(_describe, layers)):
            different = [key for key in {**expected, **other} if expected.get(key, None) != other.get(key, None)]
            if different:
                key = different[0]
                raise ValueError(
                    f"BatchVecEnv steps copies of one environment, but copy {index} has {key}={other.get(key)!r} "
                    f"and copy 0 has {key}={expected.get(key)!r}."
                )
        self._monitors = [layer.monitor for layer in layers]
        self._tasks: list[BatchedTask] = [layer.task for layer in layers]
        self.task = self._tasks[0]
        self._max_episode_steps = layers[0].max_episode_steps or np.iinfo(np.int64).max
        n_envs = len(self.envs)
        self._all = np.arange(n_envs)
        self._is_running = False
        self._t_start = [time.time() if monitor is None else monitor.t_start for monitor in self._monitors]
        n_local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if n_threads == 0 and n_local_processes > 1:
            n_threads = max((os.cpu_count() or 1) // n_local_processes, 1)
        self.n_threads = n_threads or os.cpu_count() or 1
        self.simulation = self.task.make_simulation(n_envs, n_threads)
        super().__init__(n_envs, self.envs[0].observation_space, self.envs[0].action_space)
        self.metadata = self.envs[0].metadata
        self._actions = np.zeros((n_envs, *self.action_space.shape), dtype=self.action_space.dtype)  # type: ignore[misc]
        self._episode: Episode = {}
        self._rngs: list[np.random.Generator] = []
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._sums: dict[str, np.ndarray] = {}

    # Stepping

    def reset(self) -> np.ndarray:
        for env, monitor, seed in zip(self.envs, self._monitors, self._seeds, strict=True):
            if monitor is not None and not monitor.allow_early_resets and self._is_running:
                raise RuntimeError("Tried to reset an environment before done: Monitor has allow_early_resets=False.")
            gym.Env.reset(env.unwrapped, seed=seed)
        self._rngs = [env.unwrapped.np_random for env in self.envs]
        self._is_running = True
        self._episode = {}
        self._lengths[:] = 0
        # Filled in the first step, so that a CostMonitor can still be told what to watch
        self._sums = {}
        observations = self._start(self._all)
        self._reset_seeds()
        self._reset_options()
        return observations

    def _start(self, rows: np.ndarray) -> np.ndarray:
        """Begin a new episode in some copies; the result has one observation for each of them."""
        rngs = [self._rngs[row] for row in rows.tolist()]
        state = self.simulation.start(rows, *self.simulation.draw(rngs))
        variables = [self.task.begin(rng) for rng in rngs]
        new = {key: np.array([variable[key] for variable in variables]) for key in variables[0]}
        if len(rows) == self.num_envs:
            self._episode = new
        for key, value in new.items():
            self._episode[key][rows] = value
        for row in rows.tolist():
            self.reset_infos[row] = {}
        return self.task.observe(state, new)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        if not self._is_running:
            raise RuntimeError("Call reset before step.")
        state = self.simulation.step(self._actions)
        reward, cost, terminated, truncated, info, self._episode = self.task.evaluate(state, self._episode)
        observations = self.task.observe(state, self._episode)
        self._lengths += 1
        is_time_up = self._lengths >= self._max_episode_steps
        truncated = is_time_up if truncated is None else truncated | is_time_up
        dones = terminated | truncated

        columns = {"cost": cost, **info}
        if not self._sums:
            self._sums = {key: np.zeros(self.num_envs) for key in ("r", *self._cost_keys())}
        for key, total in self._sums.items():
            # What only a wrapper of this VecEnv adds to the infos is not known here; a CostMonitor writes NaN, too
            total += reward if key == "r" else columns.get(key, np.nan)
        infos = _dict_maker(tuple(columns))([column.tolist() for column in columns.values()])
        if self.simulation.is_broken is not None:
            self._log_broken(self.simulation.is_broken, infos)
        if dones.any():
            rows = np.flatnonzero(dones)
            self._end(rows, infos, observations, (truncated & ~terminated).tolist())
            observations[rows] = self._start(rows)
        return observations, reward.astype(np.float32), dones, infos

    def _cost_keys(self) -> list[str]:
        """Keys of ``info`` to sum over an episode: the cost, and what the monitors want summed."""
        wanted = [getattr(monitor, "cost_keys", None) or () for monitor in self._monitors]
        return list(dict.fromkeys(("cost", *itertools.chain(*wanted))))

    def _end(self, rows: np.ndarray, infos: list[dict[str, Any]], observations: np.ndarray, is_truncated: list[bool]) -> None:
        """Write what an ended episode leaves, as Monitor and DummyVecEnv do."""
        now = time.time()
        lengths = self._lengths[rows].tolist()
        keys = tuple(self._sums)
        sums = zip(*(total[rows].tolist() for total in self._sums.values()), strict=True)
        terminal_observations = observations[rows]
        for row, length, values, observation in zip(rows.tolist(), lengths, sums, terminal_observations, strict=True):
            info, monitor = infos[row], self._monitors[row]
            episode_time = now - self._t_start[row]
            episode = {"r": round(values[0], 6), "l": length, "t": round(episode_time, 6)}
            for key in monitor.info_keywords if monitor is not None else ():
                episode[key] = info[key]
            episode.update((key, round(value, 6)) for key, value in zip(keys[1:], values[1:], strict=True))
            if monitor is not None:
                monitor.episode_returns.append(values[0])
                monitor.episode_lengths.append(length)
                monitor.episode_times.append(episode_time)
                monitor.total_steps += length
                if monitor.results_writer is not None:
                    write_row(monitor.results_writer, episode)
            info["episode"] = episode
            info["TimeLimit.truncated"] = is_truncated[row]
            info["terminal_observation"] = observation
        self._lengths[rows] = 0
        for total in self._sums.values():
            total[rows] = 0.0

    def _log_broken(self, is_broken: np.ndarray, infos: list[dict[str, Any]]) -> None:
        for row in np.flatnonzero(is_broken).tolist():
            infos[row]["simulation_broken"] = 1.0
            self._tasks[row].count_broken()

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def get_checkpoint_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for checkpoints of a training."""
        return vec_env_state.get_state(self)

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        vec_env_state.set_state(self, state)

    # Looking into the copies

    def _update(self, row: int) -> None:
        """Bring the environment of one copy up to date."""
        if self._is_running:
            task = self._tasks[row]
            self.simulation.show(task.unwrapped, row)
            task.episode = {key: value[row : row + 1].copy() for key, value in self._episode.items()}
            task.show(task.episode)

    def get_images(self, indices: VecEnvIndices = None) -> Sequence[np.ndarray | None]:
        """
        Render some copies.

        :param indices: which ones, all if None
        """
        if self.render_mode != "rgb_array":
            warnings.warn(f"The render mode is {self.render_mode}, but get_images needs rgb_array.")
            return [None for _ in self._get_indices(indices)]
        return self.env_method("render", indices=indices)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        rows = list(self._get_indices(indices))
        if attr_name in _LIVE_ATTRIBUTES:
            for row in rows:
                self._update(row)
        return [self.envs[row].get_wrapper_attr(attr_name) for row in rows]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an argument of the task in all copies, or an attribute that means nothing to the environments in any."""
        rows = list(self._get_indices(indices))
        if attr_name in self.task.fixed_arguments:
            raise AttributeError(f"BatchVecEnv cannot set {attr_name!r}: the running episodes are made for its old value.")
        if attr_name in getattr(self.task, "_saved_kwargs", {}):
            if set(rows) != set(range(self.num_envs)):
                raise ValueError(
                    f"BatchVecEnv steps copies of one task: set {attr_name!r} in all of them, not in {rows} only."
                )
        elif any(self.envs[row].has_wrapper_attr(attr_name) for row in rows):
            raise AttributeError(f"BatchVecEnv cannot set {attr_name!r}: the running simulations would not know of it.")
        for row in rows:
            self.envs[row].set_wrapper_attr(attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of some copies, after bringing them up to date; ``set_state`` sets the state of the simulation.
        """
        rows = list(self._get_indices(indices))
        if method_name in _FORBIDDEN_METHODS:
            raise AttributeError(f"BatchVecEnv cannot {method_name} a single copy: {_FORBIDDEN_METHODS[method_name]}.")
        # OrderEnforcing has not seen the reset
        envs = self._tasks if method_name == "render" else self.envs
        methods = [envs[row].get_wrapper_attr(method_name) for row in rows]
        if method_name == "set_state":
            for row in rows:
                qpos, qvel = self._check_state(*method_args, **method_kwargs)
                self.simulation.start(np.array([row]), qpos[None], qvel[None])
            return [None for _ in rows]
        for row in rows:
            self._update(row)
        return [method(*method_args, **method_kwargs) for method in methods]

    def _check_state(self, qpos: np.ndarray, qvel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        qpos, qvel = np.asarray(qpos, dtype=np.float64), np.asarray(qvel, dtype=np.float64)
        shapes = self.simulation.qpos.shape[1:], self.simulation.qvel.shape[1:]
        if (qpos.shape, qvel.shape) != shapes:
            raise ValueError(f"expected qpos and qvel of the shapes {shapes}, got {qpos.shape} and {qvel.shape}")
        return qpos, qvel

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [env_util.is_wrapped(self.envs[row], wrapper_class) for row in self._get_indices(indices)]
