"""
What a vectorised environment says about itself.

Workers of a ``SubprocVecEnv`` are asked for plain values only: one that cannot pickle its answer, a ``spec`` that holds a
user's lambda for instance, dies. Adapters of other simulators implement of a ``VecEnv`` what SB3's PPO calls, which is little:
where one does not answer, it says nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper


def innermost(env: VecEnv) -> VecEnv:
    """SB3's ``unwrapped``, which adapters of other simulators make something else than a ``VecEnv``."""
    while isinstance(env, VecEnvWrapper) and isinstance(env.venv, VecEnv):
        env = env.venv
    return env


def _attribute(env: VecEnv, name: str) -> Any:
    """Of the first copy; None where it has none, or does not answer."""
    try:
        if not env.has_attr(name):
            return None
    except Exception:
        return None
    # SB3 allows a number and a list of numbers as indices, adapters often only one of them, or none
    for indices in ({"indices": 0}, {"indices": [0]}, {}):
        try:
            return env.get_attr(name, **indices)[0]
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                f"the process of an environment has ended when it was asked for its attribute {name!r}, which cannot be "
                "pickled perhaps. Plain values can; a limit that changes in training is an argument of the algorithm"
            ) from error
        except Exception:
            continue
    return None


def _spec(env: VecEnv) -> Any:
    return None if isinstance(innermost(env), SubprocVecEnv) else _attribute(env, "spec")


def is_wrapped(env: VecEnv, wrapper_class: type[Any]) -> bool:
    """Whether all copies are; False where the environment does not say."""
    try:
        answers = list(env.env_is_wrapped(wrapper_class))
    except Exception:
        return False
    return len(answers) == env.num_envs and all(answers)


def max_episode_steps(env: VecEnv) -> int | None:
    """Time limit of an episode; None: there is none, or the environment does not say."""
    steps = getattr(_spec(env), "max_episode_steps", None)
    # gymnasium's TimeLimit, Isaac Lab
    for name in ("_max_episode_steps", "max_episode_length"):
        steps = steps or _attribute(env, name)
    return int(steps) if isinstance(steps, int | np.integer) and not isinstance(steps, bool) else None


def monitor_steps(env: VecEnv) -> list[int] | None:
    """Steps that the monitor of each copy has counted since it was made; None: there are none."""
    try:
        steps = list(env.get_attr("total_steps")) if env.has_attr("total_steps") else []
    except Exception:
        return None
    return steps if len(steps) == env.num_envs else None


def shown_last(env: VecEnv) -> list[Any] | None:
    """What SB3's VecEnvs have shown last, below their wrappers; None: it is another ``VecEnv``."""
    inner = innermost(env)
    if isinstance(inner, SubprocVecEnv):
        # Every step and every reset makes it anew
        return [inner.reset_infos]
    if isinstance(inner, DummyVecEnv):
        return [*inner.buf_infos, *inner.reset_infos, *(values.copy() for values in inner.buf_obs.values())]
    return None


def is_same(before: list[Any], now: list[Any]) -> bool:
    """Whether a ``VecEnv`` shows the same: nobody has stepped or reset it, and it is not another one."""
    pairs = zip(before, now, strict=False)
    is_equal = all(one is other or (isinstance(one, np.ndarray) and np.array_equal(one, other)) for one, other in pairs)
    return is_equal and len(before) == len(now)


@contextmanager
def replaced(env: VecEnv, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within it, an environment has this method in the place of its own."""
    own = vars(env).get(name)
    setattr(env, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(env, name)
        else:
            setattr(env, name, own)


def keeps_steps(env: VecEnv) -> bool:
    """Whether wrappers make one step of the environments of each of theirs: those of SB3 do, a user's may make several."""
    inner = innermost(env)
    while env is not inner:
        if not type(env).__module__.startswith("stable_baselines3."):
            return False
        env = env.venv  # type: ignore[attr-defined]
    return True


def env_id(env: VecEnv) -> str | None:
    """None: it was not made by an id, or does not say."""
    return getattr(_spec(env), "id", None)


def name_env(env: VecEnv, index: int | None = None) -> str:
    """For messages: "environment 3 (SafeAntCircle-v0)", or with its class where it has no id."""
    name = "environment" if index is None else f"environment {index}"
    inner = innermost(env)
    # Other processes are not asked: where something went wrong, they may be gone
    copy = inner.envs[index or 0].unwrapped if isinstance(inner, DummyVecEnv) else inner
    return f"{name} ({env_id(env) or type(copy).__name__})"


def registered_cost_limit(env: VecEnv) -> Any:
    """
    The limit that the task carries in an attribute ``cost_limit``: a number, or a mapping of names to limits, or None.

    :raises ValueError: the copies carry different ones
    """
    limit = _attribute(env, "cost_limit")
    try:
        others = [] if limit is None else list(env.get_attr("cost_limit"))
    except Exception:
        others = []
    if any(np.asarray(other != limit).any() for other in others):
        raise ValueError(f"the copies of the environment have different limits, {others}: pass cost_limit=...")
    return dict(limit) if isinstance(limit, dict) else limit


def check_finite(
    what: str, value: Any, env: VecEnv, step: int, env_index: int | None = None, largest: float = np.finfo(np.float64).max
) -> None:
    """
    :param what: name of the value
    :param value: an array, or a dictionary of arrays, whose first axis is the environment
    :param step: number of the step, for the message
    :param env_index: the environment that the value is of; there is no first axis then
    :param largest: largest magnitude that is accepted
    :raises ValueError: something in it is NaN, infinite, larger than that, or no number
    """
    arrays: dict[str | None, Any] = value if isinstance(value, dict) else {None: value}
    for key, array in arrays.items():
        # A terminal observation comes as the environment made it, a Python integer perhaps; others have none
        if array is None or np.asarray(array).dtype.kind in "biu":
            continue
        try:
            # None becomes NaN
            numbers = np.asarray(array).astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"the {what} is no array of numbers: {array} ({name_env(env, env_index)}, step {step})") from None
        is_fine = np.abs(numbers) <= largest
        if is_fine.all():
            continue
        if env_index is None:
            env_index = int(np.argwhere(~is_fine)[0][0])
            array, numbers = array[env_index], numbers[env_index]
        place = "" if key is None else f"[{key!r}]"
        trouble = "too large for single precision" if np.isfinite(numbers).all() else "NaN or infinite"
        raise ValueError(f"the {what}{place} is {trouble}: {array} ({name_env(env, env_index)}, step {step})")
