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


def test_reproduce_compares_and_does_not_repeat_what_is_there(tmp_path):
    args = ("--tasks", "SafePointGather-v0", "--algorithms", "CPO", "TRPO", "--seeds", "0", "--total-timesteps", "78000")
    output = run("reproduce.py", *args, folder=tmp_path)
    rows = pd.read_csv(tmp_path / "results" / "SafePointGather-v0" / "CPO-0.csv")
    # 13 whole episodes of 15 steps in each of 100 copies
    assert rows["step"].tolist() == [19500, 39000, 58500, 78000]
    table = pd.read_csv(tmp_path / "results" / "SafePointGather-v0.csv")
    assert table["algorithm"].tolist() == ["CPO", "TRPO"]
    assert (tmp_path / "results" / "SafePointGather-v0-calibration.png").exists()
    assert "there already" not in output
    assert run("reproduce.py", *args, folder=tmp_path).count("there already") == 2


@pytest.mark.slow
def test_hold_limit_continues_variants_from_one_checkpoint(tmp_path):
    shared = ("--task", "SafePointCircle-v0", "--n-envs", "4", "--seeds", "0", "--output", "out")
    run("hold_limit.py", "prepare", "--steps", "2000", *shared, folder=tmp_path)
    run("hold_limit.py", "compare", "--steps", "16000", "--variants", "plain", "plain, 5 rollouts", *shared, folder=tmp_path)
    table = pd.read_csv(tmp_path / "out" / "variants.csv")
    assert table["variant"].tolist() == ["plain", "plain, 5 rollouts"]
    assert table["mean cost"].nunique() == 2
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"variants.png", "promises.png"}
    output = run(
        "hold_limit.py",
        "honesty",
        "--updates",
        "2",
        "--rollouts",
        "1",
        "--variants",
        "plain, 5 rollouts",
        *shared,
        folder=tmp_path,
    )
    assert "on independent rollouts:" in output


@pytest.mark.slow
def test_hold_limit_goes_on_after_the_last_part(tmp_path):
    shared = ("--task", "SafePointCircle-v0", "--n-envs", "4", "--seeds", "0", "--output", "out", "--variants", "held")
    shared += ("--part", "8000")
    for steps, starts in (("16000", {"0", "8000"}), ("16000", {"0", "8000"}), ("24000", {"0", "8000", "16000"})):
        run("hold_limit.py", "train", "--steps", steps, *shared, folder=tmp_path)
        assert {path.name for path in (tmp_path / "out" / "held-0").glob("[0-9]*")} == starts
    last = pd.read_csv(tmp_path / "out" / "held-0" / "16000" / "progress.csv")
    assert last["time/total_timesteps"].tolist() == list(range(18000, 26000, 2000))
    # A row is written before its rollout's update, and shows the update before
    assert last["train/n_updates"].dropna().tolist() == [9, 10, 11]


@pytest.mark.slow
def test_benchmark_prints_ratios(tmp_path):
    assert "times as fast" in run("benchmark.py", "envs", "--n-envs", "2", "--steps", "2", "--rounds", "1", folder=tmp_path)
