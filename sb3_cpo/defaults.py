"""What the algorithms choose where the user says nothing: by the environment, not by its name."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv

from sb3_cpo import distributed
from sb3_cpo.buffers import parts_of
from sb3_cpo.env_facts import max_episode_steps
from sb3_cpo.monitor import make_vec_env

TOTAL_TIMESTEPS = 1_000_000
# Episodes in a rollout: J of fewer is mostly noise, and so is the gradient of the cost. Half of them will do where they are
# long: with a single copy, a policy needs updates more than it needs a better J
MIN_EPISODES, MIN_LONG_EPISODES = 20, 10
# Steps in a rollout, and of each copy; steps that are enough for a rollout of long episodes
MIN_ROLLOUT, MIN_STEPS, LONG_ROLLOUT = 2_000, 200, 10_000
# Steps of each copy where no time limit is known; as SB3
UNKNOWN_EPISODE = 2_048
# A longer time limit is there against episodes without end, and does not say how long they are
LONGEST_EPISODE = 10_000
# Steps that all copies together play in one episode each, and how many copies that may be
COPIES_ROLLOUT, MIN_COPIES, MAX_COPIES = 20_000, 20, 100
# Minibatches in an epoch of the critics
N_MINIBATCHES = 40
# States that are enough for the Fisher matrix
FISHER_STATES = 5_000
# Bound on the KL divergence and damping of its curvature, per action dimension: what 0.01 and 0.1 are in packages that
# average the divergence over dimensions
KL_PER_DIMENSION, DAMPING_PER_DIMENSION = 0.01, 0.1
# An action is held responsible for the rewards and costs of so many steps
RESPONSIBLE_STEPS = 100
# Episodes that the cost gradients are estimated on, and the rollouts that may be needed for them
COST_EPISODES, COST_ROLLOUTS = 200, 5


def default_env(env: GymEnv | str, verbose: int = 0) -> GymEnv | str:
    """
    For the id of a task that ``BatchVecEnv`` can step, many copies of it; anything else as it is.

    :param env: what the user gave
    """
    from safe_envs import BatchVecEnv

    if not isinstance(env, str):
        return env
    try:
        # One first: an environment that BatchVecEnv refuses is not made a hundred times to learn that
        one = make_vec_env(env, vec_env_cls=BatchVecEnv)
    except (gym.error.Error, TypeError, ImportError):
        # SB3 makes it, or says what is wrong with it
        return env
    n_steps = max_episode_steps(one) or COPIES_ROLLOUT
    env_id: str = one.get_attr("spec")[0].id  # with its version
    one.close()
    n_envs = int(np.clip(COPIES_ROLLOUT // n_steps, MIN_COPIES, MAX_COPIES))
    # On several processes: a part each
    n_envs = max(n_envs // distributed.world_size(), 1)
    if verbose >= 1:
        print(f"Stepping {n_envs} copies of {env_id} at once (pass an environment to choose their number)")
    return make_vec_env(env_id, n_envs=n_envs, vec_env_cls=BatchVecEnv)


def default_n_steps(n_envs: int, max_episode_steps: int | None) -> int:
    """
    Whole episodes: where the time limit is known at least 20, or 10 that have 10,000 steps. One above 10,000 steps counts as
    unknown.

    :param n_envs: number of copies
    :param max_episode_steps: time limit; None: not known
    """
    if max_episode_steps is None or max_episode_steps > LONGEST_EPISODE:
        return max(UNKNOWN_EPISODE, math.ceil(MIN_ROLLOUT / n_envs))
    long_rollout = max(MIN_LONG_EPISODES * max_episode_steps, LONG_ROLLOUT)
    rollout = max(min(MIN_EPISODES * max_episode_steps, long_rollout), MIN_ROLLOUT)
    n_steps = max(rollout / n_envs, MIN_STEPS)
    return max_episode_steps * math.ceil(n_steps / max_episode_steps)


def default_gamma(max_episode_steps: int | None) -> float:
    """
    The discount of the reward that looks 100 steps ahead, as SB3's; or an episode, where that is shorter. Where a time limit
    cuts an episode, the critic's value stands for what would have come: of many steps beyond the end, it would decide what an
    action is credited with, and costs end with the episode.

    :param max_episode_steps: time limit; None: not known
    """
    n_steps = RESPONSIBLE_STEPS if max_episode_steps is None else min(max_episode_steps, RESPONSIBLE_STEPS)
    return 1 - 1 / n_steps


def default_batch_size(rollout_size: int) -> int:
    """The divisor of a rollout that comes nearest to 40 minibatches."""
    divisors = [size for size in range(1, rollout_size + 1) if rollout_size % size == 0]
    wanted = max(rollout_size / N_MINIBATCHES, 64)
    return min(divisors, key=lambda size: abs(math.log(size / wanted)))


def default_fisher_sub_sampling_factor(rollout_size: int) -> int:
    return max(1, rollout_size // FISHER_STATES)


def default_cost_gae_gamma(max_episode_steps: int | None) -> float:
    """
    The discount of the cost advantages that holds an action responsible for the next 100 steps. 1 where no episode is as long.

    :param max_episode_steps: time limit; None: not known
    """
    if max_episode_steps is not None and max_episode_steps < RESPONSIBLE_STEPS:
        return 1.0
    return 1 - 1 / RESPONSIBLE_STEPS


def default_n_cost_rollouts(observation_space: spaces.Space) -> int | None:
    """1 where observations are images, of which five rollouts fill the memory; None: by their episodes."""
    return 1 if any(is_image_space(part) for part in parts_of(observation_space).values()) else None


def n_action_dimensions(action_space: spaces.Space) -> int:
    """
    Independent parts of an action over whose divergences other packages average. Those of a ``MultiDiscrete``, for which
    torch has no distribution, SB3 adds up as we do.
    """
    return int(np.prod(action_space.shape)) if isinstance(action_space, spaces.Box | spaces.MultiBinary) else 1


def fill_in(arguments: dict[str, Any], n_envs: int | None, max_episode_steps: int | None, action_space: spaces.Space) -> None:
    """
    Replace None by what is chosen.

    :param arguments: of an algorithm, by name; changed in place
    :param n_envs: number of copies, of all processes; None: there is no environment
    """
    if "gamma" in arguments and arguments["gamma"] is None:
        arguments["gamma"] = default_gamma(max_episode_steps)
    if arguments.get("n_steps") is None and n_envs is not None:
        arguments["n_steps"] = default_n_steps(n_envs, max_episode_steps)
    if n_envs is not None and arguments.get("n_steps") is not None:
        rollout_size = arguments["n_steps"] * n_envs
        if arguments.get("batch_size") is None:
            n_processes = distributed.world_size()
            arguments["batch_size"] = n_processes * default_batch_size(rollout_size // n_processes)
        if "fisher_sub_sampling_factor" in arguments and arguments["fisher_sub_sampling_factor"] is None:
            arguments["fisher_sub_sampling_factor"] = default_fisher_sub_sampling_factor(rollout_size)
    for name, per_dimension in (("target_kl", KL_PER_DIMENSION), ("cg_damping", DAMPING_PER_DIMENSION)):
        if name in arguments and arguments[name] is None:
            arguments[name] = per_dimension * n_action_dimensions(action_space)
