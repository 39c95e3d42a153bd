"""Random episodes of an environment, and what they say about its costs: to be read before the first training."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from safe_envs import SixTupleWrapper
from sb3_cpo import env_facts, mistakes
from sb3_cpo.cost_env_report import CostEnvReport
from sb3_cpo.cost_findings import Episode, report_on
from sb3_cpo.cost_signal import LARGEST_COST, as_array
from sb3_cpo.monitor import as_vec_env, is_cost

SIX_VALUES = (
    "step returns six values (obs, reward, cost, terminated, truncated, info): wrap the environment in "
    "safe_envs.SixTupleWrapper, which puts the cost into info"
)


class _Step(NamedTuple):
    copy: int
    info: Any
    terminated: bool
    truncated: bool


def check_cost_env(
    env: GymEnv | str | Callable[[], gym.Env],
    n_episodes: int = 20,
    *,
    cost_keys: Sequence[str] | None = None,
    max_steps: int = 50_000,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    verbose: int = 1,
) -> CostEnvReport:
    """
    Play random episodes, and report the costs of the environment: which there are, what an episode costs, what is wrong with
    them, and a limit worth trying with the ``n_steps`` that it needs. ``check_env`` of SB3 is part of it.

    What is wrong is said and not raised: ``report.problems`` would stop the training or spoil it, ``report.remarks`` are worth
    knowing. The environment that is passed is reset and stepped, so it should not be one in which a training is in progress.

    :param env: an id, an environment, a function that makes one, or a ``VecEnv``, of which each copy plays as many episodes
    :param n_episodes: episodes in all
    :param cost_keys: keys of ``info`` that are costs. None: ``cost``, all that begin with ``cost_``, and those that the
        environment's own ``cost_limit`` names
    :param max_steps: the end, where episodes are long or have none: steps of all copies together
    :param seed: of actions and environment
    :param env_kwargs: arguments of ``gym.make``, for an id
    :param verbose: 0: do not print the report
    """
    if n_episodes < 1 or max_steps < 1:
        raise ValueError(f"n_episodes and max_steps must be positive, got {n_episodes} and {max_steps}")
    cost_keys = [cost_keys] if isinstance(cost_keys, str) else cost_keys
    opened = _open(env, env_kwargs or {})
    problems: list[str] = []
    # Steps go to a gym.Env directly: what is broken shows there, and not in what SB3 makes of it
    single = None if isinstance(opened, VecEnv) else opened
    try:
        if single is not None:
            single = _without_six_values(single, seed, problems)
        vec_env = opened if isinstance(opened, VecEnv) else DummyVecEnv([lambda: single])  # type: ignore[list-item, return-value]
        limit = env_facts.registered_cost_limit(vec_env)
        if cost_keys is None and isinstance(limit, Mapping):
            cost_keys = [*limit, *({"cost"} if "cost" not in limit else ())]
            must_be_there: tuple[str, ...] = tuple(limit)
        else:
            must_be_there = tuple(cost_keys or ())
        episodes = _Episodes(cost_keys, problems)
        steps = _play_vec_env(vec_env, n_episodes, seed) if single is None else _play_env(single, n_episodes, seed)
        _collect(steps, episodes, max_steps)
        report = report_on(
            episodes.ended,
            episodes.unfinished,
            problems,
            name=env if isinstance(env, str) else _name(vec_env),
            n_envs=vec_env.num_envs,
            max_episode_steps=env_facts.max_episode_steps(vec_env),
            cost_limit=limit,
            must_be_there=must_be_there,
            other_keys=episodes.other_keys,
        )
    finally:
        if isinstance(env, str):
            opened.close()
    if verbose >= 1:
        print(report)
    return report


def _open(env: Any, env_kwargs: Mapping[str, Any]) -> gym.Env | VecEnv:
    if isinstance(env, str):
        return gym.make(env, **env_kwargs)
    env = as_vec_env(env)
    if isinstance(env, gym.Env | VecEnv):
        return env
    if callable(env):
        return _open(env(), {})
    mistakes.check_env(env)
    return _patch_env(env)


def _name(env: VecEnv) -> str:
    """The id where the environment has one, else its class."""
    copy = getattr(env_facts.innermost(env), "envs", [env])[0]
    return env_facts.env_id(env) or type(getattr(copy, "unwrapped", env)).__name__


def _without_six_values(env: gym.Env, seed: int, problems: list[str]) -> gym.Env:
    """
    The environment, and where its step returns six values, one that returns five; the wrappers of ``gym.make`` know only such.
    SB3's check goes before.
    """
    inner: Any = env.unwrapped
    if _n_values(env, seed) == 6:
        problems.append(SIX_VALUES)
        return SixTupleWrapper(env)
    if inner is not env and _n_values(env, seed) is None and _n_values(inner, seed) == 6:
        problems.append(SIX_VALUES)
        limit = getattr(env.spec, "max_episode_steps", None)
        return SixTupleWrapper(inner) if limit is None else gym.wrappers.TimeLimit(SixTupleWrapper(inner), limit)
    try:
        check_env(env, warn=False)
    except Exception as error:
        # SB3 asks the outermost wrapper of a goal environment, which gymnasium's wrappers do not pass on
        if not (isinstance(error, AttributeError) and error.name == "compute_reward" and hasattr(inner, "compute_reward")):
            problems.append(f"SB3's check_env says: {_describe(error)}")
    return env


def _n_values(env: Any, seed: int) -> int | None:
    """How many values a step returns; None: it raises."""
    try:
        env.reset(seed=seed)
        return len(env.step(env.action_space.sample()))
    except Exception:
        return None


def _describe(error: Exception) -> str:
    """Its type, its message and the line from which it comes."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}{'' if isinstance(error, AssertionError) else place}"


