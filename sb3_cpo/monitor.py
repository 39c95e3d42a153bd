"""SB3's Monitor with episode costs, and a ``make_vec_env`` that installs it."""

import os
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.core import ActType, ObsType
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from safe_envs import GymnasiumVecEnv
from safe_envs.monitor_rows import write_row
from sb3_cpo.checkpoints import environments
from sb3_cpo.cost_signal import as_array
from sb3_cpo.dual import MAX_CONSTRAINTS
from sb3_cpo.growing_results import GrowingResultsWriter
from sb3_cpo.mistakes import WrongReset, explain_reset, explain_step


class CostMonitor(Monitor[ObsType, ActType]):
    """
    SB3's ``Monitor``, with the *sum* of each cost over the episode in ``info["episode"]`` and in monitor.csv.

    (``Monitor(info_keywords=("cost",))`` would keep the cost of the last step only.) The episode's key and the column have
    the key of the cost: "cost", or "cost_0", "cost_1", ... where ``info["cost"]`` is an array. A cost that an ``info`` lacks
    makes the episode's sum NaN. All other arguments are those of ``Monitor``.

    :param cost_keys: keys of ``info`` to sum. None: ``cost`` and all that begin with ``cost_`` in the first step
    """

    def __init__(
        self,
        env: gym.Env,
        filename: str | None = None,
        allow_early_resets: bool = True,
        reset_keywords: tuple[str, ...] = (),
        info_keywords: tuple[str, ...] = (),
        override_existing: bool = True,
        cost_keys: tuple[str, ...] | None = None,
    ):
        cost_keys = (cost_keys,) if isinstance(cost_keys, str) else cost_keys
        if clash := {"r", "l", "t"} & set(cost_keys or ()):
            raise ValueError(f"cost_keys has {sorted(clash)[0]!r}, under which a monitor writes the return, length or time")
        # A cost that SB3 would keep the last value of has a column of its own
        keys = tuple(key for key in info_keywords if key not in (cost_keys or ("cost",)))
        super().__init__(env, None, allow_early_resets, reset_keywords, keys, override_existing)
        self.cost_keys = None if cost_keys is None else tuple(dict.fromkeys(cost_keys))
        # A guess for a new file, until the first step
        self.columns: tuple[str, ...] = self.cost_keys or (("cost",) if override_existing else ())
        self.episode_costs: dict[str, float] = {}
        self._mentioned: set[str] = set()
        if filename is not None:
            header = {"t_start": self.t_start, "env_id": str(self.env.spec.id if self.env.spec is not None else None)}
            self.results_writer = GrowingResultsWriter(filename, header, self._extra_keys, override_existing)

    @property
    def _extra_keys(self) -> tuple[str, ...]:
        return self.reset_keywords + self.info_keywords + self.columns

    def _set_columns(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        if isinstance(self.results_writer, GrowingResultsWriter):
            # A cost that is mentioned for the first time was 0 before
            self.results_writer.set_columns(self._extra_keys, 0.0 if self.episode_returns else "")

    def watch_costs(self, cost_keys: tuple[str, ...], is_silence_zero: bool = False) -> None:
        """
        Sum these keys of ``info`` instead. Before the first step, the algorithm calls it with the keys of its limits.

        :param is_silence_zero: whether an ``info`` that lacks a cost says that it is 0
        """
        if self.total_steps == 0 and self.cost_keys is None:
            self.cost_keys = tuple(key for key in dict.fromkeys(cost_keys) if key not in ("r", "l", "t"))
            self._mentioned |= set(self.cost_keys) if is_silence_zero else set()
            self._set_columns(self.cost_keys)

    def reset(self, **kwargs: Any) -> tuple[ObsType, dict[str, Any]]:
        self.episode_costs = {}
        try:
            result: Any = super().reset(**kwargs)
        except TypeError as error:
            explain_reset(error)
            raise
        if not isinstance(result, tuple) or len(result) != 2:
            raise WrongReset(
                f"reset of {self.env} must return (obs, info), as gymnasium's environments do; it returned {result!r:.200}"
            )
        return result

    def step(self, action: ActType) -> tuple[ObsType, SupportsFloat, bool, bool, dict[str, Any]]:
        # The row waits for the costs
        writer, self.results_writer = self.results_writer, None
        try:
            observation, reward, terminated, truncated, info = super().step(action)
        except (ValueError, gym.error.Error) as error:
            # Here too, since a worker of SubprocVecEnv says nothing to the process that it works for
            explain_step(error)
            raise
        finally:
            self.results_writer = writer
        costs = self._costs(info)
        self._mentioned |= set(costs)
        is_new = self.cost_keys is None and self._mentioned != set(self.columns)
        if is_new and (self._mentioned or self.total_steps == 1):
            # This episode is among those that have ended, if it has
            self._set_columns(tuple(sorted(self._mentioned, key=_cost_order)))
        for key in self.columns:
            # An environment that mentions a cost only when it occurs means 0 by silence
            self.episode_costs[key] = self.episode_costs.get(key, 0.0) + costs.get(key, 0.0)
        if terminated or truncated:
            # A cost that was never mentioned is not known to be 0
            sums = {key: cost if key in self._mentioned else np.nan for key, cost in self.episode_costs.items()}
            info["episode"].update({key: float(f"{cost:.9g}") for key, cost in sums.items()})
            if self.results_writer is not None:
                write_row(self.results_writer, info["episode"])
        return observation, reward, terminated, truncated, info

    def capture_layers(self) -> tuple[str, bytes | None, str | None]:
        """State of this wrapper and all inside of it, for a ``SubprocVecEnv`` whose worker this is."""
        return environments.capture_layers(self)

    def restore_layers(self, content: bytes) -> str | None:
        """Go on from there; returns what went wrong."""
        return environments.restore_layers(self, content)

    def _costs(self, info: Mapping[str, Any]) -> dict[str, float]:
        keys = self.cost_keys
        if keys is None:
            keys = tuple(str(key) for key in info if is_cost(key, info[key]))
        costs: dict[str, float] = {}
        for key in keys:
            value = info.get(key, ())
            if isinstance(value, float):
                # In most environments; by way of an array, it would take a third of the monitor's time
                costs[key] = float(value)
                continue
            value = _as_numbers(value)
            if value is None or value.size == 0:
                continue
            if value.size == 1:
                costs[key] = float(value.item())
            else:
                costs.update({f"{key}_{index}": float(entry) for index, entry in enumerate(value.flat)})
        return costs


def _as_numbers(value: Any) -> np.ndarray | None:
    """None for what is no array of numbers: text, ragged lists, tensors that require a gradient."""
    try:
        array = as_array(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array.astype(np.float64) if array.dtype.kind in "biuf" else None


def is_cost(key: Any, value: Any) -> bool:
    """
    Not everything whose name begins like a cost's is one: ``info["cost_name"] = "speed"``, a map, a history that has but one
    entry yet. Names that begin with ``cost_`` stand for a number, ``cost`` for one per constraint.
    """
    if key != "cost" and not (isinstance(key, str) and key.startswith("cost_")):
        return False
    if isinstance(value, float):
        return True
    array = _as_numbers(value)
    return array is not None and (0 < array.size <= MAX_CONSTRAINTS if key == "cost" else array.ndim == 0)


def _cost_order(key: str) -> tuple[str, int]:
    """cost, cost_0, cost_1, ... cost_10, and names by the alphabet."""
    name, _, number = key.rpartition("_")
    return (name, int(number)) if number.isdigit() else (key, -1)


def with_cost_monitor(env: GymEnv, verbose: int = 0) -> GymEnv:
    """A single environment that has no ``Monitor`` yet in a :class:`CostMonitor`; a ``VecEnv`` as it is."""
    if isinstance(env, VecEnv):
        return env
    env = _patch_env(env)
    if is_wrapped(env, Monitor):
        return env
    if verbose >= 1:
        print("Wrapping the env with a `CostMonitor` wrapper")
    return CostMonitor(env)


def as_vec_env(env: Any) -> Any:
    """gymnasium's vectorised environments as one of SB3's, with a monitor; anything else as it is."""
    return VecMonitor(GymnasiumVecEnv(env)) if isinstance(env, gym.vector.VectorEnv) else env


def make_vec_env(
    env_id: str | Callable[..., gym.Env],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    wrapper_class: Callable[[gym.Env], gym.Env] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[VecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    SB3's ``make_vec_env`` with a :class:`CostMonitor` where SB3 has a ``Monitor``; same arguments.

    ``vec_env_cls=BatchVecEnv`` steps all copies of one of our tasks at once.

    :raises TypeError: ``env_id`` is an environment that is made already, or ``vec_env_cls`` no class
    """
    if not isinstance(env_id, str) and not callable(env_id):
        raise TypeError(
            f"make_vec_env makes the copies: pass the id, or a function that makes one, lambda: {type(env_id).__name__}(...), "
            "not an environment"
        )
    if n_envs < 1:
        raise ValueError(f"n_envs must be positive, not {n_envs}")
    if isinstance(vec_env_cls, str):
        raise TypeError(f"vec_env_cls is {vec_env_cls!r}: pass the class, DummyVecEnv, SubprocVecEnv or safe_envs.BatchVecEnv")

    def make_env(rank: int) -> gym.Env:
        if isinstance(env_id, str):
            try:
                env = gym.make(env_id, **{"render_mode": "rgb_array", **(env_kwargs or {})})
            except TypeError:
                env = gym.make(env_id, **(env_kwargs or {}))
        else:
            env = _patch_env(env_id(**(env_kwargs or {})))
        if seed is not None:
            # The env itself is seeded by its first reset
            env.action_space.seed(seed + rank)
        filename = None
        if monitor_dir is not None:
            os.makedirs(monitor_dir, exist_ok=True)
            filename = os.path.join(monitor_dir, str(rank))
        env = CostMonitor(env, filename, **(monitor_kwargs or {}))
        return env if wrapper_class is None else wrapper_class(env, **(wrapper_kwargs or {}))

    def env_fn(rank: int) -> Callable[[], gym.Env]:
        return lambda: make_env(rank)

    # Every VecEnv class of SB3 takes the list of functions first
    vec_env_class: Any = vec_env_cls or DummyVecEnv
    vec_env = vec_env_class([env_fn(start_index + index) for index in range(n_envs)], **(vec_env_kwargs or {}))
    vec_env.seed(seed)
    return vec_env


__all__ = ["CostMonitor", "make_vec_env"]
