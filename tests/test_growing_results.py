"""monitor.csv holds what was summed, whenever a cost occurs for the first time and whatever the file held before."""

import numpy as np
import pytest
from stable_baselines3.common.monitor import load_results
from toy_envs import ScriptedEnv, vec_env

from sb3_cpo import CPO, CostMonitor, make_vec_env


class SaysEnv(ScriptedEnv):
    """Episodes of three steps; ``says(episode, step)`` are the costs of a step, both counted from 0."""

    def __init__(self, says):
        super().__init__(lengths=(3,))
        self.says = says

    def step(self, action):
        *result, _ = super().step(action)
        return *result, dict(self.says(self.episode, self.steps - 1))


def play(folder, says, n_episodes=2, **kwargs):
    """Rows of the file, and what the last episode said."""
    env = CostMonitor(SaysEnv(says), str(folder / "0"), **kwargs)
    for _ in range(n_episodes):
        env.reset()
        for _ in range(3):
            *_, info = env.step(env.action_space.sample())
    env.close()
    table = load_results(str(folder))
    return table[[column for column in table if column not in ("index", "r", "t", "l")]], info["episode"]


def test_a_second_cost_that_occurs_in_a_later_episode_has_a_column(tmp_path):
    table, episode = play(tmp_path, lambda i, t: {"cost_a": 1.0, **({"cost_b": 2.0} if (i, t) == (1, 1) else {})}, 3)
    assert table.to_dict("list") == {"cost_a": [3, 3, 3], "cost_b": [0, 2, 0]}
    assert episode["cost_b"] == 0


def test_a_first_cost_that_occurs_in_a_later_episode_has_a_column(tmp_path):
    table, _ = play(tmp_path, lambda i, t: {"cost": 5.0} if (i, t) == (1, 0) else {})
    assert table.to_dict("list") == {"cost": [0, 5]}


@pytest.mark.parametrize("says", [{"cost": 1.0}, {"cost_a": 1.0, "cost_b": 2.0}, {"cost": np.ones(2)}, {}])
def test_appending_to_no_file_begins_one(says, tmp_path):
    for n_rows in (2, 4):
        table, _ = play(tmp_path, lambda i, t: says, override_existing=False)
        assert len(table) == n_rows
        assert (table.to_numpy() == 3.0 * np.concatenate([np.ravel(value) for value in says.values()] or [[]])).all()


def test_appending_keeps_the_columns_of_the_file_and_adds_others(tmp_path):
    play(tmp_path, lambda i, t: {"cost_b": 1.0, "cost_a": 2.0})
    first_line = (tmp_path / "0.monitor.csv").read_text().splitlines()[0]
    table, _ = play(tmp_path, lambda i, t: {"cost_c": 4.0, "cost_b": 3.0}, override_existing=False)
    assert list(table) == ["cost_a", "cost_b", "cost_c"]
    # SB3 sorts the rows by their time since the run began
    table = table.sort_values("cost_b")
    np.testing.assert_array_equal(table["cost_a"], [6, 6, np.nan, np.nan])
    np.testing.assert_array_equal(table["cost_b"], [3, 3, 9, 9])
    # Nobody knows what it was in the run before
    np.testing.assert_array_equal(table["cost_c"], [np.nan, np.nan, 12, 12])
    assert (tmp_path / "0.monitor.csv").read_text().splitlines()[0] == first_line


@pytest.mark.parametrize(
    ("kwargs"), [{"info_keywords": ("cost_a", "note")}, {"cost_keys": ("cost_a", "cost_a"), "info_keywords": ("note",)}]
)
def test_every_column_is_there_once(kwargs, tmp_path):
    table, episode = play(tmp_path, lambda i, t: {"cost_a": 1.0, "note": t}, **kwargs)
    assert sorted(table) == ["cost_a", "note"]
    assert table["cost_a"].tolist() == [3, 3]
    assert episode["note"] == 2


@pytest.mark.parametrize("key", ["r", "l", "t"])
def test_a_cost_cannot_take_the_place_of_return_length_and_time(key):
    with pytest.raises(ValueError, match=f"cost_keys has '{key}'"):
        CostMonitor(ScriptedEnv(), cost_keys=(key,))
    env = vec_env(lambda rank: CostMonitor(SaysEnv(lambda i, t: {key: 7.0})))
    model = CPO("MlpPolicy", env, {key: 5.0}, n_steps=6, batch_size=6, device="cpu").learn(6)
    assert model.ep_cost_mean == 21
    assert model.ep_info_buffer[-1]["l"] == 3


@pytest.mark.parametrize(
    "entry",
    [[1.0, 2.0], [1.0], [[1.0], [1.0, 2.0]], {"a": 1.0}, np.zeros((64, 64)), np.ones(1), "text", None, (), np.array(["a"])],
    ids=str,
)
def test_entries_that_are_no_numbers_are_no_costs(entry, tmp_path):
    table, episode = play(tmp_path, lambda i, t: {"cost": 1.0, "cost_history": entry})
    assert table.to_dict("list") == {"cost": [3, 3]}
    assert "cost_history" not in episode


def test_a_list_that_grows_is_no_cost(tmp_path):
    table, _ = play(tmp_path, lambda i, t: {"cost": 1.0, "cost_history": [1.0] * (t + 1)})
    assert list(table) == ["cost"]


@pytest.mark.parametrize("limit", [5.0, {"cost_rare": 5.0}])
def test_where_silence_means_zero_no_sum_is_unknown(limit, tmp_path):
    key = "cost" if limit == 5.0 else "cost_rare"

    def rare():
        return SaysEnv(lambda i, t: {key: 2.0} if (i, t) == (2, 0) else {})

    env = make_vec_env(rare, monitor_dir=str(tmp_path))
    model = CPO("MlpPolicy", env, limit, missing_cost="zero", n_steps=6, batch_size=6, device="cpu").learn(12)
    assert model.ep_cost_mean == 1
    env.close()
    assert load_results(str(tmp_path))[key].tolist() == [0, 0, 2, 0]
