"""
The state of live objects: their attributes, pickled together, so that what they share stays shared, and put back into others
of the same kind.

What a new process makes by itself is no state and stays as it is: functions and classes, models of MuJoCo and windows, specs,
open files, and the objects themselves where they refer to one another. Of spaces only the random generators are state, of
MuJoCo's ``MjData`` all numbers, of the files that SB3 writes the content.
"""

import io
import pickle
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter

from sb3_cpo.checkpoints import logs

# A reference to a live object: its number, and the name of its attribute or None for itself
Reference = tuple[Any, ...]

_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
# Packages whose objects are windows, renderers, and what is drawn with them
_DRAWING = {"pygame", "glfw", "OpenGL", "matplotlib", "cv2", "moviepy"}


class NotPicklable(Exception):
    """What cannot be stored; the message names the attribute."""


def is_kept(value: Any) -> bool:
    """Whether an attribute stays the one that the new process has made."""
    module = type(value).__module__
    return (
        isinstance(value, (*_CODE, EnvSpec, gym.Space, gym.Env, ResultsWriter, io.IOBase))
        or module.split(".")[0] in _DRAWING
        or module.startswith("gymnasium.envs.mujoco.mujoco_rendering")
        or _is_mujoco(value, "MjModel", "MjData", "Renderer")
    )


def _is_mujoco(value: Any, *names: str) -> bool:
    return type(value).__name__ in names and type(value).__module__.split(".")[0] == "mujoco"


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, references: Mapping[int, Reference]):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._references = references

    def persistent_id(self, obj: Any) -> Reference | None:
        # A script's own classes: those of the script that resumes
        if type(obj) in (type, types.FunctionType) and obj.__module__ == "__main__":
            name: str = obj.__qualname__
            if getattr(sys.modules["__main__"], name, None) is obj:
                return "__main__", name
        return self._references.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, find: Mapping[Reference, Any]):
        super().__init__(file)
        self._find = find

    def persistent_load(self, pid: Reference) -> Any:
        if pid[0] == "__main__":
            return getattr(sys.modules["__main__"], pid[1])
        # What the live object has not, a window for instance
        return self._find.get(pid)


def _dumps(value: Any, references: Mapping[int, Reference]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, references).dump(value)
    return file.getvalue()


def _attributes(obj: Any) -> dict[str, Any]:
    return dict(getattr(obj, "__dict__", {}))


def _refer(objects: Sequence[Any], shared: Mapping[str, Any]) -> dict[Reference, Any]:
    """All live objects that are referred to and not stored."""
    found: dict[Reference, Any] = {}
    for index, obj in enumerate(objects):
        found |= {(index, name): value for name, value in _attributes(obj).items() if is_kept(value)}
    found |= {("shared", name): value for name, value in shared.items() if value is not None}
    # The objects themselves come last: one may be an attribute of another
    return found | {(index, None): obj for index, obj in enumerate(objects)}


def capture(
    objects: Sequence[Any], skipped: Iterable[str] = (), shared: Mapping[str, Any] | None = None, is_lenient: bool = False
) -> bytes:
    """
    :param objects: whose attributes are the state. One that has ``get_checkpoint_state`` says itself what that is
    :param skipped: names of attributes that are no state
    :param shared: other live objects that these may refer to, by name
    :param is_lenient: leave out what cannot be stored
    :raises NotPicklable: an attribute cannot be stored
    """
    live = _refer(objects, shared or {})
    references = {id(value): reference for reference, value in live.items()}
    skipped = set(skipped)
    states: dict[int, dict[str, Any]] = {}
    own: dict[int, Any] = {}
    for index, obj in enumerate(objects):
        attributes = _attributes(obj)
        if hasattr(type(obj), "get_checkpoint_state"):
            own[index] = obj.get_checkpoint_state()
            attributes = {name: value for name, value in attributes.items() if name in ("_np_random", "_np_random_seed")}
        states[index] = {
            name: value for name, value in attributes.items() if name not in skipped and (index, name) not in live
        }
    kept = {reference: content for reference, value in live.items() if (content := _content(value)) is not None}
    try:
        return _dumps((states, own, kept), references)
    except Exception:
        for index, attributes in states.items():
            for name, value in list(attributes.items()):
                try:
                    _dumps(value, references)
                except Exception as error:
                    if not is_lenient:
                        raise NotPicklable(f"{type(objects[index]).__name__}.{name}: {error}") from error
                    del attributes[name]
        try:
            return _dumps((states, own, kept), references)
        except Exception as error:
            raise NotPicklable(f"{', '.join(type(obj).__name__ for obj in objects)}: {error}") from error


def restore(content: bytes, objects: Sequence[Any], shared: Mapping[str, Any] | None = None) -> None:
    """
    Put a state back.

    :param content: what ``capture`` has made
    :param objects: as many of the same classes, in the same order
    :param shared: as for ``capture``
    """
    live = _refer(objects, shared or {})
    states, own, kept = _Unpickler(io.BytesIO(content), live).load()
    for reference, state in kept.items():
        if reference in live:
            _restore_content(live[reference], state)
    for index, attributes in states.items():
        objects[index].__dict__.update(attributes)
    for index, state in own.items():
        objects[index].set_checkpoint_state(state)


def _content(value: Any) -> Any:
    """What is state of a live object that stays; None: nothing."""
    if isinstance(value, gym.Space):
        return [space._np_random for space in _parts(value)]
    if isinstance(value, ResultsWriter):
        return logs.capture_results(value)
    if _is_mujoco(value, "MjData"):
        return pickle.dumps(value)
    return None


def _restore_content(value: Any, content: Any) -> None:
    if isinstance(value, gym.Space):
        for space, generator in zip(_parts(value), content, strict=True):
            space._np_random = generator
    elif isinstance(value, ResultsWriter):
        logs.restore_results(value, content)
    else:
        import mujoco

        data = pickle.loads(content)
        mujoco.mj_copyData(value, data.model, data)


def _parts(space: gym.Space) -> list[gym.Space]:
    """A space and those that it is made of."""
    parts: list[Any] = [space]
    if isinstance(space, spaces.Dict):
        parts += [part for subspace in space.spaces.values() for part in _parts(subspace)]
    elif isinstance(space, spaces.Tuple | spaces.OneOf):
        parts += [part for subspace in space.spaces for part in _parts(subspace)]
    elif isinstance(space, spaces.Sequence):
        parts += _parts(space.feature_space)
    return parts


def generators(objects: Sequence[Any]) -> dict[tuple[int, str], np.random.Generator]:
    """The random generators of gymnasium's environments among these objects, and of their spaces."""
    found = {}
    for index, obj in enumerate(objects):
        for name, value in _attributes(obj).items():
            if name == "_np_random" and isinstance(value, np.random.Generator):
                found[index, name] = value
    return found
