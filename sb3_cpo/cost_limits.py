"""What the user constrains: names and limits of the costs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sb3_cpo.dual import MAX_CONSTRAINTS

# Sums of costs, in single precision too: 30 times 0.1 is not more than 3
RELATIVE_ROUNDING = 1e-6

Limit: TypeAlias = float | Callable[[float], float]
CostLimit: TypeAlias = Limit | Sequence[Limit] | Mapping[str, Limit]


class MissingLimit(ValueError):
    """Neither the user nor the environment says a limit."""


class CostLimits(NamedTuple):
    """
    The constraints of a problem.

    ``cost_limit=5`` and ``cost_limit=[5, 2]`` limit ``info["cost"]``, a float or an array with one entry per constraint;
    ``cost_limit={"cost_speed": 20, "cost_energy": 5}`` limits the sums of ``info["cost_speed"]`` and ``info["cost_energy"]``.
    """

    keys: tuple[str, ...] | None
    """Keys of ``info``, one per constraint; None: all constraints share ``info["cost"]``."""
    names: tuple[str, ...]
    """Ends of the log keys, one per constraint; empty for a single unnamed constraint."""
    limits: tuple[Limit, ...]
    is_unlimited: bool = False
    """Whether nobody has said what is limited. (``cost_limit=[]`` says that nothing is.)"""

    @classmethod
    def unlimited(cls, n_costs: int = 1) -> "CostLimits":
        """``info["cost"]``, to be observed and not to be limited."""
        return cls(None, _numbers(n_costs), (np.inf,) * n_costs, is_unlimited=True)

    @property
    def is_limited(self) -> bool:
        return any(limit != np.inf for limit in self.limits)

    @property
    def n_costs(self) -> int:
        return len(self.limits)

    def at(self, progress_remaining: float) -> np.ndarray:
        """
        The limits at some time in training.

        :param progress_remaining: 1 at the beginning, 0 at the end, as for SB3's schedules
        :return: (n_costs,)
        """
        # The last rollout usually goes beyond the end
        progress_remaining = min(max(progress_remaining, 0.0), 1.0)
        values = [_call(limit, progress_remaining) if callable(limit) else limit for limit in self.limits]
        for index, value in enumerate(values):
            try:
                values[index] = float(np.asarray(value).item()) if not isinstance(value, str | bytes) else value
                is_finite = bool(np.isfinite(values[index]))
            except (TypeError, ValueError):
                is_finite = False
            if not is_finite and self.is_limited:
                when = f" at progress_remaining={progress_remaining}" if callable(self.limits[index]) else ""
                shown = repr(value) if isinstance(value, str) else value
                raise ValueError(f"{self.name_limit(index)} is {shown}{when}: a limit must be a finite number")
        return np.array(values, dtype=np.float64)

    def name_limit(self, index: int) -> str:
        """For messages: "cost_limit['cost_speed']", "cost_limit[1]"."""
        if self.keys is not None:
            return f"cost_limit[{self.keys[index]!r}]"
        return f"cost_limit[{index}]" if self.names else "cost_limit"

    def name_cost(self, index: int) -> str:
        """For messages: "info['cost_speed']", "info['cost'][1]"."""
        if self.keys is not None:
            return f"info[{self.keys[index]!r}]"
        return f"info['cost'][{index}]" if self.names else "info['cost']"


def parse_cost_limit(cost_limit: CostLimit) -> CostLimits:
    """
    Bring the forms in which a user may state limits into one.

    :raises ValueError: a limit that is no finite number, a name that is no string, more than 10 constraints
    """
    limits: list[Any]
    if isinstance(cost_limit, Mapping):
        keys = tuple(cost_limit)
        if not all(isinstance(key, str) and key for key in keys):
            raise ValueError(f"the keys of cost_limit must be keys of info, non-empty strings, not {list(cost_limit)}")
        parsed = CostLimits(keys, keys, tuple(_as_limit(value, f"[{key!r}]") for key, value in cost_limit.items()))
    elif isinstance(cost_limit, Sequence | np.ndarray) and not isinstance(cost_limit, str) and np.ndim(cost_limit) > 0:  # type: ignore[arg-type]
        limits = [_as_limit(value, f"[{index}]") for index, value in enumerate(cost_limit)]
        parsed = CostLimits(None, _numbers(len(limits)), tuple(limits))
    else:
        parsed = CostLimits(None, (), (_as_limit(cost_limit, ""),))
    if isinstance(cost_limit, Mapping) and not cost_limit:
        raise ValueError("cost_limit={} names no cost: write {key of info: limit}, or [] for a problem without constraints")
    if parsed.n_costs > MAX_CONSTRAINTS:
        raise ValueError(f"cost_limit has {parsed.n_costs} entries; at most {MAX_CONSTRAINTS} constraints are supported")
    if not parsed.is_limited and parsed.n_costs > 0:
        raise ValueError(f"cost_limit is {cost_limit}: a limit must be a finite number")
    parsed.at(1.0)
    return parsed


def _numbers(n_costs: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(n_costs)) if n_costs > 1 else ()


def _call(limit: Callable[[float], float], progress_remaining: float) -> float:
    try:
        return limit(progress_remaining)
    except TypeError as error:
        error.add_note(
            "A cost_limit that is a function gets one number, the remaining progress: 1 at the beginning, 0 at the end"
        )
        raise


def _as_limit(value: Any, place: str) -> Limit:
    if callable(value) and not isinstance(value, type):
        return value
    try:
        if isinstance(value, str | bool | np.bool_):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        hint = ""
        if isinstance(value, str) and value.startswith("lin_"):
            hint = " (names of schedules are for the zoo: write stable_baselines3.common.utils.LinearSchedule(25.0, 5.0, 1.0))"
        elif isinstance(value, str) and place[1:-1].isdecimal():
            hint = f" (names and limits are a mapping: cost_limit={{{value!r}: limit}})"
        raise ValueError(
            f"cost_limit{place} is {value!r}: expected a number, or a function of the remaining progress that returns one"
            + hint
        ) from None


def exceeds(costs: np.ndarray | float, limits: np.ndarray | float) -> np.ndarray:
    """
    Whether costs are over their limits, by more than the rounding of their sums.

    :param costs: (n_costs,), or any shape that goes with that of the limits
    """
    return np.asarray(costs > limits + RELATIVE_ROUNDING * np.maximum(np.abs(costs), np.abs(limits)))


def excess(costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """
    By how much costs are over their limits, negative where they are below; 0 where they are over by rounding.

    :param costs: (n_costs,)
    :param limits: (n_costs,)
    """
    difference = costs - limits
    return np.where(exceeds(costs, limits), difference, np.minimum(difference, 0.0))


def read_limits(texts: Sequence[str] | None) -> Any:
    """
    Limits of a command line: ``5``, ``5 2`` or ``cost_speed:20 cost_energy:5``.

    :return: a number, a list, or a mapping; None for None
    :raises ValueError: a text is neither a number nor name:number
    """
    if texts is None:
        return None
    pairs = [text.rpartition(":") for text in texts]
    try:
        if all(name for name, _, _ in pairs):
            return {name: float(number) for name, _, number in pairs}
        numbers = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"{' '.join(texts)!r} is neither a number nor name:number for each constraint") from None
    return numbers[0] if len(numbers) == 1 else numbers
