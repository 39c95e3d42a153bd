"""A user's cost function: what it may ask for, and how it is kept in an environment's spec."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

CostFunction = Callable[..., float | np.ndarray | Mapping[str, float]]

# What a function gets that names its parameters otherwise
IN_ORDER = ("obs", "action", "next_obs", "info")
BY_NAME = (*IN_ORDER, "reward", "terminated", "truncated")
# Other names of these
ELSEWHERE = {
    **dict.fromkeys(("observation", "state", "s", "o", "last_obs"), "obs"),
    **dict.fromkeys(("next_observation", "new_obs", "next_state", "new_observation", "obs_next", "s2"), "next_obs"),
    **dict.fromkeys(("a", "act", "actions"), "action"),
    **dict.fromkeys(("r", "rew", "rewards"), "reward"),
    **dict.fromkeys(("done", "is_terminal", "terminal"), "terminated"),
    **dict.fromkeys(("timeout", "time_limit"), "truncated"),
    "infos": "info",
}


class Arguments(NamedTuple):
    """How to call a cost function."""

    is_positional: bool  # the four of IN_ORDER come first, by position
    names: tuple[str, ...]  # these follow, by name

    def asks_for(self, name: str) -> bool:
        return name in self.names or (self.is_positional and name in IN_ORDER)


def match_arguments(cost_fn: CostFunction) -> Arguments:
    """
    Find out what a cost function asks for.

    A function whose parameters have names of ``BY_NAME`` gets those; one that has other names gets the four of ``IN_ORDER`` by
    position, and by name what it has beside them. Parameters with a default that have other names are left alone;
    ``**kwargs`` gets all.

    :raises TypeError: if it has a parameter that cannot be filled
    """
    try:
        parameters = list(inspect.signature(cost_fn).parameters.values())
    except (TypeError, ValueError):  # written in C
        return Arguments(True, ())
    kinds = {parameter.kind for parameter in parameters}
    takes_any_position = inspect.Parameter.VAR_POSITIONAL in kinds
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name in BY_NAME]
    unknown = [
        p for p in parameters if p not in named and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    is_positional = takes_any_position or bool(unknown)
    if is_positional:
        in_order = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(IN_ORDER)]
        is_misplaced = any(
            (p in named or p.name in ELSEWHERE) and ELSEWHERE.get(p.name, p.name) != expected
            for p, expected in zip(in_order, IN_ORDER, strict=False)
        )
        if is_misplaced or (len(in_order) < len(IN_ORDER) and not takes_any_position):
            _raise_unknown(cost_fn, unknown)
        unknown = [p for p in unknown if p not in in_order]
        named = [p for p in named if p not in in_order]
    if unknown:
        _raise_unknown(cost_fn, unknown)
    names = [p.name for p in named]
    if takes_any_name and not takes_any_position:  # a decorator's (*args, **kwargs) gets the four alone
        names += [name for name in BY_NAME if name not in names and not (is_positional and name in IN_ORDER)]
    return Arguments(is_positional, tuple(names))


def _raise_unknown(cost_fn: CostFunction, unknown: list[inspect.Parameter]) -> None:
    names = ", ".join(repr(parameter.name) for parameter in unknown) or "parameters in another order"
    meant = [f"{p.name} is {ELSEWHERE[p.name]} here" for p in unknown if p.name in ELSEWHERE]
    hint = f" ({', '.join(meant)})" if meant else ""
    raise TypeError(
        f"cost_fn {cost_fn!r} asks for {names}: name the parameters {', '.join(BY_NAME[:-1])} or {BY_NAME[-1]}, as many of "
        f"them as you need, or take the four ({', '.join(IN_ORDER)}) by position{hint}"
    )


class UncopiedFunction:
    """
    A function as it stands in the ``spec`` of a wrapped environment. gymnasium copies specs deeply and SB3's processes pickle
    them: the function is never copied, and pickled by value where it has no import path.
    """

    def __init__(self, function: CostFunction):
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> "UncopiedFunction":
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UncopiedFunction) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return repr(self.function)

    def __reduce__(self) -> tuple[Callable[..., "UncopiedFunction"], tuple[Any, ...]]:
        try:
            return _unpickle, (cloudpickle.dumps(self.function),)
        except Exception as error:
            # A process that is asked for its spec should answer rather than die
            return _replace, (repr(self.function), str(error))


def _unpickle(content: bytes) -> UncopiedFunction:
    return UncopiedFunction(cloudpickle.loads(content))


def _replace(name: str, error: str) -> UncopiedFunction:
    def cost_fn(*_: Any) -> float:
        raise TypeError(f"the cost function {name} did not come with the environment's spec, it cannot be pickled: {error}")

    return UncopiedFunction(cost_fn)
