import numpy as np
import pytest

from sb3_cpo.cost_limits import CostLimits, exceeds, excess, parse_cost_limit, read_limits
from sb3_cpo.cost_signal import read_costs


@pytest.mark.parametrize(
    ("cost_limit", "keys", "names", "values"),
    [
        (5, None, (), [5]),
        (np.float32(0), None, (), [0]),
        (lambda progress: 10 * progress, None, (), [5]),
        ([5.0], None, (), [5]),
        ((5, 2), None, ("0", "1"), [5, 2]),
        (np.array([5, 2]), None, ("0", "1"), [5, 2]),
        ([lambda progress: progress, 2], None, ("0", "1"), [0.5, 2]),
        ({"cost_speed": 20, "cost_energy": lambda progress: 4 + progress}, *[("cost_speed", "cost_energy")] * 2, [20, 4.5]),
        ([], None, (), []),
    ],
)
def test_every_form_of_a_limit_means_the_same_thing(cost_limit, keys, names, values):
    limits = parse_cost_limit(cost_limit)
    assert limits.keys == keys
    assert limits.names == names
    assert limits.n_costs == len(values)
    np.testing.assert_allclose(limits.at(0.5), values)
    assert limits.is_limited == (len(values) > 0)


@pytest.mark.parametrize(
    ("cost_limit", "message"),
    [
        (np.nan, "cost_limit is nan"),
        (np.inf, "inf: a limit must be a finite number"),
        (-np.inf, "cost_limit is -inf"),
        ([1, np.nan], r"cost_limit\[1\] is nan"),
        ({"cost_speed": np.inf}, "'cost_speed': inf.*finite"),
        ({"cost_speed": 1, "cost_energy": np.nan}, r"cost_limit\['cost_energy'\] is nan"),
        (lambda progress: np.nan, "is nan at progress_remaining=1"),
        ("twenty", "cost_limit is 'twenty': expected a number"),
        ([1, "two"], r"cost_limit\[1\] is 'two': expected a number"),
        ([1, None], r"cost_limit\[1\] is None"),
        ({"cost_speed": None}, r"cost_limit\['cost_speed'\] is None"),
        ([[1, 2]], r"cost_limit\[0\] is \[1, 2\]"),
        ({3: 1.0}, r"non-empty strings, not \[3\]"),
        ({"": 1.0}, "non-empty strings"),
        ([1.0] * 11, "cost_limit has 11 entries; at most 10"),
        ({f"cost_{index}": 1.0 for index in range(11)}, "has 11 entries; at most 10"),
    ],
)
def test_a_wrong_limit_is_named(cost_limit, message):
    with pytest.raises(ValueError, match=message):
        parse_cost_limit(cost_limit)


def test_a_schedule_that_goes_wrong_later_is_named_then():
    limits = parse_cost_limit({"cost": lambda progress: 1.0 if progress > 0.5 else np.inf})
    assert limits.at(0.6) == 1
    with pytest.raises(ValueError, match=r"cost_limit\['cost'\] is inf at progress_remaining=0.2"):
        limits.at(0.2)


def test_ten_constraints_are_allowed():
    assert parse_cost_limit(range(10)).n_costs == 10


def test_costs_exceed_their_limits_by_more_than_the_rounding_of_sums():
    tenths = float(np.cumsum(np.full(30, 0.1))[-1])
    assert tenths > 3
    np.testing.assert_array_equal(
        exceeds(np.array([tenths, 3.001, 2.0, 1e9]), np.array([3.0, 3.0, 3.0, np.inf])), [0, 1, 0, 0]
    )
    # Rounding grows with the numbers
    np.testing.assert_array_equal(exceeds(np.array([1e6 + 0.1, 1e6 + 10]), 1e6), [False, True])
    np.testing.assert_array_equal(exceeds(np.array([-5.0, 0.0, 1e-8]), np.array([-5.1, 0.0, 0.0])), [True, False, True])
    assert exceeds(5.1, 5.0).shape == ()


def test_unlimited_is_one_cost_to_be_observed():
    limits = CostLimits.unlimited()
    assert limits.n_costs == 1
    assert not limits.is_limited
    assert limits.at(0.5) == np.inf


def test_read_costs_of_every_form():
    np.testing.assert_array_equal(read_costs([{"cost": 1}, {"cost": True}, {"cost": 2.5}], None, 1), [[1], [1], [2.5]])
    np.testing.assert_array_equal(read_costs([{"cost": np.array([1.5])}, {"cost": [2]}], None, 1), [[1.5], [2]])
    np.testing.assert_array_equal(read_costs([{"cost": [1, 2]}, {"cost": (3, 4)}], None, 2), [[1, 2], [3, 4]])
    infos = [{"b": 1, "a": 2, "cost": np.nan}, {"a": 4, "b": 3}]
    np.testing.assert_array_equal(read_costs(infos, ("a", "b"), 2), [[2, 1], [4, 3]])


