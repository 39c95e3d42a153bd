"""The scripts behind the results run from beginning to end, in small, and leave what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(script: str, *args: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SCRIPTS / script), *args]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_demo_leaves_log_model_and_picture_and_says_where_training_ended(tmp_path):
    output = run("demo.py", "--total-timesteps", "40000", "--output", "out", folder=tmp_path)
    assert {"model.zip", "training.png", "progress.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert list((tmp_path / "out").glob("events.out.tfevents*"))
    last = output.strip().splitlines()[-1]
    assert last.startswith("CPO ends with a return of")
    assert "limit of 5" in last


@pytest.mark.slow
def test_paper_figures_compare_and_do_not_repeat_what_is_there(tmp_path):
    args = ("--tasks", "SafePointGather-v0", "--algorithms", "CPO", "TRPO", "--seeds", "0", "--total-timesteps", "99000")
    output = run("experiments/paper_figures.py", *args, folder=tmp_path)
    rows = pd.read_csv(tmp_path / "results" / "SafePointGather-v0" / "TRPO-0.csv")
    # 33 whole episodes of 15 steps in each of 100 copies
    assert rows["time/total_timesteps"].tolist() == [49500, 99000]
    table = pd.read_csv(tmp_path / "results" / "SafePointGather-v0.csv")
    assert table["algorithm"].tolist() == ["CPO", "TRPO"]
    assert (tmp_path / "results" / "SafePointGather-v0-calibration.png").exists()
    assert "there already" not in output
    assert run("experiments/paper_figures.py", *args, folder=tmp_path).count("there already") == 2


def test_promise_runs_what_is_not_done_and_shows_a_table(tmp_path):
    args = ("run", "--group", "small", "--only", "double integrator", "--seeds", "0", "--steps", "4000", "--output", "out")
    run("experiments/promise.py", *args, folder=tmp_path)
    path = tmp_path / "out" / "double integrator_seed0.csv"
    written = path.read_bytes()
    run("experiments/promise.py", *args, folder=tmp_path)
    assert path.read_bytes() == written
    table = run("experiments/promise.py", "show", "out", folder=tmp_path)
    assert [line.split(" | ")[2] for line in table.splitlines()[2:]] == ["cost_speed", "cost_force"]


@pytest.mark.slow
def test_benchmark_prints_ratios(tmp_path):
    assert "times as fast" in run("benchmark.py", "envs", "--n-envs", "2", "--steps", "2", "--rounds", "1", folder=tmp_path)
