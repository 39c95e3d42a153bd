"""
The state of environments, random generators and running sums of monitors included.

A ``VecEnv``, a wrapper or an environment that has ``get_checkpoint_state`` and ``set_checkpoint_state``, as ``BatchVecEnv``,
says what its state is. Of the environments of a ``DummyVecEnv`` it is all attributes, and MuJoCo's simulation. Those of a
``SubprocVecEnv`` are asked through their ``CostMonitor``. Without a state, the episodes in progress are lost.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_cpo.checkpoints import snapshot
from sb3_cpo.checkpoints.snapshot import NotPicklable

# What a VecEnvWrapper has of the VecEnv inside, and what DummyVecEnv writes anew at each step
_OF_INSIDE = ("venv", "class_attributes")
_OF_STEP = ("envs", "buf_obs", "buf_dones", "buf_rews", "buf_infos", "actions")
# Where the new monitor writes
_OF_PLACE = ("filename", "override_existing", "results_writer", "render_mode")


class EnvState(NamedTuple):
    """State of a ``VecEnv`` with its wrappers."""

    n_envs: int
    names: list[list[str]]
    """Classes of the wrappers and the ``VecEnv``, and of the wrappers of each environment, from outside to inside."""
    wrappers: bytes
    inside: Any
    """State of the ``VecEnv`` and its environments; None: it cannot be had."""
    generators: dict[tuple[int, str], np.random.Generator]
    """Those of the environments, for the case that the rest cannot be had."""
    problem: str | None
    """Why ``inside`` cannot be had."""


def capture(env: VecEnv) -> EnvState:
    wrappers, vec_env = _split(env)
    layers = _layers(vec_env)
    names = _class_names([*wrappers, vec_env], layers)
    content = snapshot.capture(wrappers, (*_OF_INSIDE, *_OF_PLACE), {"vec_env": vec_env}, is_lenient=True)
    inside, problem = None, None
    try:
        inside = _capture_inside(vec_env, layers)
    except NotPicklable as error:
        problem = str(error)
    return EnvState(env.num_envs, names, content, inside, snapshot.generators(layers), problem)


def restore(env: VecEnv, state: EnvState) -> bool:
    """
    :return: whether all is as it was; otherwise the environments have their generators and must be reset
    :raises ValueError: these are other environments
    """
    if env.num_envs != state.n_envs:
        raise ValueError(
            f"the checkpoint is of {state.n_envs} environments, env has {env.num_envs}: `load` continues with other numbers"
        )
    wrappers, vec_env = _split(env)
    layers = _layers(vec_env)
    names = _class_names([*wrappers, vec_env], layers)
    if names != state.names:
        raise ValueError(f"the checkpoint is of the environment {_describe(state.names)}, env is {_describe(names)}")
    snapshot.restore(state.wrappers, wrappers, {"vec_env": vec_env})
    if state.inside is not None and _restore_inside(vec_env, layers, state.inside):
        return True
    # Seeds that wait for the reset would bring the episodes of the beginning again
    vec_env._reset_seeds()
    for (index, name), generator in state.generators.items():
        setattr(layers[index], name, generator)
    return False


def _class_names(*parts: Sequence[Any]) -> list[list[str]]:
    return [[type(layer).__name__ for layer in part] for part in parts]


def _describe(names: list[list[str]]) -> str:
    return " of ".join(" of ".join(part) for part in names if part)


def _split(env: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers, env


def _layers(vec_env: VecEnv) -> list[gym.Env]:
    """All environments of a ``DummyVecEnv``: wrappers, what they are around, and what these keep beside it."""
    return layers_of(vec_env.envs) if isinstance(vec_env, DummyVecEnv) else []


def layers_of(envs: list[gym.Env]) -> list[gym.Env]:
    """These environments, what they are around and what they keep, each once."""
    found = {id(env): env for env in envs}
    left = list(envs)
    for env in left:
        inside = {id(value): value for value in vars(env).values() if isinstance(value, gym.Env)}
        left += [value for key, value in inside.items() if key not in found]
        found |= inside
    return list(found.values())


def _capture_inside(vec_env: Any, layers: list[gym.Env]) -> Any:
    if hasattr(type(vec_env), "get_checkpoint_state"):
        try:
            return snapshot.capture(_around(vec_env), _OF_PLACE), cloudpickle.dumps(vec_env.get_checkpoint_state())
        except NotImplementedError as error:
            raise NotPicklable(str(error)) from error
    if isinstance(vec_env, SubprocVecEnv):
        return _capture_workers(vec_env), _pending(vec_env)
    return snapshot.capture([vec_env, *layers], (*_OF_STEP, *_OF_PLACE))


def _restore_inside(vec_env: Any, layers: list[gym.Env], inside: Any) -> bool:
    if hasattr(type(vec_env), "set_checkpoint_state"):
        around, state = inside
        snapshot.restore(around, _around(vec_env))
        vec_env.set_checkpoint_state(cloudpickle.loads(state))
        return True
    if isinstance(vec_env, SubprocVecEnv):
        workers, pending = inside
        vars(vec_env).update(pending)
        return _restore_workers(vec_env, workers)
    snapshot.restore(inside, [vec_env, *layers])
    return True


def _around(vec_env: VecEnv) -> list[Any]:
    """What is SB3's, and a ``VecEnv`` need not say: generators of its spaces, what monitors have seen."""
    spaces = SimpleNamespace(observation_space=vec_env.observation_space, action_space=vec_env.action_space)
    return [spaces, *(layer for layer in layers_of(getattr(vec_env, "envs", [])) if isinstance(layer, Monitor))]


def _pending(vec_env: VecEnv) -> dict[str, Any]:
    """For the next reset."""
    return {name: vars(vec_env)[name] for name in ("_seeds", "_options", "reset_infos")}


# ---------------------------------------------------------------- in another process


def capture_layers(env: gym.Env) -> tuple[str, bytes | None, str | None]:
    """
    What the ``CostMonitor`` of a worker answers. Nothing is raised: a worker that raises is dead.

    :param env: the outermost wrapper that is known
    :return: its name with all that is inside, the state, and why there is none
    """
    try:
        return str(env), snapshot.capture(layers_of([env]), _OF_PLACE), None
    except Exception as error:
        return str(env), None, f"{type(error).__name__}: {error}"


def restore_layers(env: gym.Env, content: bytes) -> str | None:
    """:return: what went wrong"""
    try:
        snapshot.restore(content, layers_of([env]))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _capture_workers(vec_env: SubprocVecEnv) -> list[bytes]:
    if not vec_env.has_attr("capture_layers"):
        raise NotPicklable("workers of a SubprocVecEnv say their state where their outermost wrapper is a CostMonitor")
    contents = []
    outermost = vec_env.env_method("__str__")
    for whole, (name, content, problem) in zip(outermost, vec_env.env_method("capture_layers"), strict=True):
        if content is None:
            raise NotPicklable(problem)
        if name != whole:
            raise NotPicklable(f"{whole} is around the CostMonitor, which does not know its state")
        contents.append(content)
    return contents


def _restore_workers(vec_env: SubprocVecEnv, contents: list[bytes]) -> bool:
    if not vec_env.has_attr("restore_layers"):
        return False
    problems = [vec_env.env_method("restore_layers", content, indices=index)[0] for index, content in enumerate(contents)]
    if any(problems):
        raise ValueError(f"the environments of the checkpoint are others: {next(filter(None, problems))}")
    return True
