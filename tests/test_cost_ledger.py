import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_cpo import CPO, FailurePredictor, evaluate_policy, make_vec_env
from sb3_cpo.cost_ledger import CostLedger, Ends, SafetyRecord


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


# ---------------------------------------------------------------- others in the training environment


def steps(costs, ends):
    """Steps of two environments for a ledger; ``ends`` maps (step, environment) to the length that a monitor says."""
    costs = np.array(costs, dtype=float).T[:, :, None]
    lengths = np.zeros(costs.shape[:2], dtype=np.int64)
    for place, length in ends.items():
        lengths[place] = length
    return costs, None, Ends(lengths > 0, lengths > 0, lengths, np.zeros(len(costs), dtype=bool)), 1.0


def test_an_episode_that_is_shorter_by_its_monitor_began_later_in_the_rollout():
    ledger = CostLedger(None, 1)
    with pytest.warns(UserWarning, match="was reset while episodes were in progress"):
        ledger.add_steps(*steps([[1, 2, 4, 8, 16, 32], [1] * 6], {(4, 0): 3, (4, 1): 5}))
    estimate = ledger.close_rollout(None, None)
    # 4 + 8 + 16, and five times 1; what came before in the first environment is of no episode that was played to its end
    assert estimate.mean == np.mean([28, 5])
    assert (estimate.n_episodes, estimate.mean_length) == (2, 4)


@pytest.mark.parametrize(("length", "mean"), [(3, [7, 205]), (4, [205])])
def test_an_episode_that_is_shorter_by_its_monitor_began_with_the_rollout_or_before(length, mean):
    """Three steps of this rollout: what was summed up before it is not of that episode, or nobody knows how much of it."""
    ledger = CostLedger(None, 1)
    ledger.add_steps(*steps([[100, 100], [100, 100]], {}))
    ledger.start_rollout()
    with pytest.warns(UserWarning, match="was reset while episodes were in progress"):
        ledger.add_steps(*steps([[1, 2, 4, 8], [1, 1, 3, 8]], {(2, 0): length, (2, 1): 5}))
    estimate = ledger.close_rollout(None, None)
    assert estimate.mean == np.mean(mean)
    assert estimate.n_episodes == len(mean)


