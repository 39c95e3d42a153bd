"""``sb3-cpo train --resume``: the run that was interrupted, to the last row of its files."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from resuming import assert_same_model
from zoo_scripts import POINT, TINY, registered, run_in_folder  # noqa: F401

from sb3_cpo import CPO, TrainingCheckpoint
from sb3_cpo.zoo.train import train

ARGS = [*POINT, "-n", "1000", "--eval-freq", "400", "--eval-episodes", "1", "--seed", "1", *TINY]


def rows(path):
    with open(path) as file:
        return [[*list(row.values())[:2], row["cost"]] for row in csv.DictReader(line for line in file if line[0] != "#")]


def interrupt(monkeypatch, at):
    """SIGTERM in the middle of a rollout."""
    on_step = TrainingCheckpoint._on_step

    def interrupted(self):
        if self.num_timesteps == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step(self)

    monkeypatch.setattr(TrainingCheckpoint, "_on_step", interrupted)


@pytest.mark.parametrize("settings", [["normalize:True", "cost_limit:'lin_9_7'"], ["vec_env:'batch'"]], ids=str)
def test_a_run_that_sigterm_ended_goes_on_in_its_folder(run, settings, monkeypatch):
    run(train, *ARGS, *settings)
    with monkeypatch.context() as patch:
        interrupt(patch, 530)
        with pytest.raises(SystemExit) as exit_info:
            run(train, *ARGS, *settings)
    assert exit_info.value.code == 143
    whole, broken = (Path(f"logs/cpo/SafePointCircle-v0_{number}") for number in (1, 2))
    assert not (broken / "SafePointCircle-v0.zip").exists()
    # Rows of a process that went on and was killed before it had saved anything
    with open(broken / "monitor.csv", "a") as file:
        file.write("1,2,3,4\n5,6")

    out = run(train, *POINT, "--resume")
    assert f"Going on with {broken} at step 600" in out
    assert sorted(path.name for path in Path("logs/cpo").iterdir()) == [whole.name, broken.name]
    for name in ("SafePointCircle-v0.zip", "best_model.zip"):
        assert_same_model(CPO.load(broken / name), CPO.load(whole / name))
    assert rows(broken / "monitor.csv") == rows(whole / "monitor.csv")
    with np.load(whole / "evaluations.npz") as evaluations, np.load(broken / "evaluations.npz") as others:
        assert evaluations["timesteps"].tolist() == [400, 800]
        for key in evaluations:
            np.testing.assert_array_equal(evaluations[key], others[key])
    # It can be extended, and is named by its folder
    run(train, "--resume", str(broken), "-n", "1200")
    assert CPO.load(broken / "SafePointCircle-v0.zip").num_timesteps == 1200


def test_what_cannot_be_resumed_is_an_error_of_the_command_line(run, capsys, tmp_path):
    for args, message in (
        ([*POINT, "--resume"], "no run of cpo in SafePointCircle-v0 has a checkpoint in logs"),
        (["--resume", str(tmp_path)], "there is no args.yml of a run in"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            run(train, *args)
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err
