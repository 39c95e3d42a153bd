"""What is installed: the files of the packages, and types that a user's editor and type checker find."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sb3_cpo", "safe_envs")

PROGRAM = """\
from sb3_cpo import CPO

model = CPO("MlpPolicy", "SafePointCircle-v0", cost_limit=5.0)
reveal_type(model)
reveal_type(model.safety.violation_rate)
reveal_type(model.safety.cumulative_cost)
reveal_type(model.num_timesteps)
CPO("MlpPolicy", "SafePointCircle-v0", n_epochs=3)
"""
# Not what this is about, and slow to read
CONFIG = """\
[mypy]
[mypy-torch.*,mujoco.*,matplotlib.*,pandas.*,tensorboard.*,rich.*,cloudpickle.*,tqdm.*]
follow_imports = skip
ignore_missing_imports = true
"""


def build(kind, folder):
    """What pip asks the build backend for: the wheel, or the one of an editable install."""
    pytest.importorskip("hatchling")
    pytest.importorskip("editables")
    command = f"import hatchling.build as backend; print(backend.build_{kind}({str(folder)!r}))"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return zipfile.ZipFile(folder / result.stdout.split()[-1])


def test_wheel_has_the_packages_with_types_and_assets(tmp_path):
    wheel = build("wheel", tmp_path)
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".xml", ".typed")]
    assert files == {str(path.relative_to(ROOT)) for path in wanted}
    assert {"sb3_cpo/py.typed", "safe_envs/py.typed", "safe_envs/mujoco/assets/humanoid.xml"} <= files
    scripts = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "sb3-cpo = sb3_cpo.__main__:main" in wheel.read(scripts).decode()


def test_type_checkers_see_the_types_after_an_editable_install(tmp_path):
    pytest.importorskip("mypy")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    wheel = build("editable", tmp_path)
    wheel.extractall(site)
    # A path to the sources, and no import hook
    assert [name for name in wheel.namelist() if name.endswith(".py")] == []
    paths = [wheel.read(name).decode().split() for name in wheel.namelist() if name.endswith(".pth")]
    assert paths == [[str(ROOT)]]
    # The packages that ours needs are those of this environment
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))

    user = tmp_path / "user"
    user.mkdir()
    (user / "program.py").write_text(PROGRAM)
    (user / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", f"--python-executable={python}", "program.py"]
    output = subprocess.run(command, cwd=user, capture_output=True, text=True).stdout
    lines = output.splitlines()
    assert 'Revealed type is "sb3_cpo.cpo.CPO"' in lines[0], output
    assert "numpy.ndarray" in lines[1]
    assert "numpy.ndarray" in lines[2]
    assert 'Revealed type is "int"' in lines[3].replace("builtins.", "")
    assert 'Unexpected keyword argument "n_epochs" for "CPO"' in output
