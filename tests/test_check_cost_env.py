"""check_cost_env: numbers worked out by hand, and each kind of trouble named, in environments that are broken too."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from safe_envs import BatchVecEnv, CostWrapper
from sb3_cpo import check_cost_env, make_vec_env


class Scripted(gym.Env):
    """
    ``info`` of the t-th step (from 1) of an episode is ``script(t, episode)``; episodes have ``lengths`` in turn.

    :param lengths: empty: episodes never end
    """

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, script, lengths=(4,), n_values=5):
        self.script, self.lengths, self.n_values = script, lengths, n_values
        self.episode, self.n_steps, self.is_closed = -1, 0, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        self.n_steps += 1
        info = self.script(self.t, self.episode)
        is_over = bool(self.lengths) and self.t == self.lengths[self.episode % len(self.lengths)]
        obs = np.zeros(1, dtype=np.float32)
        return (obs, 0.0, 2.5, is_over, False, info) if self.n_values == 6 else (obs, 0.0, is_over, False, info)

    def close(self):
        self.is_closed = True


def check(script, lengths=(4,), **kwargs):
    return check_cost_env(Scripted(script, lengths), verbose=0, **kwargs)


def only(texts, *parts):
    """The one text, which has these parts."""
    (text,) = texts
    for part in parts:
        assert part in text
    return text


# ---------------------------------------------------------------- numbers


def test_costs_of_episodes_are_summed():
    # Episodes of 2 and 4 steps cost 1 + 2 and 1 + 2 + 3 + 4, in turn
    report = check(
        lambda t, _: {"cost": float(5 - t) if t > 4 else float(t), "cost_fuel": 0.5 * (-1) ** t}, (2, 4), n_episodes=4
    )
    cost, fuel = report.costs
    assert (cost.name, fuel.name) == ("cost", "cost_fuel")
    assert sorted(cost.episode_costs) == [3, 3, 10, 10]
    assert (cost.mean, cost.std) == (6.5, 3.5)
    assert cost.quantiles[0.5] == 6.5
    assert (cost.lowest, cost.highest, cost.mentioned_share, cost.nonzero_share) == (1, 4, 1, 1)
    assert fuel.mean == 0
    assert sorted(report.lengths) == [2, 2, 4, 4]
    assert (report.n_terminated, report.n_episodes, report.n_unfinished) == (4, 4, 0)


def test_limit_worth_trying_is_half_of_random_play_with_the_rollout_that_it_needs():
    # Episodes of 10 steps cost 0 or 40: mean 20, deviation 20. At a limit of 10, a fifth of it is 2, and the spread of a sum
    # of rare costs 20 / sqrt(2): (14.14 / 2)^2 = 50 episodes
    report = check(lambda t, k: {"cost": 40.0 if k % 2 and t == 5 else 0.0}, (10,), n_episodes=20)
    assert report.suggested_limit == {"cost": 10.0}
    assert report.suggested_n_steps == 500
    assert report.n_steps_for(8) == 70  # seven whole episodes of each
    assert "cost_limit=10 (half of what random play costs)" in str(report)
    assert "n_steps=500, or 70 of each of 8 copies: 50 episodes" in str(report)


def test_limit_on_a_probability_needs_the_episodes_of_a_share():
    # Every other episode ends in a fall; at 0.25, sqrt(0.25 * 0.75) / 0.05 squared = 75 episodes
    report = check(lambda t, k: {"cost": float(k % 2 == 0 and t == 4)}, n_episodes=20)
    assert report.suggested_limit == {"cost": 0.25}
    assert report.suggested_n_steps == 75 * 4
    only(report.remarks, "in the last step of an episode only, in 50% of the episodes")


def test_limit_of_the_environment_comes_first():
    env = CostWrapper(Scripted(lambda t, _: {"cost": float(t % 2)}, (4,)), cost_limit=1.5)
    report = check_cost_env(env, verbose=0)
    assert report.suggested_limit == {"cost": 1.5}
    assert "cost_limit=1.5 (the environment's own)" in str(report)


def test_arrays_and_names_are_costs_of_their_own():
    report = check(lambda t, _: {"cost": np.array([1.0, t % 2]), "cost_b": t % 3, "crashed": False, "cost_name": "speed"})
    assert [cost.name for cost in report.costs] == ["cost[0]", "cost[1]", "cost_b"]
    assert [cost.mean for cost in report.costs] == [4, 2, 1 + 2 + 0 + 1]
    assert report.is_ok
    named = check(lambda t, _: {"crashed": t == 4, "cost": 1.0 - t % 2}, cost_keys=["crashed"])
    assert {cost.name: cost.mean for cost in named.costs} == {"crashed": 1, "cost": 2}


def test_text_is_printed_and_says_it_all(capsys):
    report = check_cost_env("SafePointGather-v0", n_episodes=5)
    out = capsys.readouterr().out
    assert out == f"{report}\n"
    assert "Costs of SafePointGather-v0" in out
    assert "5, of 15.0 steps on average (15 to 15); 0 terminated, 5 ended by time; time limit 15" in out
    assert "cost_limit=0.1 (the environment's own)" in out
    assert "No problems found" in out
    assert str(check_cost_env("SafePointGather-v0", n_episodes=5, verbose=0)) == str(report)


# ---------------------------------------------------------------- what may be wrong


def test_no_cost_is_a_problem_that_names_what_there_is():
    only(check(lambda *_: {"speed": 1.0, "name": "x"}).problems, "no step's info holds a cost", "cost_limit={'speed': limit}")
    only(check(lambda *_: {}).problems, "It is empty", "CostWrapper")


def test_named_costs_that_are_arrays_of_one_are_costs_if_asked_for():
    def script(*_):
        return {"cost_heat": np.ones((1, 1)), "name": "x"}

    only(check(script).problems, "'cost_heat' is no single number", "cost_keys=['cost_heat']")
    report = check(script, cost_keys=["cost_heat"])
    assert (report.problems, report.costs[0].mean) == ((), 4.0)


def test_costs_that_some_steps_lack_are_a_problem():
    report = check(lambda t, _: {"cost": 2.0} if t == 4 else {})
    only(report.problems, "info['cost'] is in 25.0% of the steps only", "missing_cost='zero'")
    assert report.costs[0].mean == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "is nan: costs must be finite"),
        (-math.inf, "costs must be finite"),
        ("high", "is 'high': expected a number"),
        (None, "is None: expected a number"),
        (np.zeros((2, 2)), "has shape (2, 2)"),
        (np.zeros(0), "has shape (0,)"),
        (th.ones(1, requires_grad=True), "requires a gradient: detach it"),
        (1e30, "overflow in single precision"),
    ],
)
def test_costs_that_are_no_numbers_are_named_once(value, message):
    report = check(lambda t, _: {"cost": value if t == 2 else 0.0})
    assert [problem for problem in report.problems if message in problem]
    assert len([problem for problem in report.problems if "info['cost']" in problem and "of the steps" not in problem]) == 1


def test_changing_shape_is_named():
    report = check(lambda t, _: {"cost": np.ones(2 if t == 3 else 1)})
    assert any("has 2 entries here and 1 elsewhere" in problem for problem in report.problems)


@pytest.mark.parametrize("first", [0.0, 7.0])
def test_running_total_is_recognised(first):
    """Whether it begins anew with the episode or not."""
    report = check(lambda t, k: {"cost": first * k + t // 2}, (6,))
    only(report.problems, "never falls within an episode", "total_key='cost'")
    assert (report.suggested_limit, "  try " in str(report)) == ({}, False)


def test_a_limit_for_costs_that_are_savings_lies_below_what_random_play_costs():
    report = check(lambda *_: {"cost": -1.0})
    assert report.suggested_limit == {"cost": -6.0}
    assert "cost_limit=-6 (what random play costs, less half of its size)" in str(report)


@pytest.mark.parametrize(
    "script", [lambda t, _: float(t > 2), lambda t, _: 3.0, lambda t, _: float(t % 2), lambda t, _: -t / 2]
)
def test_flags_that_stay_and_costs_that_fall_are_no_running_total(script):
    assert check(lambda t, k: {"cost": script(t, k)}, (6,)).is_ok


def test_negative_constant_and_absent_costs_are_remarked():
    only(check(lambda t, _: {"cost": float(2 - t % 4)}, (3, 5)).remarks, "info['cost'] is negative", "-1 at the lowest")
    only(check(lambda *_: {"cost": 0.5}, (3, 5)).remarks, "is 0.5 in every step", "only the length of an episode")
    report = check(lambda *_: {"cost": 0.0})
    only(report.remarks, "always 0: random play never pays")
    assert report.suggested_limit == {}
    only(check(lambda t, _: {"cost": float(t == 2)}).remarks, "every episode costs 1 in info['cost']")


def test_endless_episodes_end_the_check():
    env = Scripted(lambda t, _: {"cost": float(t % 2)}, ())
    report = check_cost_env(env, max_steps=300, verbose=0)
    assert 300 <= env.n_steps < 400  # SB3's check plays some
    only(report.problems, "no episode ended in 300 steps", "TimeLimit")
    assert report.suggested_n_steps is None
    assert "none ended in 300 steps" in str(report)


def test_short_episodes_of_long_ones_are_remarked():
    """Of two copies, one never ends: the mean is of the other."""
    env = DummyVecEnv([lambda n=n: Scripted(lambda t, _: {"cost": float(t % 2)}, (n,)) for n in (4, 10_000)])
    report = check_cost_env(env, n_episodes=4, max_steps=200, verbose=0)
    assert report.n_unfinished == 1
    assert any("had not ended when the check stopped" in remark for remark in report.remarks)


def test_six_values_are_named_and_read():
    """Directly, and behind the wrappers of gym.make, which raise."""
    report = check_cost_env(Scripted(lambda *_: {}, (4,), n_values=6), verbose=0)
    only(report.problems, "step returns six values", "SixTupleWrapper")
    assert report.costs[0].mean == 10
    gym.register("SixValues-v0", Scripted, max_episode_steps=3, kwargs={"script": lambda *_: {}, "lengths": (), "n_values": 6})
    try:
        report = check_cost_env("SixValues-v0", verbose=0)
    finally:
        del gym.registry["SixValues-v0"]
    only(report.problems, "step returns six values")
    assert (report.costs[0].mean, report.n_episodes) == (7.5, 20)
    behind = check_cost_env(DummyVecEnv([lambda: Scripted(lambda *_: {}, (4,), n_values=6)]), verbose=0)
    only(behind.problems, "after 0 steps: ValueError: too many values to unpack", "SixTupleWrapper")


def test_a_step_that_raises_is_reported_with_its_place():
    def script(t, episode):
        if episode > 12:  # SB3's check has played some
            raise RuntimeError("the simulator is gone")
        return {"cost": 1.0 - t % 2}

    report = check(script)
    only(report.problems, "steps: RuntimeError: the simulator is gone", "test_check_cost_env.py, line")
    assert report.costs[0].mean == 2


def test_what_sb3s_check_finds_is_said():
    class WrongObservation(Scripted):
        def reset(self, **kwargs):
            return super().reset(**kwargs)[0].astype(np.float64) + 7, {}

    assert any(
        "SB3's check_env says: AssertionError" in text
        for text in check_cost_env(WrongObservation(lambda *_: {"cost": 0}), verbose=0).problems
    )


class Goals(Scripted):
    """What SB3 takes for a goal environment, as those of gymnasium-robotics."""

    observation_space = spaces.Dict({key: spaces.Box(-1, 1, (1,)) for key in ("observation", "achieved_goal", "desired_goal")})

    def reset(self, **kwargs):
        return self.observation_space.sample(), super().reset(**kwargs)[1]

    def step(self, action):
        return self.observation_space.sample(), *super().step(action)[1:]

    def compute_reward(self, achieved_goal, desired_goal, info):
        return np.zeros(np.shape(achieved_goal)[:-1])


def test_goal_environments_in_a_wrapper_have_no_problem():
    report = check_cost_env(CostWrapper(Goals(lambda t, episode: {}), lambda: 1.0), 3, verbose=0)
    assert report.problems == ()


def test_limited_cost_that_is_never_there_is_a_problem():
    env = CostWrapper(Scripted(lambda t, _: {"cost_a": float(t % 2)}), cost_limit={"cost_a": 1.0, "cost_b": 1.0})
    only(check_cost_env(env, verbose=0).problems, "has 'cost_b', which is to be limited; it has 'cost_a'")


# ---------------------------------------------------------------- what can be checked


def test_every_copy_of_a_vec_env_plays_its_share():
    """The first episodes to end would be the short ones."""
    env = DummyVecEnv([lambda n=n: Monitor(Scripted(lambda t, _: {"cost": t % 2}, (n,))) for n in (2, 6)])
    report = check_cost_env(env, n_episodes=10, verbose=0)
    assert sorted(report.lengths) == [2] * 5 + [6] * 5
    assert report.n_envs == 2


def test_all_kinds_of_environments_agree():
    texts = set()
    for env in (
        gym.make("SafePointGather-v0"),
        make_vec_env("SafePointGather-v0"),
        make_vec_env("SafePointGather-v0", vec_env_cls=BatchVecEnv),
        make_vec_env("SafePointGather-v0", vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}),
        lambda: gym.make("SafePointGather-v0"),
    ):
        report = check_cost_env(env, 6, verbose=0)
        assert report.is_ok
        texts.add((report.costs[0].registered_limit, report.n_episodes, tuple(report.lengths)))
    assert texts == {(0.1, 6, (15,) * 6)}


def test_statistics_of_vec_normalize_are_left_alone():
    env = VecNormalize(make_vec_env("SafePointGather-v0"))
    check_cost_env(env, 3, verbose=0)
    assert env.training
    assert env.obs_rms.count == pytest.approx(1e-4)


def test_ids_are_closed_and_environments_of_the_user_are_not():
    env = Scripted(lambda *_: {"cost": 0.0})
    check_cost_env(env, 1, verbose=0)
    assert not env.is_closed


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match=r"resets its copies in the step after the end.*SAME_STEP"):
        check_cost_env(gym.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises(ValueError, match="must be positive"):
        check_cost_env("CartPole-v1", 0)


# ---------------------------------------------------------------- what points to it


def train(script, **kwargs):
    from sb3_cpo import CPO

    arguments = {"cost_limit": 1.0, "n_steps": 8, "batch_size": 8, **kwargs}
    CPO("MlpPolicy", Scripted(script, kwargs.pop("lengths", (4,))), **arguments).learn(8)


@pytest.mark.parametrize(
    ("script", "kwargs"),
    [
        (lambda *_: {}, {}),
        (lambda *_: {"cost": math.nan}, {}),
        (lambda *_: {"cost": "high"}, {}),
        (lambda *_: {"cost": np.ones(2)}, {}),
        (lambda *_: {"cost": 0.0}, {"cost_limit": None}),
    ],
    ids=["missing", "not finite", "no number", "shape", "no limit"],
)
def test_errors_about_costs_point_to_the_check(script, kwargs):
    with pytest.raises((KeyError, ValueError), match=r"check_cost_env\(env\)"):
        train(script, **kwargs)
