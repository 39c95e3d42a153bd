"""A resumed training is the one that was never interrupted, bit for bit."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from resuming import KWARGS, N_ENVS, N_STEPS, ROLLOUT, Kill, Killed, check_resume, interrupted, risky
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize
from toy_envs import KnapsackEnv, RiskyEnv, vec_env

from safe_envs import BatchVecEnv, CostWrapper
from safe_envs.tabular import TabularEnv, random_cmdp
from safe_envs.tabular.vec_env import TabularVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, CostEvalCallback, CostMonitor, FailurePredictor, TrainingCheckpoint, make_vec_env
from sb3_cpo.checkpoints import find_checkpoint


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_each_algorithm(algorithm, tmp_path):
    check_resume(lambda: algorithm("MlpPolicy", risky(), cost_limit=1.0, **KWARGS), tmp_path)


SETTINGS = {
    "a limit that falls, and a falling learning rate": {"cost_limit": lambda p: 1 + p, "learning_rate": lambda p: 1e-3 * p},
    "two constraints, several rollouts": {"cost_limit": [1.0, 3.0], "n_cost_rollouts": 3},
    "a margin, discounted costs": {"cost_limit": 1.0, "cost_margin_lr": 0.3, "cost_gamma": 0.9},
    "rewards that end at the time limit": {"cost_limit": 1.0, "bootstrap_time_limits": False},
    "state-dependent exploration": {"cost_limit": 1.0, "use_sde": True, "sde_sample_freq": 5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, tmp_path):
    n_costs = 2 if "two" in name else 1
    check_resume(lambda: CPO("MlpPolicy", risky(n_costs=n_costs), **SETTINGS[name], **KWARGS), tmp_path)


def test_cost_shaping(tmp_path):
    check_resume(lambda: CPO("MlpPolicy", risky(), 1.0, cost_shaping=FailurePredictor(n_updates=2), **KWARGS), tmp_path)


def make_pendulum():
    return CostWrapper(gym.make("Pendulum-v1"), lambda next_obs: float(abs(next_obs[2]) > 1))


def cmdp():
    return random_cmdp(np.random.default_rng(0))


ENVS = {
    "wrappers of SB3": lambda: VecFrameStack(VecNormalize(VecMonitor(vec_env(lambda rank: RiskyEnv(length=7), N_ENVS))), 2),
    "a lambda in the environment": lambda: make_vec_env(make_pendulum, n_envs=N_ENVS, seed=1),
    "discrete": lambda: make_vec_env(KnapsackEnv, n_envs=N_ENVS, seed=1),
    "tabular": lambda: make_vec_env(lambda: TabularEnv(cmdp()), n_envs=N_ENVS, seed=1),
    "tabular, together": lambda: TabularVecEnv(cmdp(), N_ENVS, seed=1),
    "Point, together": lambda: make_vec_env("SafePointGather-v0", n_envs=N_ENVS, seed=1, vec_env_cls=BatchVecEnv),
    "Ant, together": lambda: make_vec_env("SafeAntCircle-v0", n_envs=N_ENVS, seed=1, vec_env_cls=BatchVecEnv),
    "Humanoid, together": lambda: make_vec_env("SafeHumanoidVelocity-v0", n_envs=N_ENVS, seed=1, vec_env_cls=BatchVecEnv),
    "Point": lambda: make_vec_env("SafePointCircle-v0", n_envs=N_ENVS, seed=1),
    "Ant": lambda: make_vec_env("SafeAntGather-v0", n_envs=N_ENVS, seed=1),
    "gymnasium's Humanoid": lambda: make_vec_env("SafeHumanoidVelocity-v0", n_envs=N_ENVS, seed=1),
    "other processes": lambda: make_vec_env(lambda: RiskyEnv(length=7), n_envs=N_ENVS, seed=1, vec_env_cls=SubprocVecEnv,
                                            vec_env_kwargs={"start_method": "fork"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENVS)
def test_environments(name, tmp_path):
    check_resume(lambda: CPO("MlpPolicy", ENVS[name](), 1.0, **KWARGS), tmp_path, n_rollouts=5, kill_at=2.5)


class Dictionary(gym.ObservationWrapper):
    def __init__(self):
        super().__init__(RiskyEnv(length=7))
        self.observation_space = spaces.Dict({"state": self.env.observation_space, "noise": spaces.Box(-9, 9, (2,))})

    def observation(self, observation):
        return {"state": observation, "noise": self.unwrapped.np_random.normal(size=2).astype(np.float32)}


class WithDropout(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers = th.nn.Sequential(th.nn.Dropout(0.2), th.nn.BatchNorm1d(self.features_dim))

    def forward(self, observations):
        return self.layers(super().forward(observations))


def test_dictionaries_in_other_processes(tmp_path):
    def make_model():
        kwargs = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
        env = VecNormalize(make_vec_env(Dictionary, n_envs=N_ENVS, seed=1, **kwargs), norm_obs_keys=["state"])
        return PDO("MultiInputPolicy", env, 1.0, use_sde=True, **KWARGS)

    check_resume(make_model, tmp_path, n_rollouts=4, kill_at=2.5)


def test_dropout_and_another_optimizer(tmp_path):
    policy_kwargs = {"features_extractor_class": WithDropout, "optimizer_class": th.optim.RMSprop, "net_arch": [4]}
    check_resume(lambda: CPO("MlpPolicy", risky(), 1.0, **{**KWARGS, "policy_kwargs": policy_kwargs}), tmp_path)


def test_a_long_episode_goes_on_in_the_middle(tmp_path):
    """With episodes of three rollouts, sums and simulation reach over the break."""

    def env():
        return VecNormalize(make_vec_env("SafePointCircle-v0", n_envs=N_ENVS, seed=1, env_kwargs={"max_episode_steps": 40}))

    whole, _ = check_resume(lambda: CPO("MlpPolicy", env(), 1.0, **KWARGS), tmp_path, n_rollouts=5)
    assert whole.raw_cost_estimate.n_episodes > 0


def test_evaluations_go_on(tmp_path):
    def callbacks(folder):
        eval_env = make_vec_env(lambda: RiskyEnv(length=7), seed=9)
        return [CostEvalCallback(eval_env, eval_freq=20, n_eval_episodes=2, log_path=folder, verbose=0)]

    folders = iter([tmp_path / "whole", tmp_path / "broken", tmp_path / "broken"])
    check_resume(
        lambda: CPO("MlpPolicy", risky(), 1.0, **KWARGS),
        tmp_path / "checkpoints",
        make_callbacks=lambda: callbacks(str(next(folders))),
    )
    whole, resumed = (np.load(tmp_path / name / "evaluations.npz") for name in ("whole", "broken"))
    assert set(whole) == set(resumed)
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])
    assert len(whole["timesteps"]) == 4


class Counter(BaseCallback):
    """A user's callback with a state, and with arguments that are none."""

    def __init__(self, name="first"):
        super().__init__()
        self.name, self.n_rollouts, self.seen = name, 0, []

    def _on_rollout_start(self):
        self.n_rollouts += 1
        self.seen.append(float(np.random.random()))  # noqa: NPY002

    def _on_step(self):
        return True


