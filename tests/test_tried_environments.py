"""The programs of the page of tried environments, where their packages are installed."""

import importlib.util
import re
from pathlib import Path

import mujoco
import pytest
from packaging.version import Version

import sb3_cpo

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "tried-environments.md"
PACKAGES = ("highway_env", "minigrid", "bluesky_gym", "bullet_safety_gym", "safety_gymnasium", "gymnasium_robotics")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


class Quick(sb3_cpo.CPO):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, n_steps=60, n_critic_updates=1, device="cpu")

    def learn(self, *args, **kwargs):
        return super().learn(1)


def test_there_is_a_program_for_each_package():
    assert [sum(package in program for package in PACKAGES) for program in PROGRAMS] == [1] * len(PACKAGES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", PACKAGES)
def test_the_program_runs(package, monkeypatch, capfd):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package == "gymnasium_robotics" and Version(mujoco.__version__) >= Version("3.4"):
        pytest.skip("gymnasium-robotics needs mujoco<3.4")
    monkeypatch.setattr(sb3_cpo, "CPO", Quick)
    program = next(program for program in PROGRAMS if package in program)
    names = {}
    # bullet-safety-gym looks for the descriptor of its output
    with capfd.disabled():
        exec(compile(program, package, "exec"), names)
    assert names["model"]._n_updates == 1
