"""Environments that go wrong leave statistics as they were, a clear error, and a model that can go on."""

import os
import signal
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from toy_envs import BrokenEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, PDO, CostMonitor
from sb3_cpo.env_watch import EnvWatch

KWARGS = {"n_steps": 6, "batch_size": 6, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


def put(where, value, ends=False):
    """A mistake: the step, but with this value in this place."""

    def mistake(obs, reward, terminated, truncated, info):
        result = [obs, reward, terminated, truncated or ends, info]
        result[where] = value
        return tuple(result)

    return mistake


def bad_obs(value):
    return np.array([0, value], dtype=np.float32)


def broken(mistake, monitor=None, when=9, subproc=False):
    """Of two environments, the second goes wrong at its 9th step, in the second rollout."""

    def make_env(rank):
        env = BrokenEnv(mistake, when if rank == 1 else 10**9)
        return env if monitor is None else monitor(env)

    return vec_env(make_env, 2, subproc)


def statistics(env):
    moments = [env.obs_rms.mean, env.obs_rms.var, env.ret_rms.mean, env.ret_rms.var, env.returns]
    return np.concatenate([np.ravel(moment) for moment in moments])


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize(
    ("mistake", "what"),
    [
        (put(0, bad_obs(np.nan)), "observation"),
        (put(0, bad_obs(-np.inf)), "observation"),
        (put(0, bad_obs(np.nan), ends=True), "terminal observation"),
        (put(0, bad_obs(np.inf), ends=True), "terminal observation"),
        (put(1, np.nan), "reward"),
        (put(1, np.inf), "reward"),
        (put(1, 1e300), "reward"),
    ],
)
def test_no_nan_reaches_the_statistics_of_vec_normalize(mistake, what, is_stacked):
    inner = broken(mistake)
    env = VecNormalize(VecFrameStack(inner, 2) if is_stacked else inner)
    model = CPO("MlpPolicy", env, 10.0, **KWARGS).learn(12)
    with pytest.raises(ValueError, match=rf"the {what} is NaN or infinite: .*environment 1 \(\w+\), step 18\)"):
        model.learn(12, reset_num_timesteps=False)
    assert np.isfinite(statistics(env)).all()
    # It goes on by itself, and counts whole episodes only
    model.learn(24, reset_num_timesteps=False)
    assert model.ep_cost_mean == 6
    assert np.isfinite(statistics(env)).all()
    model.learn(24)
    assert model.ep_cost_mean == 6
    assert "step_wait" not in vars(inner)
    assert "reset" not in vars(inner)


def test_a_nan_in_the_first_observation():
    env = broken(put(1, 0.0))
    env.envs[1]._obs = lambda: bad_obs(np.nan)
    env = VecNormalize(env)
    with pytest.raises(ValueError, match=r"the observation is NaN.*environment 1 \(\w+\), step 0"):
        CPO("MlpPolicy", env, 10.0, **KWARGS).learn(12)
    assert np.isfinite(statistics(env)).all()


def test_statistics_that_are_broken_already_are_not_blamed_on_an_environment():
    env = VecNormalize(broken(put(1, 0.0)))
    model = CPO("MlpPolicy", env, 10.0, **KWARGS).learn(12)
    env.ret_rms.var = np.array(np.nan)
    with pytest.raises(ValueError, match="the reward from VecNormalize is NaN"):
        model.learn(12, reset_num_timesteps=False)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("ends", [False, True])
def test_values_whose_squares_overflow_are_refused_before_the_policy_s_statistics(where, ends):
    model = CPO("MlpPolicy", broken(put(where, 1e30 if where else bad_obs(1e30), ends)), 10.0, **KWARGS).learn(12)
    with pytest.raises(ValueError, match="too large for single precision"):
        model.learn(12, reset_num_timesteps=False)
    model.learn(12, reset_num_timesteps=False)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("ends", [False, True])
def test_values_whose_squares_overflow_do_not_reach_vec_normalize(ends):
    inner = broken(put(0, np.array([0, 1e200]), ends))
    inner.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
    inner.buf_obs = {None: np.zeros((2, 2))}
    env = VecNormalize(inner)
    model = CPO("MlpPolicy", env, 10.0, **KWARGS).learn(12)
    with pytest.raises(ValueError, match=r"observation is too large .*1\.e\+200.*environment 1 \(\w+\), step 18"):
        model.learn(12, reset_num_timesteps=False)
    assert np.isfinite(statistics(env)).all()


def test_penalised_rewards_that_overflow_are_named():
    model = PDO("MlpPolicy", broken(put(4, {"cost": 1e10})), 10.0, penalty_coef=1e10, **KWARGS).learn(12)
    with pytest.raises(ValueError, match=r"reward less the penalised costs is too large .*environment 1 \(\w+\), step 18\)"):
        model.learn(12, reset_num_timesteps=False)
    model.learn(12, reset_num_timesteps=False)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


MISTAKES = {
    "info": put(4, None),
    "info end": put(4, None, ends=True),
    "array": put(1, np.array([1.0, 2.0])),
    "array end": put(1, np.array([1.0, 2.0]), ends=True),
    "reward": put(1, None),
    "shape": put(0, np.zeros(3, np.float32), ends=True),
    "cost": put(4, {"cost": None}, ends=True),
    "raises": lambda *step: 1 / 0,
}
if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    # Before, an array of one is a number
    MISTAKES |= {"array of one": put(1, np.array([1.0])), "array of one end": put(1, np.array([1.0]), ends=True)}


@pytest.mark.parametrize("monitor", [None, Monitor, CostMonitor])
@pytest.mark.parametrize("name", MISTAKES)
def test_after_any_error_the_model_goes_on(name, monitor):
    model = CPO("MlpPolicy", broken(MISTAKES[name], monitor), 10.0, **KWARGS).learn(12)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    with pytest.raises((TypeError, ValueError, ZeroDivisionError)):
        model.learn(12, reset_num_timesteps=False)
    assert all(th.equal(value, before[key]) for key, value in model.policy.state_dict().items())
    model.learn(24, reset_num_timesteps=False)
    assert model.ep_cost_mean == 6


@pytest.mark.parametrize("name", ["info", "array", "reward"])
def test_after_an_error_in_a_process_the_model_goes_on(name):
    env = broken(MISTAKES[name], subproc=True)
    model = CPO("MlpPolicy", env, 10.0, **KWARGS).learn(12)
    is_dead = name == "info"
    messages = {"info": "process of environment 1 of SubprocVecEnv has ended", "array": "shape", "reward": "reward is NaN"}
    with pytest.raises(RuntimeError if is_dead else ValueError, match=messages[name]):
        model.learn(12, reset_num_timesteps=False)
    if is_dead:
        # A process that has died takes its environment along
        with pytest.raises(RuntimeError, match=r"process of environment 1 .*\(exit code 1\)"):
            model.learn(12)
        env.processes[0].terminate()
        env = broken(put(1, 0.0))
        model.set_env(env)
    model.learn(24, reset_num_timesteps=False)
    assert model.ep_cost_mean == 6
    env.close()


def test_an_error_inside_a_step_says_where():
    with pytest.raises(ValueError, match="sequence") as raised:
        CPO("MlpPolicy", broken(put(1, np.array([1.0, 2.0]))), 10.0, **KWARGS).learn(24)
    assert "raised in step 18 of environment" in raised.value.__notes__[0]


class Slow(BrokenEnv):
    def __init__(self, rank):
        super().__init__(put(1, 0.0), 10**9)
        self.rank = rank

    def _obs(self):
        return np.full(2, self.t, dtype=np.float32)

    def step(self, action):
        if self.rank == 1 and self.t == 8:
            self.hesitate()
        return super().step(action)

    def hesitate(self):
        time.sleep(0.5)


class Interrupting(Slow):
    """In the middle of a slow step, of which the answer is still to come, Ctrl-C is pressed."""

    def hesitate(self):
        os.kill(os.getppid(), signal.SIGINT)
        super().hesitate()


def test_an_interrupted_step_leaves_no_answer_in_the_pipes():
    env = vec_env(Interrupting, 2, subproc=True)
    model = CPO("MlpPolicy", env, 10.0, **KWARGS).learn(12)
    # Whoever is started in the background inherits that SIGINT is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.learn(12, reset_num_timesteps=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not env.waiting
    # An answer left over would be taken for that to the next question
    assert env.reset().shape == (2, 2)
    model.learn(12, reset_num_timesteps=False)
    assert model.safety.cumulative_cost == model.safety.n_steps > 12
    env.close()


def test_a_process_that_was_killed_is_named():
    env = SubprocVecEnv([lambda: ScriptedEnv(0), lambda: ScriptedEnv(1)], start_method="fork")
    model = CPO("MlpPolicy", env, 1e6, **KWARGS).learn(12)
    env.processes[1].kill()
    with pytest.raises(RuntimeError, match=r"process of environment 1 .* \(exit code -9\).*set_env"):
        model.learn(12, reset_num_timesteps=False)
    env.processes[0].terminate()


class Unspeakable(ScriptedEnv):
    cost_limit = {"cost": lambda progress: 5.0}


def test_an_attribute_that_ends_the_process_is_named():
    env = vec_env(Unspeakable, 2, subproc=True)
    with pytest.raises(RuntimeError, match="asked for its attribute 'cost_limit'"):
        CPO("MlpPolicy", env, **KWARGS)
    for process in env.processes:
        process.terminate()


def test_a_process_that_does_not_answer_is_warned_of(monkeypatch):
    from sb3_cpo import env_watch

    monkeypatch.setattr(env_watch, "PATIENCE", 0.2)
    env = vec_env(Slow, 2, subproc=True)
    with pytest.warns(UserWarning, match="environment 1 of SubprocVecEnv has not answered for 0.2 s"):
        CPO("MlpPolicy", env, 10.0, **KWARGS).learn(24)
    env.close()


def test_the_environment_is_left_as_it_was():
    env = vec_env(lambda rank: ScriptedEnv(rank), 2, subproc=True)
    remotes = env.remotes
    with EnvWatch(env, lambda: 0):
        assert env.remotes != remotes
    assert env.remotes == remotes
    env.close()
    mine = DummyVecEnv([ScriptedEnv])
    mine.reset = own_reset = mine.reset
    with EnvWatch(mine, lambda: 0):
        pass
    assert vars(mine)["reset"] is own_reset


class TwoLives(gym.Wrapper):
    """As SB3's EpisodicLifeEnv: an episode ends at every lost life, and is reset only at the end of the game."""

    is_over = True

    def reset(self, **kwargs):
        if self.is_over:
            return self.env.reset(**kwargs)
        return self.env.unwrapped._obs(), {}

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.is_over = terminated or truncated
        return obs, reward, terminated or self.unwrapped.steps == 2, truncated, info


@pytest.mark.parametrize("has_monitor", [False, True])
def test_lost_lives_are_warned_of_where_a_monitor_counts_games(has_monitor):
    def make_env(rank):
        env = ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 1.0)
        return TwoLives(CostMonitor(env) if has_monitor else env)

    model = CPO("MlpPolicy", vec_env(make_env), 10.0, **KWARGS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(24)
    messages = [str(warning.message) for warning in caught if "goes on for the monitor" in str(warning.message)]
    assert len(messages) == int(has_monitor)
    assert model.ep_cost_mean == 2


class SpoilsTheLast(VecEnvWrapper):
    """A wrapper that makes NaN of the last observations of episodes, which the environments have told well."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        for index in np.flatnonzero(dones):
            infos[index]["terminal_observation"] = infos[index]["terminal_observation"] * np.nan
        return obs, rewards, dones, infos


def test_a_last_observation_that_a_wrapper_spoils_is_named_with_it():
    model = CPO("MlpPolicy", SpoilsTheLast(vec_env(ScriptedEnv, 2)), 10.0, **KWARGS)
    with pytest.raises(ValueError, match=r"terminal observation from SpoilsTheLast is NaN .*environment 0"):
        model.learn(24)
