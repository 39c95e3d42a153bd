"""The command ``sb3-cpo``, and rl_zoo3's plots."""

import os
import pickle
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from zoo_scripts import OPTIMIZE, POINT, TINY

from sb3_cpo.__main__ import COMMANDS, main

# ---------------------------------------------------------------- rl_zoo3's plots


def write_evaluations(folder, costs, results):
    folder.mkdir(parents=True)
    np.savez(
        folder / "evaluations.npz",
        timesteps=[1000, 2000],
        results=results,
        ep_lengths=np.ones_like(results),
        costs=np.asarray(costs)[:, :, None],
        cost_limits=[[5.0], [5.0]],
    )


@pytest.mark.parametrize("shifts", [[0.0], [0.0, 2.0]])
def test_rl_zoo3s_plots_aggregate_costs(tmp_path, shifts):
    """In a process of their own: rl_zoo3's plots change matplotlib for good."""
    for run_id, shift in enumerate(shifts, start=1):
        costs = np.array([[7.0, 9.0], [3.0, 5.0]]) + shift
        write_evaluations(tmp_path / f"logs/cpo/SafePointCircle-v0_{run_id}", costs, 10 * costs)
    commands = [
        "all_plots -a cpo trpo -e SafePointCircle-v0 -f logs --no-million --key costs -o costs --no-display",
        "plot_from_file -i costs -o costs.svg",
    ]
    code = f"import sys; from sb3_cpo.zoo.plots import main\nfor c in {commands}: sys.argv = ['plots', *c.split()]; main()"
    env = {**os.environ, "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=env, capture_output=True)
    with open(tmp_path / "costs.pkl", "rb") as file:
        post_processed = pickle.load(file)["SafePointCircle-v0"]["CPO-logs"]
    np.testing.assert_array_equal(post_processed["mean"], np.array([8.0, 4.0]) + np.mean(shifts))
    np.testing.assert_array_equal(np.sort(post_processed["last_evals"], axis=None), 4.0 + np.array(shifts))
    assert (tmp_path / "costs.svg").read_text().startswith("<?xml")


def test_importing_sb3_cpo_imports_no_zoo():
    def heavy_modules_after(*modules):
        code = f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        return {"rl_zoo3", "optuna", "matplotlib", "pandas", "mujoco", "moviepy"} & set(out.split())

    # SB3 itself imports matplotlib and pandas where they are installed
    ours = heavy_modules_after("sb3_cpo", "sb3_cpo.evaluation", "sb3_cpo.callbacks")
    assert ours == heavy_modules_after("stable_baselines3")


# ---------------------------------------------------------------- sb3-cpo


def sb3_cpo(*args, missing=(), folder=None):
    """Run the command in a process of its own, as where some packages are not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from sb3_cpo.__main__ import main; main()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "MPLBACKEND": "agg"}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=folder, env=env)


def test_the_command_is_installed_under_its_name():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["sb3-cpo"].split(":")
    assert callable(getattr(import_module(module), function))
    # What a missing package's message asks to install
    extras = {extra for *_, names in COMMANDS.values() for extra in names.split(",")}
    assert extras <= set(project["optional-dependencies"])


def test_the_command_says_what_there_is(tmp_path):
    page = sb3_cpo("--help", missing=("rl_zoo3",))
    assert page.returncode == 0
    assert all(f"sb3-cpo {name}" in page.stdout for name in COMMANDS)
    wrong = sb3_cpo("fly")
    assert (wrong.returncode, wrong.stderr.strip()) == (
        1,
        "sb3-cpo: there is no command 'fly'; there are train, enjoy, tune, report, plot, video",
    )
    for name, missing in [
        ("train", "rl_zoo3"),
        ("tune", "optuna"),
        ("report", "scipy"),
        ("plot", "matplotlib"),
        ("video", "rl_zoo3"),
    ]:
        result = sb3_cpo(name, "--help", missing=(missing,))
        assert result.returncode == 1
        assert result.stderr.startswith(f"sb3-cpo {name} needs packages that are not installed")
        assert missing in result.stderr
        assert f"pip install -e '.[{COMMANDS[name][2]}]'" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_page_of_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sb3-cpo", name, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: sb3-cpo {name}" in out
    assert "examples:" in out
    assert f"sb3-cpo {name} --algo" in out or name == "plot"


def test_train_plot_and_tune_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        ["train", *POINT, "-n", "200", "--eval-freq", "100", *TINY],
        ["plot", "logs/cpo/SafePointCircle-v0_1", "-o", "circle.png"],
        ["tune", *POINT, *(option for option in OPTIMIZE if option != "-optimize"), "--n-trials", "1", *TINY],
    ]
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["sb3-cpo", *command])
        main()
    out = capsys.readouterr().out
    assert "Image: circle.png" in out
    assert "Trials: 1, complete: 1" in out
