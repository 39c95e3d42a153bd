"""rl_zoo3's command lines, with our defaults, choices and a page of help. Their parsers are made inside their functions."""

import argparse
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import rl_zoo3
import sb3_contrib
import stable_baselines3
from gymnasium.envs import registration
from rl_zoo3.utils import StoreDict

import safe_envs
import sb3_cpo
from sb3_cpo.cost_limits import MissingLimit
from sb3_cpo.cost_signal import MissingCost
from sb3_cpo.mistakes import UnknownArgument

Changes = dict[str, dict[str, Any]]
# What to write where an environment has no cost, after the message that names the wrapper
COST_OPTION = "From the command line, --cost my_module:my_function is that wrapper (see docs/guide/zoo.md)"
# Values of key:value options that are text without being quoted
WORD = re.compile(r"lin_[\d._e+-]+|FailurePredictor\(.*|(?!(True|False|None)$)[A-Za-z_]\w*")
# Packages that check what the user types
CHECKING = [Path(package.__path__[0]) for package in (sb3_cpo, safe_envs, rl_zoo3, stable_baselines3, sb3_contrib)]


class StoreValues(StoreDict):
    """rl_zoo3's key:value options, which evaluate the values as Python; here, a word needs no quotes."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = [text.partition(":") for text in values]
        texts = [f"{key}:{value!r}" if WORD.fullmatch(value) else f"{key}:{value}" for key, _, value in pairs]
        try:
            super().__call__(parser, namespace, texts, option_string)
        except Exception as error:
            raise argparse.ArgumentError(
                self, f"expected key:value for each, with values in Python, not {' '.join(values)} ({error})"
            ) from error


def is_mistake(error: BaseException) -> bool:
    """
    Whether the message of an error is all that the user needs: what was typed is wrong, and our code or a library's has found
    it to be. Errors from the user's own code, and those of training, need their tracebacks.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or any(frame.name == "learn" for frame in frames):
        return False
    file = Path(frames[-1].filename)
    if str(file) == registration.__file__:
        return isinstance(error, gym.error.Error) or "unexpected keyword argument" in str(error)
    return any(folder in file.parents for folder in CHECKING)


class _Parser(argparse.ArgumentParser):
    """
    :param changes: option -> keyword arguments of ``add_argument`` that replace rl_zoo3's
    :param additions: option -> keyword arguments of ``add_argument``, for options that rl_zoo3 has not
    :param finish: changes what was read; its ValueErrors are errors of the command line
    """

    def __init__(
        self,
        changes: Changes,
        additions: Changes,
        finish: Callable[[argparse.Namespace], None],
        **kwargs: Any,
    ):
        self._changes = changes
        self._finish = finish
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        for name, options in additions.items():
            super().add_argument(name, **options)

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        for name in names:
            kwargs.update(self._changes.get(name, {}))
        if kwargs.get("action") is StoreDict:
            kwargs["action"] = StoreValues
        return super().add_argument(*names, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        namespace = super().parse_args(*args, **kwargs)
        try:
            self._finish(namespace)
        except ValueError as error:
            self.error(str(error))
        return namespace


def run(
    function: Callable[[], None],
    module: ModuleType,
    changes: Changes,
    additions: Changes | None = None,
    finish: Callable[[argparse.Namespace], None] = lambda namespace: None,
    **parser_kwargs: Any,
) -> None:
    """
    Run a script of rl_zoo3 with changed options.

    :param function: reads the command line with ``argparse.ArgumentParser()``
    :param module: where it looks up ``argparse``
    :raises SystemExit: a mistake in what was typed, or an environment has no cost or no limit; with what to write instead
    """
    parser = partial(_Parser, changes, additions or {}, finish, **parser_kwargs)
    module.argparse = SimpleNamespace(ArgumentParser=parser)  # type: ignore[attr-defined]
    try:
        function()
    except MissingCost as error:
        sys.exit(f"{error}\n{COST_OPTION}")
    except MissingLimit as error:
        sys.exit(
            f"{error}\nFrom the command line: -params cost_limit:20. Where the environment has no cost either, "
            "--cost my_module:my_function gives it one (see docs/guide/zoo.md)"
        )
    except UnknownArgument as error:
        sys.exit(f"{error} (an argument of -params or of the hyperparameter file)")
    except (ValueError, TypeError, AssertionError, NotImplementedError, ImportError, gym.error.Error) as error:
        if is_mistake(error):
            sys.exit(str(error))
        raise
    finally:
        module.argparse = argparse  # type: ignore[attr-defined]
