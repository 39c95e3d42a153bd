"""Mistakes in ``policy`` and ``policy_kwargs``, and the messages that say what to write instead."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# Arguments of SB3's policies that are classes, and one for each
CLASSES = {
    "activation_fn": "torch.nn.Tanh",
    "optimizer_class": "torch.optim.Adam",
    "features_extractor_class": "stable_baselines3.common.torch_layers.FlattenExtractor",
}


def check_policy(policy: Any, aliases: Iterable[str]) -> None:
    """
    :param policy: what the user gave: a name or a class
    :param aliases: the names that there are
    :raises ValueError, TypeError: it is neither
    """
    known = ", ".join(f'"{alias}"' for alias in aliases)
    if isinstance(policy, str):
        if policy not in aliases:
            close = [alias for alias in aliases if policy and policy.lower() in alias.lower()]
            close = get_close_matches(policy, aliases, n=1) or close
            hint = f'; did you mean "{close[0]}"?' if len(close) == 1 else ""
            if policy in gym.registry:
                hint = f'; {policy!r} is an environment, which comes second: ("MlpPolicy", {policy!r}, ...)'
            elif "lstm" in policy.lower():
                hint = "; recurrent policies are not supported"
            raise ValueError(f"there is no policy {policy!r}: the policies are {known}{hint}")
    elif not isinstance(policy, type):
        raise TypeError(
            f"the policy is an object of {type(policy).__name__}: pass one of {known}. The parameters of a policy that is "
            "trained come into a model by set_parameters(path or dict, exact_match=False)"
        )


def check_policy_kwargs(policy_kwargs: Any) -> None:
    """
    :raises TypeError: they are no mapping, a class is a name, or the layers are no whole numbers
    """
    if not isinstance(policy_kwargs, Mapping):
        raise TypeError(f'policy_kwargs is {policy_kwargs!r}: expected a mapping, {{"net_arch": [64, 64]}} for instance')
    for name, example in CLASSES.items():
        if isinstance(value := policy_kwargs.get(name), str):
            raise TypeError(f"policy_kwargs has {name}={value!r}: pass the class, {example} for instance")
    net_arch = policy_kwargs.get("net_arch")
    if net_arch is not None and not _is_net_arch(net_arch):
        raise TypeError(
            f"policy_kwargs has net_arch={net_arch!r}: expected the units of each hidden layer, [64, 64], or those of actor, "
            'reward critic and cost critic, {"pi": [64, 64], "vf": [64, 64], "cvf": [64, 64]}'
        )


def _is_net_arch(net_arch: Any) -> bool:
    layers = net_arch.values() if isinstance(net_arch, Mapping) else [net_arch]
    is_list = all(isinstance(units, Iterable) and not isinstance(units, str) for units in layers)
    # SB3 still takes a mapping inside of a list, and warns
    return is_list and all(isinstance(unit, int | np.integer | Mapping) for units in layers for unit in units)


def check_dictionaries(space: spaces.Space) -> None:
    """
    :param space: of the observations that "MultiInputPolicy" gets
    :raises ValueError: it is no dictionary (SB3 fails inside of a network)
    """
    if not isinstance(space, spaces.Dict):
        raise ValueError(f'"MultiInputPolicy" is for dictionaries of observations; these are {space}: pass "MlpPolicy"')


@contextmanager
def names_policy_kwargs(policy_class: type, policy_kwargs: Mapping[str, Any]) -> Iterator[None]:
    """
    While the policy is made: an argument that it does not have is named, with one that it has.

    :raises TypeError: there is such an argument
    """
    try:
        yield
    except TypeError as error:
        # A class that hands **kwargs on does not say which names it knows
        known = {name for parent in policy_class.__mro__ for name in _parameters(parent)}
        for name in policy_kwargs:
            if name not in known and f"unexpected keyword argument {name!r}" in str(error):
                close = get_close_matches(name, sorted(known), n=1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"policy_kwargs has {name!r}, which the policy does not take{hint}") from error
        raise


def _parameters(policy_class: type) -> list[str]:
    named = inspect.signature(policy_class.__init__).parameters.values()  # type: ignore[misc]
    return [p.name for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
