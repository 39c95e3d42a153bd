import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import RiskyEnv, ScriptedEnv, scripted_cost, vec_env

from sb3_cpo import CPO, FPO, PDO, TRPO

KWARGS = {"n_steps": 8, "batch_size": 16, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}
OBS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def make_env(n_envs=2):
    return vec_env(lambda rank: RiskyEnv(), n_envs)


def same(mine, theirs):
    mine, theirs = mine.policy.state_dict(), theirs.policy.state_dict()
    return mine.keys() == theirs.keys() and all(th.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_a_loaded_model_predicts_the_same_and_knows_what_it_knew(algorithm, tmp_path):
    model = algorithm("MlpPolicy", make_env(), cost_limit=1.0, cost_gamma=0.95, target_kl=0.02, **KWARGS).learn(32)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert same(model, loaded)
    np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], loaded.predict(OBS, deterministic=True)[0])
    if algorithm is CPO:
        np.testing.assert_array_equal(model.predict_cost_values(OBS), loaded.predict_cost_values(OBS))
    assert (loaded.cost_limit, loaded.cost_gamma, loaded.target_kl, loaded.num_timesteps) == (1.0, 0.95, 0.02, 32)
    np.testing.assert_array_equal(loaded.ep_cost_mean, model.ep_cost_mean)
    np.testing.assert_array_equal(loaded.safety.cumulative_cost, model.safety.cumulative_cost)
    assert loaded.policy_kwargs == model.policy_kwargs == KWARGS["policy_kwargs"]


def test_a_loaded_model_without_an_environment_can_be_given_one(tmp_path):
    CPO("MlpPolicy", make_env(), 1.0, **KWARGS).learn(16).save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model")
    loaded.set_env(make_env())
    loaded.learn(16)


@pytest.mark.parametrize(
    ("cost_limit", "expected"), [(7.0, [7]), ({"cost": 3.0}, [3]), ([4], [4]), (lambda progress: 9 * progress, [9])]
)
def test_loading_with_another_limit(cost_limit, expected, tmp_path):
    model = CPO("MlpPolicy", make_env(), 1.0, **KWARGS).learn(16)
    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=make_env(), cost_limit=cost_limit)
    assert loaded.cost_limits.at(1.0).tolist() == expected
    assert same(model, loaded)
    loaded.learn(16)
    np.testing.assert_allclose(loaded.current_cost_limit, loaded.cost_limits.at(0.0))


def test_loading_with_another_number_of_limits_is_an_error(tmp_path):
    CPO("MlpPolicy", make_env(), 1.0, **KWARGS).save(tmp_path / "model")
    with pytest.raises(ValueError, match="cost_limit has 2 entries, but this model was trained with 1"):
        CPO.load(tmp_path / "model", env=make_env(), cost_limit=[1.0, 2.0])


def test_a_schedule_of_limits_is_saved(tmp_path):
    CPO("MlpPolicy", make_env(), lambda progress: 5 * progress, **KWARGS).save(tmp_path / "model")
    assert CPO.load(tmp_path / "model", env=make_env()).cost_limits.at(0.5) == 2.5


def test_loading_with_other_numbers_of_environments_begins_their_sums_anew(tmp_path):
    def scripted(n_envs):
        return vec_env(lambda rank: ScriptedEnv(rank, lengths=(6,)), n_envs)

    model = CPO("MlpPolicy", scripted(2), 1.0, **{**KWARGS, "n_steps": 4}).learn(8)
    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=scripted(3))
    assert loaded.n_envs == 3
    loaded.learn(3 * 8, reset_num_timesteps=False)
    assert loaded.num_timesteps == 8 + 24
    # The first episode after loading has nothing of the one that was in progress before
    expected = np.mean([sum(scripted_cost(rank, t) for t in range(6)) for rank in range(3)])
    assert loaded.raw_cost_estimate.mean == expected
    assert loaded.raw_cost_estimate.n_episodes == 3


def test_safety_record_goes_on_after_loading_unless_time_is_reset(tmp_path):
    def scripted():
        return vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: 1.0))

    CPO("MlpPolicy", scripted(), 1.0, **KWARGS).learn(16).save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=scripted())
    loaded.learn(8, reset_num_timesteps=False)
    assert loaded.safety.cumulative_cost == 24
    assert loaded.safety.n_updates == 3
    loaded.learn(8)
    assert loaded.safety.cumulative_cost == 8


def test_learning_in_two_parts_equals_learning_at_once():
    """Without a schedule nothing depends on where ``learn`` was called."""
    at_once = CPO("MlpPolicy", make_env(), 1.0, **KWARGS).learn(16 * 4)
    parts = CPO("MlpPolicy", make_env(), 1.0, **KWARGS).learn(16 * 2)
    parts.learn(16 * 2, reset_num_timesteps=False)
    assert same(at_once, parts)
    np.testing.assert_array_equal(at_once.safety.cumulative_cost, parts.safety.cumulative_cost)


