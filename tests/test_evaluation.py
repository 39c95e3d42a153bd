"""evaluate_policy with costs, against sums worked out by hand and against SB3's own function."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy as sb3_evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, TRPO, make_vec_env
from sb3_cpo.evaluation import EpisodeCostRecorder, evaluate_policy
from sb3_cpo.videos import record_episodes


class CountingEnv(gym.Env):
    """In step t = 1, 2, ... of an episode: reward 1, costs {"cost": t, "cost_speed": 2 t, "cost_energy": 3}."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))
    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, lengths=(4,), array=False):
        self.lengths, self.array = lengths, array
        self.n_episodes = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_episodes += 1
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        cost = np.array([self.t, 10.0]) if self.array else float(self.t)
        info = {"cost": cost, "cost_speed": 2.0 * self.t, "cost_energy": 3.0}
        is_over = self.t == self.lengths[self.n_episodes % len(self.lengths)]
        return np.zeros(1, dtype=np.float32), 1.0, is_over, False, info

    def render(self):
        return np.full((8, 8, 3), self.t, dtype=np.uint8)


class Still:
    """A policy that does nothing."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 1)), None


def test_costs_of_an_episode_are_summed():
    # 1 + 2 + 3 + 4, in two episodes
    mean, std, mean_cost, std_cost = evaluate_policy(Still(), Monitor(CountingEnv()), n_eval_episodes=2)
    assert (mean, std) == (4.0, 0.0)
    np.testing.assert_array_equal(mean_cost, [10.0])
    np.testing.assert_array_equal(std_cost, [0.0])


def test_means_and_spreads_are_over_episodes():
    # Episodes of 2 and 4 steps cost 3 and 10
    mean, std, mean_cost, std_cost = evaluate_policy(Still(), Monitor(CountingEnv((2, 4))), n_eval_episodes=2)
    assert (mean, std) == (3.0, 1.0)
    np.testing.assert_array_equal(mean_cost, [6.5])
    np.testing.assert_array_equal(std_cost, [3.5])


def test_named_costs_keep_their_order():
    keys = ("cost_energy", "cost_speed")
    *_, costs = evaluate_policy(Still(), Monitor(CountingEnv()), 1, return_episode_rewards=True, cost_keys=keys)
    np.testing.assert_array_equal(costs, [[12.0, 20.0]])


def test_array_of_costs_gives_one_sum_per_entry():
    *_, costs = evaluate_policy(Still(), Monitor(CountingEnv(array=True)), 1, return_episode_rewards=True)
    np.testing.assert_array_equal(costs, [[10.0, 40.0]])


@pytest.mark.parametrize("wrapper", [Monitor, lambda env: env])
def test_costs_and_rewards_are_of_the_same_episodes(wrapper):
    """Copies with different episode lengths end in another order than they began; cost = l (l + 1) / 2 in each."""
    env = DummyVecEnv([lambda length=length: wrapper(CountingEnv((length, length + 3))) for length in (5, 2, 3)])
    rewards, lengths, costs = evaluate_policy(Still(), env, 8, return_episode_rewards=True, warn=False)
    assert rewards == lengths
    assert len(set(lengths)) > 3
    np.testing.assert_array_equal(costs[:, 0], [length * (length + 1) / 2 for length in lengths])


def test_rewards_are_those_of_sb3_and_the_users_callback_is_called():
    env = make_vec_env("SafePointCircle-v0", n_envs=2, seed=3)
    model = CPO("MlpPolicy", env, 25.0, n_steps=64, batch_size=64, seed=0)
    calls = []
    env.seed(5)
    expected = sb3_evaluate_policy(model, env, 4, return_episode_rewards=True)
    env.seed(5)
    rewards, lengths, costs = evaluate_policy(
        model, env, 4, return_episode_rewards=True, callback=lambda locals_, _: calls.append(locals_["info"]["cost"])
    )
    assert (rewards, lengths) == expected
    assert costs.shape == (4, 1)
    assert len(calls) == sum(lengths)
    assert costs.sum() == pytest.approx(sum(calls))


def test_costs_are_those_of_the_monitor_and_of_batch_vec_env():
    """Three ways to the same number: info summed here, CostMonitor's sum, and BatchVecEnv's."""
    costs = {}
    for cls in (DummyVecEnv, BatchVecEnv):
        env = make_vec_env("SafePointCircle-v0", n_envs=3, seed=1, vec_env_cls=cls)
        # Straight ahead, to where costs are
        model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=2)
        model.predict = lambda obs, **_: (np.tile([1.0, 0.1], (len(obs), 1)), None)
        monitored = []
        *_, costs[cls] = evaluate_policy(
            model,
            env,
            6,
            return_episode_rewards=True,
            callback=lambda locals_, _, to=monitored: locals_["done"] and to.append(locals_["info"]["episode"]["cost"]),
        )
        np.testing.assert_allclose(costs[cls][:, 0], monitored, atol=1e-6)
    assert costs[DummyVecEnv].max() > 0
    np.testing.assert_array_equal(costs[DummyVecEnv], costs[BatchVecEnv])


def test_model_names_its_costs():
    env = make_vec_env(CountingEnv)
    model = CPO("MlpPolicy", env, cost_limit={"cost_energy": 1.0, "cost_speed": 2.0}, n_steps=8, batch_size=8)
    _, _, mean_cost, _ = evaluate_policy(model, env, 1)
    np.testing.assert_array_equal(mean_cost, [12.0, 20.0])


def test_costs_behind_vec_normalize_are_raw():
    env = VecNormalize(make_vec_env(CountingEnv), training=False)
    _, _, mean_cost, _ = evaluate_policy(Still(), env, 1)
    np.testing.assert_array_equal(mean_cost, [10.0])


def test_missing_cost_is_named_or_zero():
    with pytest.raises(KeyError, match=r"info has no 'cost_heat'.*'cost_energy'.*cost_keys"):
        evaluate_policy(Still(), Monitor(CountingEnv()), 1, cost_keys=("cost_heat",))
    with pytest.raises(KeyError, match="info has no 'cost': environment 0 of the evaluation"):
        evaluate_policy(PPO("MlpPolicy", "Pendulum-v1"), gym.make("Pendulum-v1"), 1, warn=False)
    _, _, mean_cost, _ = evaluate_policy(TRPO("MlpPolicy", "Pendulum-v1"), gym.make("Pendulum-v1"), 1, warn=False)
    assert mean_cost.shape == (0,)


def test_discounted_sum():
    # 1 + 2/2 + 3/4 + 4/8
    recorder = EpisodeCostRecorder(gamma=0.5)
    sb3_evaluate_policy(Still(), Monitor(CountingEnv()), 2, callback=recorder)
    np.testing.assert_array_equal(recorder.episode_costs, [[3.25], [3.25]])


def test_lost_lives_do_not_end_an_episode():
    """Under SB3's rule for Atari, ``done`` without ``info["episode"]`` is no end: the costs go on."""
    recorder = EpisodeCostRecorder()
    for done, info in [(False, {"cost": 1.0}), (True, {"cost": 2.0}), (True, {"cost": 4.0, "episode": {"r": 0.0}})]:
        recorder({"i": 0, "done": done, "info": info, "is_monitor_wrapped": True})
    np.testing.assert_array_equal(recorder.episode_costs, [[7.0]])


