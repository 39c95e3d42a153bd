"""
Safety-Gymnasium 1.0.0 beside a current numpy, gymnasium and MuJoCo.

Its package asks for gymnasium 0.28.1 and MuJoCo 2.3.3. The modules that build and step its tasks are loaded here as a private
copy: without the package's ``__init__``, which needs wrappers that gymnasium no longer has, and with the few names replaced in
them that newer libraries would break. Nothing is changed on disk, nor in any module that others import.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import mujoco_rendering

PACKAGE = "safety_gymnasium"
INSTALLATION = f"pip install --no-deps {PACKAGE.replace('_', '-')}==1.0.0\n    pip install xmltodict pyyaml"


def check_installation() -> None:
    """
    :raises ImportError: a package is missing; the message says how to install it
    """
    missing = [name for name in (PACKAGE, "xmltodict", "yaml") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Safety-Gymnasium's tasks need {' and '.join(missing)}, not installed here. In two lines (its own requirements "
            f"are those of 2023, therefore --no-deps):\n\n    {INSTALLATION}",
            name=missing[0],
        )


@cache
def load_builder() -> type[Any]:
    """Safety-Gymnasium's ``Builder``, the environment of all its navigation tasks."""
    check_installation()
    with _private_modules():
        color = import_module(f"{PACKAGE}.assets.color")
        color.COLOR = {name: array.view(_HashableArray) for name, array in color.COLOR.items()}  # type: ignore[attr-defined]
        builder = import_module(f"{PACKAGE}.builder")
        base_agent, underlying = (import_module(f"{PACKAGE}.bases.{name}") for name in ("base_agent", "underlying"))
    # The names that its functions look up in their own modules
    base_agent.float = _to_float  # type: ignore[attr-defined]
    underlying.OffScreenViewer = _OffScreenViewer  # type: ignore[attr-defined]
    _find_sensors_by_number(base_agent.BaseAgent)
    return builder.Builder


@contextmanager
def _private_modules() -> Iterator[None]:
    """Modules of the package that are imported within are not seen outside, and its ``__init__`` does not run."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    others = _pop_modules()
    sys.modules[PACKAGE] = module_from_spec(spec)
    try:
        yield
    finally:
        _pop_modules()
        sys.modules.update(others)


def _pop_modules() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


class _HashableArray(np.ndarray):
    """Since Python 3.11, dataclasses refuse defaults that cannot be hashed: here, the colours of the obstacles."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def _to_float(value: Any) -> float:
    """numpy is about to refuse ``float(array)`` of an array with one element."""
    return np.asarray(value, dtype=np.float64).item()


def _find_sensors_by_number(base_agent: type[Any]) -> None:
    """A sensor's ``objid`` is an array with one element, by which MuJoCo no longer looks up a joint."""
    find_sensors = base_agent._init_jnt_sensors

    def find_sensors_by_number(agent: Any) -> None:
        engine = agent.engine
        agent.engine = _Engine(_Model(engine.model))
        find_sensors(agent)
        agent.engine = engine

    base_agent._init_jnt_sensors = find_sensors_by_number


class _Engine:
    def __init__(self, model: "_Model"):
        self.model = model


class _Model:
    """A MuJoCo model whose joints can be looked up by an array with one element."""

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def jnt(self, index: Any) -> Any:
        return self._model.jnt(int(np.asarray(index).item()))


class _OffScreenViewer(mujoco_rendering.OffScreenViewer):
    """gymnasium's, which is now told how large the picture is."""

    def __init__(self, model: Any, data: Any):
        picture = model.vis.global_
        super().__init__(model, data, picture.offwidth, picture.offheight)
