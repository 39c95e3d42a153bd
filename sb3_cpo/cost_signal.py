"""Reading the costs of a step from ``info``: one reader for training, evaluation and the monitor."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import numpy as np

from sb3_cpo.dual import MAX_CONSTRAINTS

# Networks compute in float32, whose largest number is 3e38, and square sums of costs
LARGEST_COST = 1e15
# What to do about costs that are not as they should be
CHECK = "sb3_cpo.check_cost_env(env) reports the costs of an environment"


class MissingCost(KeyError):
    """
    The ``info`` of a step lacks a cost.

    :param key: key of ``info`` that was looked for
    :param found: keys that there are
    :param env_index: number of the environment
    :param place: where that is, for people: "environment 2 (SafeAntCircle-v0), step 400"
    """

    def __init__(self, key: str, found: Sequence[str], env_index: int, place: str | None = None):
        super().__init__(key, found, env_index, place)
        self.key, self.found, self.env_index = key, found, env_index
        self.place = place or f"environment {env_index}"

    def __str__(self) -> str:
        # KeyError would print the message in quotes
        return f"info has no {self.key!r}: {self.place}; info has the keys {list(self.found)}. {self._advice()}. {CHECK}"

    def _advice(self) -> str:
        named = [key for key in self.found if key.startswith("cost_")]
        # Of most names, the first word is the same
        endings = {key.removeprefix("cost_"): key for key in self.found}
        close = get_close_matches(self.key.removeprefix("cost_"), endings, n=1)
        if self.key == "cost" and named:
            mapping = ", ".join(f"{key!r}: limit" for key in named)
            return (
                f"The costs of this environment have names: write a limit for each that is limited, cost_limit={{{mapping}}} "
                f"(in an evaluation: cost_keys={named})"
            )
        if self.key != "cost" and not named and "cost" in self.found:
            return "The cost of this environment is info['cost']: write its limit as a number, cost_limit=..."
        if self.key != "cost" and close:
            key = endings[close[0]]
            return f"Did you mean {key!r}? The keys of cost_limit are those of info, as in cost_limit={{{key!r}: limit}}"
        question = f"Is it {close[0]!r}? Then name it: cost_limit={{{close[0]!r}: limit}}. " if close else ""
        return question + (
            f"Costs reach the algorithm as info[{self.key!r}]: wrap the environment in safe_envs.CostWrapper, name the right "
            "key with cost_limit={key: limit} (in an evaluation: cost_keys), or pass missing_cost='zero' if a missing cost "
            "means 0"
        )


class CostSignal:
    """
    Where the costs of a problem stand in ``info``.

    :param keys: keys of ``info``, one per constraint. None: ``info["cost"]``, a number or an array
    :param n_costs: number of costs. None: as many as the first ``info["cost"]`` has, and none as long as nobody mentions one
    :param missing_cost: what a step without cost means: "error" or "zero"
    """

    def __init__(self, keys: Sequence[str] | None = None, n_costs: int | None = None, missing_cost: str = "error"):
        self.keys = None if keys is None else tuple(keys)
        self.n_costs = n_costs if keys is None else len(keys)
        self.missing_cost = missing_cost

    def read(self, infos: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """
        The costs that the environments emitted in one step.

        :param infos: one per environment
        :return: (n_envs, n_costs) float64
        :raises MissingCost: a cost is missing
        :raises ValueError: a cost is NaN, infinite, no number or of the wrong shape
        """
        if self.n_costs is None:
            self.n_costs = next((np.size(info["cost"]) for info in infos if "cost" in info), None)
        if self.n_costs is None and self.missing_cost == "zero":
            return np.zeros((len(infos), 0))
        n_costs = 1 if self.n_costs is None else self.n_costs
        if n_costs == 0:
            return np.zeros((len(infos), 0))
        if self.missing_cost == "zero":
            nothing: Any = np.zeros(n_costs) if self.keys is None and n_costs > 1 else 0.0
            defaults = dict.fromkeys(self.keys or ("cost",), nothing)
            infos = [{**defaults, **info} for info in infos]
        return read_costs(infos, self.keys, n_costs)


def read_costs(infos: Sequence[Mapping[str, Any]], keys: Sequence[str] | None, n_costs: int) -> np.ndarray:
    """
    The costs that an environment emitted in one step.

    :param infos: one per environment
    :param keys: one key per constraint, or None for ``info["cost"]``
    :param n_costs: number of constraints
    :return: (n_envs, n_costs)
    :raises MissingCost: a cost is missing
    :raises ValueError: a cost is NaN, infinite, no number or of the wrong shape
    """
    try:
        if keys is None:
            values = [info["cost"] for info in infos]
        else:
            values = [[info[key] for key in keys] for info in infos]
    except KeyError as error:
        key = error.args[0]
        index = next(index for index, info in enumerate(infos) if key not in info)
        raise MissingCost(key, sorted(map(str, infos[index])), index) from None
    try:
        costs = np.asarray(values, dtype=np.float64).reshape(len(infos), n_costs)
    except (TypeError, ValueError, RuntimeError):
        # Numbers beside arrays of one, tensors of another device; or no costs at all
        costs = _read_one_by_one(infos, keys, n_costs)
    if not (np.abs(costs) <= LARGEST_COST).all():
        _raise_wrong_cost(infos, keys, n_costs)
    return costs


def as_array(value: Any, dtype: type | None = None) -> np.ndarray:
    """
    :param dtype: None: the value's own
    :raises RuntimeError: a tensor that requires a gradient, see torch
    """
    # The costs of simulators on a GPU are tensors there
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value, dtype=dtype)


def _read_one_by_one(infos: Sequence[Mapping[str, Any]], keys: Sequence[str] | None, n_costs: int) -> np.ndarray:
    """As ``read_costs``, for values that numpy cannot put into one array at once."""
    size = 1 if keys is not None else n_costs
    try:
        values = [as_array(info[key], np.float64).reshape(size) for info in infos for key in keys or ["cost"]]
    except (TypeError, ValueError, RuntimeError):
        _raise_wrong_cost(infos, keys, n_costs)
    return np.concatenate(values).reshape(len(infos), n_costs)


def _advice(key: str, array: np.ndarray) -> str:
    """What to write where a cost is an array and is not limited as one, or the other way round."""
    if array.ndim == 0:
        return ". It is one number, and so is its limit: cost_limit=5.0 for instance"
    if array.ndim != 1 or not 1 < array.size <= MAX_CONSTRAINTS:
        return ""
    limits = f"cost_limit=[{', '.join(['limit'] * array.size)}]"
    return f". A limit for each entry: {limits}" if key == "cost" else f". Put it into info['cost'], and write {limits}"


def _raise_wrong_cost(infos: Sequence[Mapping[str, Any]], keys: Sequence[str] | None, n_costs: int) -> NoReturn:
    expected_shape = () if keys is not None or n_costs == 1 else (n_costs,)
    for index, info in enumerate(infos):
        for key in keys or ["cost"]:
            value = info[key]
            place = f"info[{key!r}] of environment {index}"
            try:
                # numpy makes NaN of None
                array = as_array("None" if value is None else value, np.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                hint = ": detach it" if isinstance(error, RuntimeError) else ""
                if isinstance(value, Mapping):
                    hint = (
                        ". A key of info for each: CostWrapper(env, lambda info: "
                        f"{{f'cost_{{name}}': cost for name, cost in info[{key!r}].items()}})"
                    )
                raise ValueError(f"{place} is {value!r}: expected a number{hint} ({CHECK})") from None
            if array.size != (1 if keys is not None else n_costs):
                entries = "entry" if n_costs == 1 else "entries"
                has = "a named cost is one number" if keys is not None else f"cost_limit has {n_costs} {entries}"
                advice = _advice(key, array)
                raise ValueError(
                    f"{has} but {place} has shape {array.shape}: expected shape {expected_shape}{advice} ({CHECK})"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{place} is {value}: costs must be finite ({CHECK})")
            if not (np.abs(array) <= LARGEST_COST).all():
                raise ValueError(f"{place} is {value}: costs beyond {LARGEST_COST:g} overflow in single precision")
    raise ValueError(f"the costs of {len(infos)} environments do not fit in shape ({len(infos)}, {n_costs})")
