"""What is in the table that people look at, and what is in the files only."""

import csv

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.logger import HumanOutputFormat, Logger, configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from safe_envs import CostWrapper
from sb3_cpo import CPO, FPO, PDO, TRPO, log_keys
from sb3_cpo.log_keys import NAME_WIDTH, short_names

KWARGS = {"n_steps": 64, "batch_size": 64, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
NAMES = ("cost_energy", "cost_velocity_left", "cost_velocity_of_the_left_arm", "cost_velocity_of_the_right_arm")


def pendulum(*names):
    costs = dict.fromkeys(names or ("cost",), 1.0)
    return CostWrapper(gym.make("Pendulum-v1", max_episode_steps=16), lambda: costs)


def train(algorithm, folder, names=(), verbose=1):
    """Two rollouts; the second row has everything."""
    limit = dict.fromkeys(names, 8.0) if names else 8.0
    model = algorithm("MlpPolicy", pendulum(*names), limit, verbose=verbose, **KWARGS)
    model.set_logger(configure(str(folder), ["log", "csv", "tensorboard"]))
    return model.learn(128)


def rows_of(table):
    """Key -> value of the last table, keys with their heading."""
    rows, heading = {}, ""
    for line in table.strip().split("-\n-")[-1].splitlines():
        if line.startswith("|"):
            key, value = (text.strip() for text in line.strip("|").split("|"))
            heading = key if key.endswith("/") else heading
            if not key.endswith("/"):
                rows[heading + key] = value
    return rows


@pytest.mark.filterwarnings("ignore:only .* episodes")
@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_table_is_what_a_person_acts_on_and_the_files_have_everything(algorithm, tmp_path):
    train(algorithm, tmp_path)
    rows = rows_of((tmp_path / "log.txt").read_text())
    expected = {"rollout/cost_limit", "rollout/ep_cost_mean", "rollout/ep_cost_std_error", "safety/violation_rate"}
    expected |= {"train/step_size"}
    expected |= {CPO: {"train/is_feasible", "train/nu"}, PDO: {"train/penalty_coef"}, FPO: {"train/penalty_coef"}}.get(
        algorithm, set()
    )
    of_sb3 = {"rollout/ep_len_mean", "rollout/ep_rew_mean"}
    of_sb3 |= {f"time/{key}" for key in ("fps", "iterations", "time_elapsed", "total_timesteps")}
    assert set(rows) == expected | of_sb3
    assert len(rows) <= 13

    columns = next(csv.reader((tmp_path / "progress.csv").open()))
    assert set(rows) <= set(columns)
    assert {"train/value_loss", "train/n_updates", "train/learning_rate", "rollout/n_episodes", "safety/cost_regret"} <= set(
        columns
    )
    board = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert {"train/value_loss", "train/actual_cost_change", "safety/cost_regret", "rollout/ep_cost_mean"} <= set(board)
    if algorithm is CPO:
        assert {"train/predicted_cost_change", "train/cost_gradient_noise", "train/violation"} <= set(board) & set(columns)


@pytest.mark.filterwarnings("ignore:only .* episodes")
def test_named_constraints_are_told_apart_in_the_table_and_whole_in_the_files(tmp_path):
    train(CPO, tmp_path, NAMES)
    rows = rows_of((tmp_path / "log.txt").read_text())
    for key in (
        "rollout/cost_limit",
        "rollout/ep_cost_mean",
        "rollout/ep_cost_std_error",
        "safety/violation_rate",
        "train/nu",
    ):
        names = [row.removeprefix(f"{key}/") for row in rows if row.startswith(f"{key}/")]
        assert names == ["2_velocity_of_t", "3_velocity_of_t", "cost_energy", "velocity_left"]
        assert not [row for row in rows if row.startswith(key) and row.endswith("...")]
    columns = next(csv.reader((tmp_path / "progress.csv").open()))
    board = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    for key in ("rollout/ep_cost_mean", "train/predicted_cost_change"):
        for found in (columns, board):
            assert {name for name in found if name.startswith(key)} - {key} == {f"{key}/{name}" for name in NAMES}


@pytest.mark.filterwarnings("ignore:only .* episodes")
def test_verbose_2_shows_all(tmp_path):
    train(CPO, tmp_path, NAMES, verbose=2)
    rows = rows_of((tmp_path / "log.txt").read_text())
    assert {"train/value_loss", "train/kl_divergence_loss", "rollout/n_episodes"} <= set(rows)
    assert sum(row.startswith("train/predicted_cost_change/") for row in rows) == len(NAMES)


def test_ten_constraints_of_the_longest_kind_fit(tmp_path):
    names = [f"cost_of_the_very_long_name_of_constraint_{index}" for index in range(10)]
    path = tmp_path / "table.txt"
    for shows_all in (False, True):
        logger = Logger(None, [HumanOutputFormat(str(path))])
        for key in (*log_keys.NOT_IN_TABLES, "rollout/ep_cost_std_error", "train/penalty_coef", "train/is_feasible"):
            log_keys.record(logger, {key: np.arange(10.0)}, names, shows_all)
        logger.dump()
        assert "..." not in path.read_text()


def test_a_row_of_a_users_own_algorithm_is_in_the_table(tmp_path):
    path = tmp_path / "table.txt"
    logger = Logger(None, [HumanOutputFormat(str(path))])
    log_keys.record(logger, {"train/my_loss": 0.5, "train/value_loss": 1.0})
    logger.dump()
    assert "my_loss" in path.read_text()
    assert "value_loss" not in path.read_text()


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["speed", "energy"], 15, ["speed", "energy"]),
        (["speed", "cost_velocity_left", "cost_velocity_right"], 15, ["speed", "velocity_left", "velocity_right"]),
        (["speed", "cost_velocity_left", "cost_velocity_right"], 9, ["speed", "1_velocit", "2_velocit"]),
        # What is cut off must not make two names one
        (["cost_velocity_left", "velocity_left"], 15, ["0_cost_velocity", "velocity_left"]),
        (["0_abcdefg", "abcdefghij"], 9, ["0_abcdefg", "1_abcdefg"]),
    ],
)
def test_short_names_are_short_and_differ(names, width, expected):
    assert short_names(names, width) == expected


def test_names_have_one_form_behind_all_keys_of_the_table():
    for key in ("cost_limit", "ep_cost_mean", "ep_cost_std_error", "violation_rate", "nu", "penalty_coef"):
        assert len(key) + 1 + NAME_WIDTH <= log_keys.TABLE_WIDTH