# ---------------------------------------------------------------- playing


def _play_env(env: gym.Env, n_episodes: int, seed: int) -> Iterator[_Step]:
    env.action_space.seed(seed)
    for episode in range(n_episodes):
        env.reset(seed=seed if episode == 0 else None)
        is_over = False
        while not is_over:
            values: Any = env.step(env.action_space.sample())
            if not isinstance(values, tuple) or len(values) != 5:
                n_values = len(values) if isinstance(values, tuple) else type(values).__name__
                raise ValueError(f"step returned {n_values} values instead of (obs, reward, terminated, truncated, info)")
            _, _, terminated, truncated, info = values
            is_over = bool(terminated or truncated)
            yield _Step(0, info, bool(terminated), bool(truncated))


def _play_vec_env(env: VecEnv, n_episodes: int, seed: int) -> Iterator[_Step]:
    """As SB3's ``evaluate_policy``, each copy plays its share: the first episodes to end are the short ones."""
    left = [(n_episodes + copy) // env.num_envs for copy in range(env.num_envs)]
    normalizer = unwrap_vec_normalize(env)
    is_training = normalizer is not None and normalizer.training
    env.action_space.seed(seed)
    try:
        if normalizer is not None:
            # What random actions lead to is no statistics for a policy
            normalizer.training = False
        env.seed(seed)
        env.reset()
        while any(left):
            _, _, dones, infos = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
            if len(infos) != env.num_envs:
                raise ValueError(f"step returned {len(infos)} infos for {env.num_envs} copies")
            for copy in range(env.num_envs):
                if left[copy]:
                    info, done = infos[copy], bool(dones[copy])
                    left[copy] -= done
                    is_time_limit = isinstance(info, Mapping) and bool(info.get("TimeLimit.truncated"))
                    yield _Step(copy, info, done and not is_time_limit, done and is_time_limit)
    finally:
        if normalizer is not None:
            normalizer.training = is_training


def _collect(steps: Iterator[_Step], episodes: "_Episodes", max_steps: int) -> None:
    n_steps = 0
    try:
        for step in steps:
            episodes.add(step)
            n_steps += 1
            if n_steps >= max_steps:
                return
    except Exception as error:
        text = _describe(error)
        if "unpack" in text or "five element tuple" in text:
            text += f". Perhaps {SIX_VALUES}"
        if not any(type(error).__name__ in problem and str(error)[:40] in problem for problem in episodes.problems):
            episodes.problems.append(f"after {n_steps} steps: {text}")
    finally:
        steps.close()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- reading


class _Episodes:
    """
    What the steps have cost, episode by episode.

    :param cost_keys: keys of ``info`` that are costs; None: those that look like it
    :param problems: what is wrong is added here, once of each kind
    """

    def __init__(self, cost_keys: Sequence[str] | None, problems: list[str]):
        self.cost_keys = cost_keys
        self.problems = problems
        self.ended: list[Episode] = []
        self.other_keys: dict[str, bool] = {}
        """Keys of ``info`` that are no costs, and whether they hold a number."""
        self._current: dict[int, list[dict[str, float]]] = {}
        self._seen: set[str] = set()
        self._sizes: dict[Any, int] = {}

    @property
    def unfinished(self) -> list[Episode]:
        return [Episode(steps, False, False) for steps in self._current.values() if steps]

    def add(self, step: _Step) -> None:
        steps = self._current.setdefault(step.copy, [])
        steps.append(self._read(step.info))
        if step.terminated or step.truncated:
            monitored = step.info.get("episode") if isinstance(step.info, Mapping) else None
            if isinstance(monitored, Mapping):
                sums = {name: sum(costs.get(name, 0.0) for costs in steps) for name in steps[-1]}
                if text := mistakes.skipped_costs(len(steps), sums, monitored):
                    self._note("skipped", text)
            self.ended.append(Episode(steps, step.terminated, step.truncated))
            self._current[step.copy] = []

    def _read(self, info: Any) -> dict[str, float]:
        if not isinstance(info, Mapping):
            self._note("info", f"info is {type(info).__name__} {info!r:.60} and no dictionary")
            return {}
        costs: dict[str, float] = {}
        for key, value in info.items():
            is_asked_for = key == "cost" or key in (self.cost_keys or ())
            if not (is_asked_for or (self.cost_keys is None and is_cost(key, value))):
                is_number = np.ndim(value) == 0 and isinstance(value, bool | int | float | np.number | np.bool_)
                self.other_keys[str(key)] = is_number
                continue
            array = self._as_array(key, value)
            if array is not None:
                names = [str(key)] if array.size == 1 else [f"{key}[{index}]" for index in range(array.size)]
                costs.update(zip(names, array.ravel().tolist(), strict=True))
        return costs

    def _as_array(self, key: Any, value: Any) -> np.ndarray | None:
        place = f"info[{key!r}]"
        try:
            if value is None or isinstance(value, str | bytes):
                raise TypeError
            array = as_array(value, np.float64)
        except RuntimeError:
            self._note(f"{key} grad", f"{place} is a tensor that requires a gradient: detach it")
            return None
        except (TypeError, ValueError):
            self._note(f"{key} type", f"{place} is {value!r:.60}: expected a number")
            return None
        if array.size == 0 or (array.ndim > 1 and array.size > 1):
            self._note(f"{key} shape", f"{place} has shape {array.shape}: expected a number, or one for each constraint")
            return None
        if not np.isfinite(array).all():
            self._note(f"{key} finite", f"{place} is {value}: costs must be finite")
            return None
        if self._sizes.setdefault(key, array.size) != array.size:
            self._note(f"{key} size", f"{place} has {array.size} entries here and {self._sizes[key]} elsewhere")
        if np.abs(array).max() > LARGEST_COST:
            self._note(f"{key} large", f"{place} is {value}: costs beyond {LARGEST_COST:g} overflow in single precision")
        return array

    def _note(self, kind: str, text: str) -> None:
        if kind not in self._seen:
            self._seen.add(kind)
            self.problems.append(text)


__all__ = ["CostEnvReport", "check_cost_env"]