def test_recording_shows_the_states_after_each_step():
    recording = record_episodes(Still(), make_vec_env(CountingEnv), n_episodes=2)
    # The state after the last step is gone: the environment shows the next episode then
    assert [frame[0, 0, 0] for frame in recording.frames] == [1, 2, 3, 1, 2, 3]
    assert (recording.rewards, recording.lengths) == ([4.0, 4.0], [4, 4])
    np.testing.assert_array_equal(recording.costs, [[10.0], [10.0]])
    assert len(record_episodes(Still(), make_vec_env(CountingEnv), max_frames=2).frames) == 2


def test_a_problem_without_constraints_is_evaluated_without_costs():
    env = Monitor(CountingEnv())
    model = CPO("MlpPolicy", env, cost_limit=[], n_steps=8, batch_size=8)
    assert evaluate_policy(model, env, 1)[2].shape == (0,)
    with pytest.raises(ValueError, match="names no cost"):
        CPO("MlpPolicy", env, cost_limit={}, n_steps=8, batch_size=8)


class SevenSteps(gym.Env):
    """Every step costs 1, an episode 7; the observation is the number of the step."""

    observation_space, action_space = spaces.Box(0, 10, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.float32), 0.0, self.steps == 7, False, {"cost": 1.0}


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize, lambda env: VecFrameStack(env, 4)])
@pytest.mark.parametrize("play", ["evaluation", "by hand", "not at all"])
def test_others_who_play_between_two_calls_of_learn_are_noticed_without_a_monitor(play, wrap):
    env = wrap(DummyVecEnv([SevenSteps] * 2))
    model = CPO("MlpPolicy", env, 10.0, n_steps=20, batch_size=40, seed=0).learn(40)
    if play == "evaluation":
        evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    elif play == "by hand":
        for _ in range(2):
            env.step([0, 0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model.learn(40, reset_num_timesteps=False)
            assert model.raw_cost_estimate.mean == 7
    told = [str(warning.message) for warning in caught if "was reset while episodes were in progress" in str(warning.message)]
    assert bool(told) == (play != "not at all")
