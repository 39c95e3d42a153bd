"""Episodes that a seed reproduces: the environment and the policy's draws are both seeded, episode by episode."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from sb3_cpo.cost_signal import CostSignal, MissingCost
from sb3_cpo.env_facts import is_wrapped, name_env

# An episode that is longer has no end
MAX_STEPS = 100_000


class SeededEpisode(NamedTuple):
    """An episode, whole."""

    seed: int
    reward: float
    length: int
    costs: np.ndarray
    """(n_costs,)"""
    largest_costs: np.ndarray
    """(n_costs,) of a step."""


def play_episode(
    model: Any,
    env: VecEnv,
    seed: int,
    deterministic: bool,
    signal: CostSignal,
    gamma: float = 1.0,
    on_step: Callable[[np.ndarray, float, bool], None] | None = None,
) -> SeededEpisode:
    """
    Play one episode. The same seed gives the same episode, whatever was played before; the random numbers of the caller are
    left as they were.

    :param model: what ``predict`` asks
    :param env: one copy; rewards are summed as it gives them
    :param seed: of environment and policy
    :param signal: reader of the costs
    :param gamma: discount factor of the costs
    :param on_step: called after each step with the costs so far, the return so far, and whether the episode is over
    :raises ValueError: the episode does not end
    """
    has_monitor = is_vecenv_wrapped(env, VecMonitor) or is_wrapped(env, Monitor)
    states, episode_starts = None, np.ones(1, dtype=bool)
    reward, length, discount, is_over = 0.0, 0, 1.0, False
    costs = largest = np.zeros(0)
    with _random_numbers(seed, getattr(model, "device", None)):
        env.seed(seed)
        observation = env.reset()
        while not is_over:
            if not deterministic and _noise_is_due(model, length):
                model.policy.reset_noise()
            action, states = model.predict(
                observation, state=states, episode_start=episode_starts, deterministic=deterministic
            )
            observation, rewards, dones, infos = env.step(action)
            step_costs = _read(signal, infos, env, seed, length)
            if length == 0:
                costs, largest = np.zeros(len(step_costs)), np.full(len(step_costs), -np.inf)
            costs, largest = costs + discount * step_costs, np.maximum(largest, step_costs)
            discount *= gamma
            reward, length, episode_starts = reward + float(rewards[0]), length + 1, dones
            # With a Monitor, "done" without "episode" is a life that is lost and not an episode that ends
            is_over = bool(dones[0]) and (not has_monitor or "episode" in infos[0])
            if on_step is not None:
                on_step(costs, reward, is_over)
            if length >= MAX_STEPS and not is_over:
                raise ValueError(
                    f"the episode with seed {seed} had not ended after {MAX_STEPS:,} steps: give {name_env(env)} a time "
                    "limit, gymnasium.wrappers.TimeLimit"
                )
    return SeededEpisode(seed, reward, length, costs, largest)


def _read(signal: CostSignal, infos: Any, env: VecEnv, seed: int, step: int) -> np.ndarray:
    try:
        return signal.read(infos)[0]
    except MissingCost as error:
        error.place = f"{name_env(env)}, step {step} of the episode with seed {seed}"
        raise


def _noise_is_due(model: Any, step: int) -> bool:
    """Whether gSDE's noise is to be drawn anew at this step, as in training: at the start of an episode and every n steps."""
    if not getattr(model, "use_sde", False) or not hasattr(model.policy, "reset_noise"):
        return False
    return step == 0 or (model.sde_sample_freq > 0 and step % model.sde_sample_freq == 0)


@contextmanager
def _random_numbers(seed: int, device: Any) -> Iterator[None]:
    """Seed what policies draw from, and put it back afterwards."""
    devices = [device] if isinstance(device, th.device) and device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with th.random.fork_rng(devices):
        set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def seeds_apart(n_episodes: int, model: Any, first: int | None = None) -> list[int]:
    """
    Seeds for episodes that neither training nor the choice of a model has seen.

    Training seeds its copies with the model's seed and the numbers that follow, and so does the zoo for the environment in
    which it chooses the best model.

    :param first: None: a million, or what is beyond the seeds of training
    :raises ValueError: ``first`` leads into the seeds of training
    """
    of_training = getattr(model, "seed", None)
    n_envs = max(int(getattr(model, "n_envs", 1) or 1), 1)
    start = 1_000_000 if first is None else first
    if of_training is not None and start < of_training + n_envs and of_training < start + n_episodes:
        if first is not None:
            raise ValueError(
                f"seed={first} gives episodes the seeds {first} to {first + n_episodes - 1}, among them those of training, "
                f"{of_training} to {of_training + n_envs - 1}: choose another"
            )
        start = of_training + n_envs if of_training + n_envs + n_episodes < 2**32 else of_training - n_episodes
    if not 0 <= start <= 2**32 - n_episodes:
        raise ValueError(f"seed={start} is not between 0 and {2**32 - n_episodes}")
    return list(range(start, start + n_episodes))