def test_callbacks_keep_what_they_have_learned_and_not_their_arguments(tmp_path):
    whole = Counter()
    CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(5 * ROLLOUT, callback=whole)
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    with pytest.raises(Killed):
        model.learn(5 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path), Counter(), Kill(3 * ROLLOUT + 4)])
    resumed, counter = CPO.resume(tmp_path, risky()), Counter("second")
    resumed.learn(5 * ROLLOUT, callback=counter)
    assert counter.seen == whole.seen
    assert (counter.n_rollouts, counter.n_calls, counter.name) == (5, 5 * N_STEPS, "second")


# ---------------------------------------------------------------- environments that do not say their state


class Secretive(RiskyEnv):
    """Holds something that cannot be pickled."""

    def reset(self, *, seed=None, options=None):
        self.world = (part for part in ())
        return super().reset(seed=seed, options=options)


def test_an_environment_without_a_state_is_reset_with_a_warning(tmp_path):
    def make():
        return make_vec_env(lambda: Secretive(length=7), n_envs=N_ENVS, seed=5)

    model = CPO("MlpPolicy", make(), 1.0, **KWARGS)
    with pytest.warns(UserWarning, match=r"cannot be stored \(Secretive\.world"), pytest.raises(Killed):
        model.learn(6 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path), Kill(3 * ROLLOUT + 4)])
    with pytest.warns(UserWarning, match="training goes on with a reset"):
        resumed = CPO.resume(tmp_path, make())
    assert resumed._last_obs is None
    generator = find_checkpoint(tmp_path).state["env"].generators
    resumed.learn(6 * ROLLOUT)
    assert resumed.num_timesteps == 6 * ROLLOUT
    assert len(generator) == 2


class SaysItself(Secretive):
    def get_checkpoint_state(self):
        return self.steps

    def set_checkpoint_state(self, state):
        self.steps = state

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return np.full(3, self.np_random.random(), dtype=np.float32), {}

    def step(self, action):
        _, *rest = super().step(action)
        return np.full(3, self.np_random.random(), dtype=np.float32), *rest


def test_an_environment_can_say_its_state_itself(tmp_path):
    def make():
        return make_vec_env(lambda: SaysItself(length=7), n_envs=N_ENVS, seed=5)

    check_resume(lambda: CPO("MlpPolicy", make(), 1.0, **KWARGS), tmp_path)


def test_another_environment_is_an_error(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"is of 2 environments, env has 3: `load` continues with other numbers"):
        CPO.resume(tmp_path, risky(n_envs=3))
    with pytest.raises(
        ValueError, match=r"checkpoint is of the environment DummyVecEnv of CostMonitor .*, env is VecNormalize"
    ):
        CPO.resume(tmp_path, VecNormalize(risky()))


def test_a_wrapper_around_the_monitor_of_a_worker_is_noticed(tmp_path):
    def make():
        env_fns = [lambda: gym.wrappers.TimeLimit(CostMonitor(RiskyEnv(length=7)), 5)] * N_ENVS
        return SubprocVecEnv(env_fns, start_method="fork")

    env = make()
    model = CPO("MlpPolicy", env, 1.0, **KWARGS)
    with pytest.warns(UserWarning, match="TimeLimit.* is around the CostMonitor"):
        model.learn(2 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    env.close()
