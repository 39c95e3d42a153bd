"""rl_zoo3's command lines, with our defaults, choices and a page of help. Their parsers are made inside their functions."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

from sb3_cpo.cost_limits import MissingLimit
from sb3_cpo.cost_signal import MissingCost
from sb3_cpo.mistakes import UnknownArgument

Changes = dict[str, dict[str, Any]]
# What to write where an environment has no cost, after the message that names the wrapper
COST_OPTION = "From the command line, --cost my_module:my_function is that wrapper (see docs/guide/zoo.md)"


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
    :raises SystemExit: an environment has no cost or no limit, or the algorithm no such argument; with what to write instead
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
    except ValueError as error:
        # rl_zoo3's, which says what is meant
        if "not found in gym registry" in str(error):
            sys.exit(str(error))
        raise
    except UnknownArgument as error:
        sys.exit(f"{error} (an argument of -params or of the hyperparameter file)")
    finally:
        module.argparse = argparse  # type: ignore[attr-defined]