@pytest.mark.parametrize("other", [PPO, ContribTRPO])
@pytest.mark.parametrize("from_file", [False, True])
def test_actor_and_reward_critic_can_come_from_sb3(other, from_file, tmp_path):
    source = other("MlpPolicy", make_env(), n_steps=8, batch_size=8, device="cpu", policy_kwargs={"net_arch": [8]}).learn(16)
    model = CPO("MlpPolicy", make_env(), 1.0, **KWARGS)
    cost_critic = {key: tensor.clone() for key, tensor in model.policy.state_dict().items() if "cost" in key}
    if from_file:
        source.save(tmp_path / "source")
    model.set_parameters(tmp_path / "source.zip" if from_file else source.get_parameters(), exact_match=False, device="cpu")
    state = model.policy.state_dict()
    for key, tensor in source.policy.state_dict().items():
        assert th.equal(state[key], tensor), key
    for key, tensor in cost_critic.items():
        assert th.equal(state[key], tensor), key
    np.testing.assert_array_equal(model.predict(OBS, deterministic=True)[0], source.predict(OBS, deterministic=True)[0])
    model.learn(16)


def test_parameters_of_a_model_like_it_are_taken_over_with_the_optimizer():
    model, other = (CPO("MlpPolicy", make_env(), 1.0, **{**KWARGS, "seed": seed}) for seed in (0, 1))
    other.learn(32)
    model.set_parameters(other.get_parameters())
    assert same(model, other)
    assert model.policy.optimizer.state_dict()["state"].keys() == other.policy.optimizer.state_dict()["state"].keys()
    with pytest.raises(RuntimeError, match="cost_value_net"):
        model.set_parameters(PPO("MlpPolicy", make_env(), device="cpu", policy_kwargs={"net_arch": [8]}).get_parameters())


def test_normalised_observations_and_separate_extractors_survive(tmp_path):
    env = VecNormalize(make_env())
    kwargs = {**KWARGS, "policy_kwargs": {"net_arch": {"pi": [4], "vf": [8], "cvf": [6]}, "share_features_extractor": False}}
    model = CPO("MlpPolicy", env, 1.0, **kwargs).learn(32)
    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=VecNormalize(make_env()))
    assert same(model, loaded)
    loaded.learn(16)


def test_the_saved_file_holds_no_callback_and_no_rollout(tmp_path):
    import json
    import zipfile

    CPO("MlpPolicy", make_env(), 1.0, **KWARGS).learn(16).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        data = json.loads(file.read("data"))
    assert not {"_rollout_callback", "_recent", "rollout_buffer", "cost_limits"} & set(data)
    assert {"cost_limit", "ledger"} <= set(data)


def test_a_callback_that_saves_in_the_middle_of_a_rollout(tmp_path):
    class Save(BaseCallback):
        def _on_step(self):
            if self.n_calls == 11:
                self.model.save(tmp_path / "model")
            return True

    CPO("MlpPolicy", make_env(), 1.0, **KWARGS).learn(48, callback=Save())
    loaded = CPO.load(tmp_path / "model", env=make_env())
    assert loaded.num_timesteps == 22
    loaded.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("cost_gamma", [1.0, 0.9])
def test_a_resumed_run_needs_no_old_rollout(cost_gamma, tmp_path):
    model = CPO("MlpPolicy", make_env(), 1.0, cost_gamma=cost_gamma, **KWARGS).learn(32)
    model.save(tmp_path / "model")
    env = make_env()
    env.reset()
    loaded = CPO.load(tmp_path / "model", env=env, force_reset=False)
    loaded.learn(16, reset_num_timesteps=False)
    assert np.isfinite(loaded.ep_cost_mean).all()


def test_parameters_of_a_model_with_other_constraints_are_a_warm_start():
    """The numbers of parameters are equal, their shapes are not: Adam's moments must stay behind."""
    one = CPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank), 2), 1.0, n_steps=4, batch_size=4).learn(16)
    two = CPO("MlpPolicy", vec_env(lambda rank: ScriptedEnv(rank, n_costs=2), 2), [1.0, 2.0], n_steps=4, batch_size=4)
    params = one.get_parameters()
    for name in list(params["policy"]):
        if name.startswith("cost_"):
            del params["policy"][name]
    two.set_parameters(params, exact_match=False)
    obs = np.zeros((1, 3), dtype=np.float32)
    np.testing.assert_array_equal(two.predict(obs, deterministic=True)[0], one.predict(obs, deterministic=True)[0])
    two.learn(16)


def test_a_limit_of_other_costs_begins_anew(tmp_path):
    def env():
        return vec_env(lambda rank: ScriptedEnv(rank, keys=("a", "b")), 2)

    model = CPO("MlpPolicy", env(), {"a": 1.0}, **KWARGS).learn(32)
    model.margin.value = np.array([3.0])
    model.save(tmp_path / "model")
    same_cost = CPO.load(tmp_path / "model", env=env(), cost_limit={"a": 2.0})
    assert same_cost.safety.n_updates == model.safety.n_updates > 0
    assert same_cost.cost_margin == 3
    other = CPO.load(tmp_path / "model", env=env(), cost_limit={"b": 1.0})
    assert other.safety.n_updates == 0
    assert np.isnan(other.ep_cost_mean).all()
    assert other.cost_margin == 0
    assert not other.predict_cost_values(OBS).any()
    assert model.predict_cost_values(OBS).any()
    # The actor is that of the model
    np.testing.assert_array_equal(other.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])
    other.learn(32, reset_num_timesteps=False)