class TenPerEpisode(gym.Env):
    """Episodes of 4 to 12 steps cost 10 each, if all of their steps are counted."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.t = int(self.np_random.integers(4, 13)), 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, dtype=np.float32), 0.0, False, self.t == self.length, {"cost": 10 / self.length}


class UseTrainingEnv(BaseCallback):
    """Play in the training environment where ``moment`` says, and note J after each rollout."""

    def __init__(self, moment, play):
        super().__init__()
        self.moment, self.play, self.seen = moment, play, []

    def _at(self, moment):
        if moment == self.moment:
            self.play(self.model, self.training_env)

    def _on_training_start(self):
        self._at("training_start")

    def _on_rollout_start(self):
        self._at("rollout_start")

    def _on_step(self):
        self._at("step" if self.n_calls % 19 == 0 else "")
        return True

    def _on_rollout_end(self):
        self.seen.append(float(self.model.ep_cost_mean[0]))
        self._at("rollout_end")

    def _on_training_end(self):
        self._at("training_end")


def evaluate(model, env):
    # Of three environments, one is left in the middle of an episode
    evaluate_policy(model, env, 2)


def play_by_hand(model, env):
    env.reset()
    for _ in range(6):
        env.step(np.zeros((env.num_envs, 1), dtype=np.float32))


def go_on(model, env):
    for _ in range(6):
        env.step(np.zeros((env.num_envs, 1), dtype=np.float32))


MOMENTS = ["training_start", "rollout_start", "step", "rollout_end", "training_end"]


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended", "ignore:the training environment was reset")
@pytest.mark.parametrize("play", [evaluate, play_by_hand, go_on])
@pytest.mark.parametrize("moment", MOMENTS)
def test_whoever_plays_in_the_training_environment_does_not_change_j(moment, play):
    callback = UseTrainingEnv(moment, play)
    env = make_vec_env(TenPerEpisode, n_envs=3, seed=0)
    model = CPO("MlpPolicy", env, 100.0, n_steps=40, batch_size=40, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu")
    model.learn(240, callback=callback)
    with pytest.warns(UserWarning, match="training environment was reset"):
        model.learn(480, callback=callback, reset_num_timesteps=False)
    assert len(callback.seen) == 6
    np.testing.assert_allclose(callback.seen, 10)


class EveryStepTwice(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        self.venv.step_wait()
        return self.venv.step(self.venv.actions)


VEC_ENVS = {
    "no monitor": lambda: DummyVecEnv([TenPerEpisode] * 3),
    "SB3's monitor": lambda: DummyVecEnv([lambda: Monitor(TenPerEpisode())] * 3),
    "VecNormalize": lambda: VecNormalize(make_vec_env(TenPerEpisode, n_envs=3)),
    "processes": lambda: SubprocVecEnv([TenPerEpisode] * 3, start_method="fork"),
}


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended", "ignore:the training environment was reset")
@pytest.mark.parametrize("moment", ["step", "training_end"])
@pytest.mark.parametrize("play", [play_by_hand, go_on])
@pytest.mark.parametrize("name", VEC_ENVS)
def test_that_needs_no_monitor_of_ours(name, play, moment):
    callback, env = UseTrainingEnv(moment, play), VEC_ENVS[name]()
    shaping = FailurePredictor(horizon=3, coef=0.0)
    model = CPO("MlpPolicy", env, 100.0, n_steps=40, batch_size=40, cost_shaping=shaping, seed=0, device="cpu")
    model.learn(120, callback=callback)
    with pytest.warns(UserWarning, match="training environment was reset"):
        model.learn(120, callback=callback, reset_num_timesteps=False)
    model.learn(120, callback=callback, reset_num_timesteps=False)
    assert len(callback.seen) == 3
    np.testing.assert_allclose(callback.seen, 10)
    np.testing.assert_allclose(model.cost_estimate.mean, 10)
    env.close()


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended")
def test_nobody_else_no_warning(recwarn):
    callback = UseTrainingEnv("never", play_by_hand)
    model = CPO("MlpPolicy", make_vec_env(TenPerEpisode, n_envs=3, seed=0), 100.0, n_steps=40, batch_size=40, device="cpu")
    model.learn(240, callback=callback)
    model.learn(240, callback=callback, reset_num_timesteps=False)
    assert not [warning for warning in recwarn if "was reset" in str(warning.message)]
    np.testing.assert_allclose(callback.seen, 10)


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended")
def test_an_environment_that_takes_the_place_of_another_begins_anew():
    model = CPO("MlpPolicy", VEC_ENVS["no monitor"](), 100.0, n_steps=40, batch_size=40, seed=0, device="cpu").learn(120)
    others = VEC_ENVS["processes"]()
    others.reset()
    model.set_env(others, force_reset=False)
    with pytest.warns(UserWarning, match="training environment was reset"):
        model.learn(240, reset_num_timesteps=False)
    np.testing.assert_allclose(model.cost_estimate.mean, 10)
    others.close()


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended")
def test_steps_that_a_wrapper_makes_of_one_are_ours(recwarn):
    model = CPO("MlpPolicy", EveryStepTwice(DummyVecEnv([TenPerEpisode] * 3)), 9.0, n_steps=40, batch_size=40, device="cpu")
    model.learn(240)
    assert not [warning for warning in recwarn if "was reset" in str(warning.message)]
    assert model.cost_estimate.n_episodes > 0


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended")
def test_resets_within_a_step_are_the_environments_own(recwarn):
    class ResetsAll(DummyVecEnv):
        def step_wait(self):
            obs, rewards, dones, infos = super().step_wait()
            return (self.reset() if dones.any() else obs), rewards, dones | dones.any(), infos

    callback = UseTrainingEnv("never", play_by_hand)
    CPO("MlpPolicy", ResetsAll([TenPerEpisode]), 100.0, n_steps=40, batch_size=40, device="cpu").learn(240, callback=callback)
    assert not [warning for warning in recwarn if "was reset" in str(warning.message)]
    np.testing.assert_allclose(callback.seen, 10)


@pytest.mark.filterwarnings("ignore:only .* episodes", "ignore:no episode ended")
def test_a_callback_can_save_vec_normalize_in_the_middle_of_a_rollout(tmp_path):
    env = VEC_ENVS["VecNormalize"]()
    save = CheckpointCallback(10, tmp_path, save_vecnormalize=True)
    CPO("MlpPolicy", env, 9.0, n_steps=40, batch_size=40, device="cpu").learn(120, callback=save)
    statistics = sorted(tmp_path.glob("*vecnormalize*"))
    assert len(statistics) == 4
    assert isinstance(VecNormalize.load(str(statistics[0]), env.venv), VecNormalize)
