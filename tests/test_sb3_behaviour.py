"""What a user of SB3's PPO or of sb3-contrib's TRPO takes for granted holds for CPO, PDO, FPO and TRPO as well."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EveryNTimesteps
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage
from toy_envs import RiskyEnv, vec_env

from sb3_cpo import CPO, FPO, PDO, TRPO

ALGORITHMS = [CPO, PDO, FPO, TRPO]
all_algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)
SMALL = {"net_arch": [8]}


def make_model(algorithm, policy="MlpPolicy", env=None, n_envs=2, **kwargs):
    env = vec_env(lambda rank: RiskyEnv(), n_envs) if env is None else env
    kwargs = {"n_steps": 8, "n_critic_updates": 1, "device": "cpu", "policy_kwargs": SMALL, "seed": 0, **kwargs}
    limit = {} if algorithm is TRPO else {"cost_limit": 2.0}
    return algorithm(policy, env, **{**limit, **kwargs})


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(th.equal(one[name], other[name]) for name in one)


def differ(one, other):
    return any(not th.equal(one[name], other[name]) for name in one)


ACTIONS = {
    "box": spaces.Box(-1, 1, (2,)),
    "lopsided box": spaces.Box(np.array([-3.0, 1.0], np.float32), np.array([-1.0, 9.0], np.float32)),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
}


@all_algorithms
@pytest.mark.parametrize("action", ACTIONS)
def test_action_spaces(algorithm, action):
    space = ACTIONS[action]
    model = make_model(algorithm, env=vec_env(lambda rank: RiskyEnv(action_space=space), 2))
    before = weights(model)
    model.learn(32)
    assert differ(before, weights(model))
    action, state = model.predict(model.env.reset(), deterministic=True)
    assert state is None
    assert all(space.contains(one) for one in action)


@all_algorithms
@pytest.mark.parametrize("kind", ["box", "discrete", "multi_discrete", "image", "dict"])
def test_observation_spaces(algorithm, kind):
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}.get(kind, "MlpPolicy")
    env = vec_env(lambda rank: RiskyEnv(kind, length=2))
    model = make_model(algorithm, policy, env, n_steps=4).learn(8)
    obs = model.env.reset()
    one = {key: value[0] for key, value in obs.items()} if isinstance(obs, dict) else obs[0]
    many, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(model.predict(one, deterministic=True)[0], many[0], atol=1e-5)
    if kind == "image":
        assert isinstance(model.env, VecTransposeImage)


@all_algorithms
def test_frame_stacks_and_normalised_environments(algorithm):
    env = VecFrameStack(VecNormalize(vec_env(lambda rank: RiskyEnv(), 2)), 3)
    model = make_model(algorithm, env=env).learn(32)
    assert model.observation_space.shape == (9,)
    assert model.get_vec_normalize_env() is env.venv


@all_algorithms
def test_unsupported_spaces_are_refused(algorithm):
    with pytest.raises((AssertionError, NotImplementedError, ValueError), match=r"(?i)space"):
        make_model(algorithm, env=vec_env(lambda rank: RiskyEnv(action_space=spaces.Dict(a=spaces.Discrete(2)))))


@all_algorithms
def test_gsde(algorithm):
    model = make_model(algorithm, use_sde=True, sde_sample_freq=3, policy_kwargs={**SMALL, "log_std_init": -1.0})
    model.learn(32)
    assert model.policy.log_std.shape == (8, 2)
    with pytest.raises(ValueError, match="continuous actions"):
        make_model(algorithm, use_sde=True, env=vec_env(lambda rank: RiskyEnv(action_space=spaces.Discrete(2))))


def test_squashed_actions():
    kwargs = {"policy_kwargs": {**SMALL, "squash_output": True}, "use_sde": True}
    model = make_model(CPO, env=vec_env(lambda rank: RiskyEnv(action_space=ACTIONS["lopsided box"])), **kwargs)
    # A squashed distribution has no divergence in closed form: SB3's own TRPO refuses it as well
    try:
        model.learn(16)
    except NotImplementedError:
        return
    action, _ = model.predict(model.env.reset())
    assert ACTIONS["lopsided box"].contains(action[0])


class Doubled(BaseFeaturesExtractor):
    def __init__(self, observation_space, factor=2):
        super().__init__(observation_space, features_dim=3)
        self.factor = factor

    def forward(self, observations):
        return self.factor * observations


@all_algorithms
@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": [6, 4]},
        {"net_arch": {"pi": [4], "vf": [5, 5]}},
        {"net_arch": {"pi": [4], "vf": []}, "activation_fn": th.nn.ReLU, "ortho_init": False},
        {"features_extractor_class": Doubled, "features_extractor_kwargs": {"factor": 3}, "share_features_extractor": False},
        {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"eps": 1e-5}},
    ],
    ids=str,
)
def test_custom_policies_learn_and_come_back(algorithm, policy_kwargs, tmp_path):
    model = make_model(algorithm, policy_kwargs=policy_kwargs).learn(16)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.env, device="cpu")
    assert_same(weights(model), weights(loaded))
    loaded.learn(16)


@all_algorithms
def test_a_saved_model_acts_and_learns_as_before(algorithm, tmp_path):
    model = make_model(algorithm).learn(32)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=vec_env(lambda rank: RiskyEnv(), 3), device="cpu")
    obs = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    for deterministic in (True, False):
        th.manual_seed(1)
        mine, _ = model.predict(obs, deterministic=deterministic)
        th.manual_seed(1)
        np.testing.assert_array_equal(mine, loaded.predict(obs, deterministic=deterministic)[0])
    assert loaded.num_timesteps == 32
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == 56


@all_algorithms
def test_parameters_can_be_taken_and_given(algorithm):
    model, other = make_model(algorithm).learn(16), make_model(algorithm, seed=5)
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "policy.optimizer"}
    other.set_parameters(parameters)
    assert_same(weights(model), weights(other))
    part = {"policy": parameters["policy"]}
    with pytest.raises(ValueError, match="do not match agents' parameters"):
        other.set_parameters(part)
    other.set_parameters(part, exact_match=False)
    with pytest.raises(ValueError, match="invalid"):
        other.set_parameters({"not a part": {}}, exact_match=False)


@all_algorithms
def test_policies_can_be_saved_alone_and_weights_left_out_of_the_file(algorithm, tmp_path):
    model = make_model(algorithm).learn(16)
    model.policy.save(tmp_path / "policy.pkl")
    policy = type(model.policy).load(tmp_path / "policy.pkl", device="cpu")
    obs = np.ones((2, 3), dtype=np.float32)
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    model.save(tmp_path / "model", exclude=["gamma"], include=["ep_info_buffer"])
    assert not hasattr(algorithm, "gamma")


@all_algorithms
def test_the_same_seed_is_the_same_run(algorithm):
    runs = [weights(make_model(algorithm, seed=seed).learn(48)) for seed in (3, 3, 4)]
    assert_same(runs[0], runs[1])
    assert differ(runs[0], runs[2])


@all_algorithms
def test_the_seed_reaches_the_environments(algorithm):
    class Seeded(RiskyEnv):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    seeds = []
    make_model(algorithm, env=vec_env(lambda rank: Seeded(), 3), seed=7).learn(24)
    assert seeds[:3] == [7, 8, 9]
    assert not any(seeds[3:])


@all_algorithms
@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_steps": 1, "n_envs": 2},
        {"n_steps": 1, "n_envs": 1, "normalize_advantage": False},
        {"n_steps": 7, "batch_size": 3},
        {"batch_size": 100},
        {"sub_sampling_factor": 4},
        {"gae_lambda": 1.0, "gamma": 1.0},
        {"learning_rate": LinearSchedule(1e-3, 1e-5, 0.5)},
        {"normalize_advantage": False},
        {"target_kl": 0.001, "cg_damping": 0.5, "cg_max_steps": 3, "line_search_max_iter": 2},
        {"line_search_shrinking_factor": 0.5, "stats_window_size": 5},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_arguments_of_sb3_and_contrib(algorithm, kwargs):
    model = make_model(algorithm, **kwargs)
    model.learn(3 * model.n_steps * model.n_envs)
    assert model._n_updates == 3
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@all_algorithms
def test_normalised_advantages_of_a_single_sample_are_refused(algorithm):
    with pytest.raises(ValueError, match="must be greater than 1"):
        make_model(algorithm, n_envs=1, n_steps=1)


def test_sub_sampling_takes_every_nth_sample():
    model = make_model(CPO, sub_sampling_factor=4)
    sizes, step = [], model._trust_region_step
    model._trust_region_step = lambda rollout, *args, **kwargs: (
        sizes.append(len(rollout.samples.actions)),
        step(rollout, *args, **kwargs),
    )[1]
    model.learn(16)
    assert sizes == [16 // 4]


@all_algorithms
def test_callbacks_see_the_run_and_can_end_it(algorithm, tmp_path):
    events = []

    class Look(BaseCallback):
        def _on_training_start(self):
            events.append("start")

        def _on_rollout_start(self):
            events.append("rollout")

        def _on_step(self):
            return self.num_timesteps < 40

        def _on_rollout_end(self):
            events.append("update")

        def _on_training_end(self):
            events.append("end")

    calls = []
    every = EveryNTimesteps(16, type("Count", (BaseCallback,), {"_on_step": lambda self: calls.append(1) or True})())
    model = make_model(algorithm)
    model.learn(160, callback=CallbackList([Look(), every, CheckpointCallback(8, str(tmp_path), name_prefix="run")]))
    assert events == ["start", "rollout", "update", "rollout", "update", "rollout", "end"]
    assert model.num_timesteps == 40
    assert len(calls) == 2
    assert (tmp_path / "run_16_steps.zip").exists()
    make_model(algorithm).learn(16, callback=lambda locals_, globals_: True)


@all_algorithms
def test_formats_of_the_logger(algorithm, tmp_path):
    model = make_model(algorithm)
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))
    model.learn(32)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == 2
    assert "train/step_size" in rows[1]
    assert "rollout/ep_cost_mean" in rows[1]
    assert (tmp_path / "progress.csv").read_text().count("\n") >= 2
    assert any("tfevents" in path.name for path in tmp_path.iterdir())


@all_algorithms
def test_predict_clips_takes_one_or_many_and_refuses_other_shapes(algorithm):
    model = make_model(algorithm, policy_kwargs={**SMALL, "log_std_init": 3.0})
    actions = np.stack([model.predict(np.zeros(3, np.float32))[0] for _ in range(20)])
    assert (abs(actions) <= 1).all()
    assert (abs(actions) == 1).any()
    assert model.predict(np.zeros((5, 3), np.float32))[0].shape == (5, 2)
    with pytest.raises(ValueError, match="shape"):
        model.predict(np.zeros(4, np.float32))


@all_algorithms
def test_environments_can_be_exchanged_for_others_of_the_same_spaces(algorithm):
    model = make_model(algorithm).learn(16)
    model.set_env(vec_env(lambda rank: RiskyEnv(), 2))
    model.learn(16, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(vec_env(lambda rank: RiskyEnv("discrete"), 2))


def test_an_environment_given_by_its_id_with_several_processes_and_a_file_for_tensorboard(tmp_path):
    gym.register("Risky-v0", lambda: RiskyEnv(), max_episode_steps=4)
    try:
        model = make_model(CPO, env="Risky-v0", tensorboard_log=str(tmp_path)).learn(16, tb_log_name="name")
    finally:
        del gym.registry["Risky-v0"]
    assert (tmp_path / "name_1").exists()
    env = vec_env(lambda rank: RiskyEnv(), 2, subproc=True)
    subproc = weights(make_model(CPO, env=env).learn(32))
    env.close()
    assert_same(subproc, weights(make_model(CPO).learn(32)))
    assert model.num_timesteps == 16
