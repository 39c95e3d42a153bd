import numpy as np

from sb3_cpo.cost_ledger import SafetyRecord


def test_numbers_of_five_updates_by_hand():
    record = SafetyRecord(2)
    violations = np.array([[3.0, -1.0], [1.0, -1.0], [-2.0, 0.0], [4.0, 5.0], [-1.0, -1.0]])
    for update, violation in enumerate(violations):
        record.add(np.full((10, 4, 2), [1.0, 0.5]) * (update + 1), violation, num_timesteps=40 * (update + 1))
    assert record.n_steps == 200
    assert record.n_updates == 5
    # 40 steps at 1, 2, 3, 4 and 5 times (1, 1/2)
    np.testing.assert_allclose(record.cumulative_cost, [600, 300])
    np.testing.assert_allclose(record.cost_rate, [3, 1.5])
    np.testing.assert_allclose(record.n_violations, [3, 1])
    np.testing.assert_allclose(record.violation_rate, [0.6, 0.2])
    np.testing.assert_allclose(record.cost_regret, [8, 5])
    np.testing.assert_allclose(record.longest_streak, [2, 1])
    # The third update is the first at which neither was over; exactly at the limit is not over it
    assert record.first_feasible_step == 120


def test_never_feasible_is_said():
    record = SafetyRecord(1)
    record.add(np.ones((2, 1, 1)), np.array([0.5]), num_timesteps=2)
    assert record.first_feasible_step == -1
    assert "The limit was satisfied at no update" in record.summary()


def test_summary_has_a_line_for_each_constraint():
    record = SafetyRecord(2)
    record.add(np.ones((10, 1, 2)) * [1, 3], np.array([-1.0, 2.5]), num_timesteps=10)
    speed, energy, first = record.summary(["speed", "energy"]).splitlines()
    assert "of speed: total cost 10 (1 per step), over the limit at 0% of 1 updates" in speed
    assert "of energy: total cost 30 (3 per step), over the limit at 100% of 1 updates (at most 1 in a row)" in energy
    assert "cost regret 2.5" in energy
    assert "The limit was satisfied at no update" in first


def test_before_the_first_update_rates_are_zero():
    record = SafetyRecord(1)
    assert record.cost_rate == 0
    assert record.violation_rate == 0


def test_records_do_not_share_arrays():
    first, second = SafetyRecord(1), SafetyRecord(1)
    first.add(np.ones((1, 1, 1)), np.array([1.0]), 1)
    assert second.cumulative_cost == 0
    assert second.n_violations == 0
