"""The environment of a report: fresh, and normalised as in training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_cpo.env_facts import env_id, innermost
from sb3_cpo.mistakes import check_env
from sb3_cpo.monitor import as_vec_env, make_vec_env, with_cost_monitor


@contextmanager
def episode_env(
    model: BaseAlgorithm, env: GymEnv | str, env_kwargs: Mapping[str, Any] | None, vec_normalize_path: str | Path | None
) -> Iterator[VecEnv]:
    """
    An environment in which the policy sees what it has learned from, and which leaves training alone.

    :param env: an id, an environment, or a ``VecEnv`` of one copy
    :param env_kwargs: arguments of ``gym.make``, for an id
    :param vec_normalize_path: statistics of ``VecNormalize``
    :raises ValueError: it is the training environment, has several copies, other spaces, or its statistics are not known
    """
    _refuse_training_env(model, env)
    vec_env = _open(env, env_kwargs or {})
    try:
        if vec_env.num_envs != 1:
            raise ValueError(
                f"env has {vec_env.num_envs} copies, but each episode is played with a seed of its own, which reproduces it: "
                "pass one with n_envs=1, or the id"
            )
        vec_env, put_back = _normalized_as_in_training(model, vec_env, vec_normalize_path)
        try:
            # SB3's own: images get their channels first
            wrapped = model._wrap_env(vec_env, monitor_wrapper=False)
            check_for_correct_spaces(wrapped, model.observation_space, model.action_space)
            yield wrapped
        finally:
            put_back()
    finally:
        if isinstance(env, str):
            vec_env.close()


def env_id_of(env: VecEnv) -> str:
    """For people."""
    return env_id(env) or "an environment without id"


def _refuse_training_env(model: BaseAlgorithm, env: Any) -> None:
    """
    :raises ValueError: the model trains in this environment
    """
    training = model.get_env()
    if training is None or isinstance(env, str):
        return
    inner, trained = innermost(env) if isinstance(env, VecEnv) else getattr(env, "unwrapped", env), innermost(training)
    copies = [getattr(copy, "unwrapped", copy) for copy in getattr(trained, "envs", ())]
    if inner is trained or any(inner is copy for copy in copies):
        raise ValueError(
            "env is the environment in which the model trains: episodes played there would be cut out of those of training. "
            "Pass the id, or another environment that is made in the same way"
        )


def _open(env: GymEnv | str, env_kwargs: Mapping[str, Any]) -> VecEnv:
    """As a ``VecEnv``, with a monitor where there is none yet."""
    if isinstance(env, str):
        # Without a seed, SB3 draws one from the random numbers of the training
        return make_vec_env(env, seed=0, env_kwargs=dict(env_kwargs))
    opened = as_vec_env(env)
    check_env(opened)
    monitored: Any = with_cost_monitor(opened)
    return monitored if isinstance(monitored, VecEnv) else DummyVecEnv([lambda: monitored])


def _normalized_as_in_training(
    model: BaseAlgorithm, env: VecEnv, path: str | Path | None
) -> tuple[VecEnv, Callable[[], None]]:
    """
    The environment with the observations that the policy has learned from, and raw rewards.

    :return: the environment, and a function that undoes what was changed in the user's own ``VecNormalize``
    :raises ValueError: the statistics are not known
    """
    of_training, own = model.get_vec_normalize_env(), unwrap_vec_normalize(env)
    if own is None:
        if path is not None:
            env = VecNormalize.load(str(path), env)
        elif of_training is not None:
            options: Any = {name: getattr(of_training, name) for name in ("norm_obs", "clip_obs", "epsilon", "norm_obs_keys")}
            env = VecNormalize(env, **options)
            if of_training.norm_obs:
                env.obs_rms = deepcopy(of_training.obs_rms)
        elif vars(model).get("normalize_observations") is False:
            raise ValueError(
                f"this {type(model).__name__} was trained behind a VecNormalize: pass vec_normalize_path, the file that its "
                "save() wrote, or an environment with VecNormalize.load(path, env)"
            )
        else:
            return env, lambda: None
        assert isinstance(env, VecNormalize)
        env.training = env.norm_reward = False
        return env, lambda: None
    before = own.training, own.norm_reward, getattr(own, "obs_rms", None)
    is_empty = own.norm_obs and _count(own.obs_rms) < 1
    if is_empty and of_training is None:
        raise ValueError("the VecNormalize of env has no statistics yet: VecNormalize.load(path, env) has those of training")
    if is_empty and of_training is not None:
        own.obs_rms = deepcopy(of_training.obs_rms)
    own.training = own.norm_reward = False

    def put_back() -> None:
        own.training, own.norm_reward = before[:2]
        if before[2] is not None:
            own.obs_rms = before[2]

    return env, put_back


def _count(statistics: Any) -> float:
    return min(one.count for one in statistics.values()) if isinstance(statistics, dict) else statistics.count
