"""What a resumed training has logged: no row is lost or doubled."""

import csv
from pathlib import Path

import pytest
from resuming import (
    CLOCKS,
    KWARGS,
    N_ENVS,
    N_STEPS,
    ROLLOUT,
    Kill,
    Killed,
    risky,
)
from stable_baselines3.common.logger import configure
from toy_envs import RiskyEnv

from sb3_cpo import CPO, TrainingCheckpoint, make_vec_env


@pytest.mark.parametrize("log_interval", [1, 2])
def test_rows_of_files_are_neither_lost_nor_doubled(log_interval, tmp_path):
    def run(folder, kill_at=None, resume=False):
        env = make_vec_env(lambda: RiskyEnv(length=7), n_envs=N_ENVS, seed=5, monitor_dir=str(folder))
        model = CPO.resume(folder / "parts", env) if resume else CPO("MlpPolicy", env, 1.0, **KWARGS)
        model.set_logger(configure(str(folder), ["csv", "json", "log", "tensorboard"]))
        callbacks = [TrainingCheckpoint(2 * N_STEPS, folder / "parts"), *([Kill(kill_at)] if kill_at else [])]
        try:
            model.learn(7 * ROLLOUT, callback=callbacks, log_interval=log_interval)
        except Killed:
            pass
        model.logger.close()
        env.close()

    run(tmp_path / "whole")
    run(tmp_path / "broken", kill_at=5 * ROLLOUT + 4)
    # Twice: rows of a first attempt to go on are taken back too
    run(tmp_path / "broken", kill_at=6 * ROLLOUT + 4, resume=True)
    run(tmp_path / "broken", resume=True)

    def read_csv(path):
        with open(path) as file:
            return [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(file)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert read_csv(whole / "progress.csv") == read_csv(broken / "progress.csv")
    assert len(read_csv(whole / "progress.csv")) == 7 // log_interval
    for rank in range(N_ENVS):
        lines = [
            [line.rsplit(",", 2)[0] if line[0] != "#" else "#" for line in path.read_text().splitlines()]
            for path in (whole / f"{rank}.monitor.csv", broken / f"{rank}.monitor.csv")
        ]
        assert lines[0] == lines[1]
        assert len(lines[0]) == 2 + 7 * N_STEPS // 7
    assert scalars(whole) == scalars(broken)
    assert [step for step, _ in scalars(whole)["rollout/ep_cost_mean"]]


def scalars(folder):
    """Every scalar in all of TensorBoard's files, doubled ones too, by step: the files' names may have no order."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in CLOCKS:
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return {tag: sorted(values) for tag, values in found.items()}


def test_tensorboard_goes_on_in_its_folder_even_if_there_is_a_newer_one(tmp_path):
    logs = str(tmp_path / "tb")
    model = CPO("MlpPolicy", risky(), 1.0, tensorboard_log=logs, **KWARGS)
    with pytest.raises(Killed):
        model.learn(4 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path / "parts"), Kill(2 * ROLLOUT + 4)])
    CPO("MlpPolicy", risky(), 1.0, tensorboard_log=logs, **KWARGS).learn(ROLLOUT)
    resumed = CPO.resume(tmp_path / "parts", risky())
    resumed.learn(4 * ROLLOUT)
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["CPO_1", "CPO_2"]
    assert [step for step, _ in scalars(tmp_path / "tb" / "CPO_1")["rollout/ep_cost_mean"]] == [
        ROLLOUT * i for i in (1, 2, 3, 4)
    ]
    # The next `learn` is a run of its own again
    resumed.learn(ROLLOUT)
    assert (tmp_path / "tb" / "CPO_3").exists()
