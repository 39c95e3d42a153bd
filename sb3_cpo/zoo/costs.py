"""A cost on the command line, for environments that have none: ``--cost my_module:my_function``."""

import os
import sys
from copy import copy
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import yaml
from gymnasium.envs.registration import WrapperSpec

NAME = "cost of the command line"
OPTION: dict[str, Any] = {
    "metavar": "MODULE:FUNCTION",
    "default": None,
    "help": "for an environment without costs: a function that safe_envs.CostWrapper takes, or a gym.Wrapper of your own",
}


def import_here(name: str, option: str) -> ModuleType:
    """
    A module that is installed, or lies in the current folder.

    :param option: that names it, for the message
    :raises ValueError: there is no such module
    """
    # A console command, unlike python -m, does not look there by itself
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{option}, but there is no module {error.name!r}, neither here nor installed") from error


def load_cost(name: str) -> Any:
    """
    What ``module:function`` names. Modules in the current folder are found, too.

    :raises ValueError: there is no such thing; the message says what there is
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"--cost is {name!r}: expected module:function, my_costs:speed for one in my_costs.py")
    module = import_here(module_name, f"--cost is {name!r}")
    cost = getattr(module, attribute, None)
    if not callable(cost):
        functions = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"--cost is {name!r}: {module_name} has no function {attribute!r}; it has {functions or 'none'}")
    return cost


def add_cost(env_id: str, name: str) -> None:
    """
    From now on, in this process, ``gym.make(env_id)`` gives the environment a cost (inside of its monitor).

    :param name: ``module:function``, or ``module:Wrapper`` for a ``gym.Wrapper`` that needs no arguments
    """
    cost = load_cost(name)
    if isinstance(cost, type) and issubclass(cost, gym.Wrapper):
        wrapper = WrapperSpec(NAME, name, {})
    else:
        wrapper = WrapperSpec(NAME, "safe_envs.wrappers:CostWrapper", {"cost_fn": cost})
    spec = copy(gym.spec(env_id))
    others = [other for other in spec.additional_wrappers if other.name != NAME]
    spec.additional_wrappers = (*others, wrapper)
    gym.registry[env_id] = spec


def add_cost_of_run(env_id: str, params_path: str | None) -> None:
    """The same for a run that was trained with ``--cost``, as its ``args.yml`` says."""
    path = Path(params_path or "") / "args.yml"
    if params_path is not None and path.is_file():
        name = yaml.load(path.read_text(), Loader=yaml.UnsafeLoader).get("cost")
        if name is not None:
            add_cost(env_id, name)
