"""
The state of callbacks: attributes that training has changed, the environments of evaluations included. What has not changed
since the callback was made is an argument, and the new callback has its own.
"""

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo.checkpoints import environments, snapshot

# Of the training that is going on
_OF_TRAINING = ("model", "parent", "locals", "globals")

State = list[tuple[str, bytes, dict[str, environments.EnvState]]]


def walk(callback: BaseCallback) -> Iterator[BaseCallback]:
    """A callback and those inside of it, each once."""
    found = [callback]
    for parent in found:
        for name, value in vars(parent).items():
            children = value if isinstance(value, list | tuple) else [value]
            is_new = name != "parent" and all(isinstance(child, BaseCallback) for child in children)
            found += [child for child in children if is_new and not any(child is other for other in found)]
        yield parent


def as_made(callback: BaseCallback) -> dict[int, dict[str, bytes]]:
    """What the attributes of a callback and those inside are before training changes them, by ``id``."""
    return {id(part): {} if part.n_calls else _pickled(part) for part in walk(callback)}


def _pickled(callback: BaseCallback) -> dict[str, bytes]:
    if hasattr(type(callback), "get_checkpoint_state"):
        return {}
    others = {*_OF_TRAINING, *_own(callback)}
    attributes = {name: _try_pickle(value) for name, value in vars(callback).items() if name not in others}
    return {name: content for name, content in attributes.items() if content is not None}


def _try_pickle(value: Any) -> bytes | None:
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with contextlib.suppress(Exception):
            return dumps(value)
    return None


def capture(callback: BaseCallback, made: dict[int, dict[str, bytes]], shared: dict[str, Any]) -> State:
    """
    :param made: what ``as_made`` has found in the beginning
    :param shared: what callbacks may refer to without it being theirs, the model for instance
    """
    states: State = []
    for part in walk(callback):
        arguments = made.get(id(part), {})
        same = [name for name, value in vars(part).items() if name in arguments and _try_pickle(value) == arguments[name]]
        objects = _own(part)
        content = snapshot.capture([part], [*_OF_TRAINING, *same, *objects], shared | objects, is_lenient=True)
        envs = {name: env for name, env in objects.items() if isinstance(env, VecEnv) and env is not shared.get("env")}
        states.append((_class_name(part), content, {name: environments.capture(env) for name, env in envs.items()}))
    return states


def restore(callback: BaseCallback, states: State, shared: dict[str, Any]) -> None:
    """Callbacks are known by class and order; those that are new begin anew."""
    left = list(states)
    for part in walk(callback):
        state = next((state for state in left if state[0] == _class_name(part)), None)
        if state is None:
            continue
        left.remove(state)
        _, content, envs = state
        objects = _own(part)
        snapshot.restore(content, [part], shared | objects)
        for name, env_state in envs.items():
            if isinstance(objects.get(name), VecEnv):
                environments.restore(objects[name], env_state)


def _own(callback: BaseCallback) -> dict[str, Any]:
    """Attributes that stay the objects that they are: environments, callbacks."""
    kinds = (VecEnv, BaseCallback)
    return {
        name: value
        for name, value in vars(callback).items()
        if name not in _OF_TRAINING
        and (isinstance(value, kinds) or (isinstance(value, list | tuple) and value and isinstance(value[0], kinds)))
    }


def _class_name(callback: BaseCallback) -> str:
    return f"{type(callback).__module__}.{type(callback).__qualname__}"