def test_a_missing_cost_names_environment_key_and_the_keys_there_are():
    with pytest.raises(KeyError) as error:
        read_costs([{"cost": 1}, {"b": 1, "a": 2}], None, 1)
    assert (error.value.env_index, error.value.key, error.value.found) == (1, "cost", ["a", "b"])
    with pytest.raises(KeyError) as error:
        read_costs([{"a": 1, "b": 1}, {"a": 1}], ("a", "b"), 2)
    assert (error.value.env_index, error.value.key, error.value.found) == (1, "b", ["a"])
    assert str(error.value).startswith("info has no 'b': environment 1; info has the keys ['a']")
    with pytest.raises(KeyError, match=r"Is it 'costs'\? Then name it: cost_limit=\{'costs': limit\}\. .*CostWrapper"):
        read_costs([{"costs": 1}], None, 1)


@pytest.mark.parametrize(
    ("infos", "keys", "n_costs", "message"),
    [
        ([{"cost": 1.0}, {"cost": np.nan}], None, 1, r"info\['cost'\] of environment 1 is nan: costs must be finite"),
        ([{"cost": [1.0, -np.inf]}], None, 2, r"info\['cost'\] of environment 0 is .*inf.* must be finite"),
        ([{"cost": [1, 2, 3]}] * 2, None, 2, r"cost_limit has 2 entries but info\['cost'\] of environment 0 has shape \(3,\)"),
        ([{"cost": [1, 2, 3]}], None, 1, r"cost_limit has 1 entry but .* has shape \(3,\): expected shape \(\)"),
        ([{"cost": 1.0}] * 2, None, 2, r"has shape \(\): expected shape \(2,\)"),
        ([{"cost": [1, 2]}, {"cost": [1, 2, 3]}], None, 2, r"environment 1 has shape \(3,\)"),
        ([{"cost": "high"}], None, 1, "is 'high': expected a number"),
        ([{"cost": None}], None, 1, "is None"),
        ([{"a": 1.0, "b": [1, 2]}], ("a", "b"), 2, r"info\['b'\] of environment 0 has shape \(2,\): expected shape \(\)"),
        ([{"a": 1.0, "b": np.inf}], ("a", "b"), 2, r"info\['b'\] of environment 0 is inf"),
    ],
)
def test_a_wrong_cost_is_named_with_its_place(infos, keys, n_costs, message):
    with pytest.raises(ValueError, match=message):
        read_costs(infos, keys, n_costs)


def test_two_environments_with_one_cost_are_not_one_environment_with_two():
    with pytest.raises(ValueError, match="expected shape"):
        read_costs([{"cost": 1.0}, {"cost": 2.0}], None, 2)
    with pytest.raises(ValueError, match="expected shape"):
        read_costs([{"cost": [1.0, 2.0]}, {"cost": [1.0, 2.0]}], None, 4)


def test_schedules_stay_between_beginning_and_end_when_the_last_rollout_goes_beyond():
    limits = parse_cost_limit(lambda progress: 5 + 20 * progress)
    assert limits.at(-0.5).tolist() == [5]
    assert limits.at(1.0).tolist() == [25]


def test_limits_of_a_command_line():
    assert read_limits(["cost_a:1", "cost_b:2.5"]) == {"cost_a": 1.0, "cost_b": 2.5}
    assert read_limits(["3"]) == 3.0
    assert read_limits(["3", "4"]) == [3.0, 4.0]
    assert read_limits(None) is None
    for wrong in (["much"], ["cost_a:1", "2"], ["cost_a:much"]):
        with pytest.raises(ValueError, match="is neither a number nor name:number"):
            read_limits(wrong)


def test_a_schedule_is_asked_for_progress_that_there_is():
    def only_there(progress):
        assert 0 <= progress <= 1
        return 5.0

    assert parse_cost_limit(only_there).at(0.5).tolist() == [5.0]


@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e8])
def test_a_sum_is_over_its_limit_by_more_than_rounding_in_any_unit(unit):
    costs = unit * np.array([sum([0.1] * 3), sum([np.float32(0.1)] * 10), 1.67, 0.5, 2e-3])
    limits = unit * np.array([0.3, 1.0, 1.0, 0.6, 0.0])
    np.testing.assert_array_equal(exceeds(costs, limits), [False, False, True, False, True])
    np.testing.assert_allclose(excess(costs, limits) / unit, [0, 0, 0.67, -0.1, 2e-3], atol=1e-12)


def test_a_limit_may_come_as_an_array_of_one_and_is_no_truth_value():
    np.testing.assert_array_equal(parse_cost_limit(lambda progress: np.array([5.0 + progress])).at(0.5), [5.5])
    for value in (True, np.True_):
        with pytest.raises(ValueError, match="expected a number"):
            parse_cost_limit(value)
