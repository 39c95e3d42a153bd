"""rl_zoo3's command lines, with our defaults, choices and a page of help. Their parsers are made inside their functions."""

import argparse
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

Changes = dict[str, dict[str, Any]]


class _Parser(argparse.ArgumentParser):
    """
    :param changes: option -> keyword arguments of ``add_argument`` that replace rl_zoo3's
    """

    def __init__(self, changes: Changes, **kwargs: Any):
        self._changes = changes
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        for name in names:
            kwargs.update(self._changes.get(name, {}))
        return super().add_argument(*names, **kwargs)


def run(function: Callable[[], None], module: ModuleType, changes: Changes, **parser_kwargs: Any) -> None:
    """
    Run a script of rl_zoo3 with changed options.

    :param function: reads the command line with ``argparse.ArgumentParser()``
    :param module: where it looks up ``argparse``
    """
    module.argparse = SimpleNamespace(ArgumentParser=partial(_Parser, changes, **parser_kwargs))  # type: ignore[attr-defined]
    try:
        function()
    finally:
        module.argparse = argparse  # type: ignore[attr-defined]
