import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_cpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

OBS, ACTION = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))


def make_policy(policy_class=MlpPolicy, obs_space=OBS, **kwargs):
    th.manual_seed(0)
    return policy_class(obs_space, ACTION, lambda _: 1e-3, **{"n_costs": 2, **kwargs})


def observations(policy, n=6):
    policy.observation_space.seed(1)
    return policy.obs_to_tensor(
        {key: np.stack([space.sample() for _ in range(n)]) for key, space in policy.observation_space.items()}
        if isinstance(policy.observation_space, spaces.Dict)
        else np.stack([policy.observation_space.sample() for _ in range(n)])
    )[0]


def image_space():
    return spaces.Box(0, 255, (1, 36, 36), dtype=np.uint8)


def dict_space():
    return spaces.Dict({"image": image_space(), "position": OBS, "room": spaces.Discrete(3)})


def test_actor_and_reward_critic_are_those_of_sb3_with_the_same_seed():
    policy = make_policy(log_std_init=0.0)
    next_of_ours = th.rand(1)
    th.manual_seed(0)
    sb3 = ActorCriticPolicy(OBS, ACTION, lambda _: 1e-3)
    assert th.equal(next_of_ours, th.rand(1))
    ours = dict(policy.named_parameters())
    for name, param in sb3.named_parameters():
        assert th.equal(ours[name], param), name
    assert all("cost" in name for name in set(ours) - set(dict(sb3.named_parameters())))


def test_without_costs_the_policy_is_that_of_sb3():
    assert set(make_policy(n_costs=0, log_std_init=0.0).state_dict()) == set(
        ActorCriticPolicy(OBS, ACTION, lambda _: 1e-3).state_dict()
    )


def test_optimizer_holds_every_parameter_once():
    policy = make_policy()
    held = [id(param) for group in policy.optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(param) for param in policy.parameters())


def test_forward_and_evaluate_actions_stay_triples():
    policy = make_policy()
    obs = observations(policy)
    actions, _, _ = policy(obs)
    assert len(policy.evaluate_actions(obs, actions)) == 3
    assert policy.predict_cost_values(obs).shape == (6, 2)


@pytest.mark.parametrize(
    ("net_arch", "hidden"),
    [
        ({"pi": [4], "vf": [8], "cvf": [16, 5]}, [16, 5]),
        ({"pi": [4], "vf": [8]}, [8]),
        ({"pi": [4], "vf": []}, []),
        ({"pi": [4], "vf": [8], "cvf": []}, []),
        ([7, 6], [7, 6]),
        (None, [64, 64]),
    ],
)
def test_hidden_layers_of_the_cost_critic(net_arch, hidden):
    policy = make_policy(net_arch=net_arch)
    sizes = [layer.out_features for layer in policy.cost_mlp_extractor if isinstance(layer, th.nn.Linear)]
    assert sizes == hidden
    assert policy.predict_cost_values(observations(policy)).shape == (6, 2)


def test_rewriting_the_statistics_leaves_predictions_unchanged():
    policy = make_policy()
    th.nn.init.normal_(policy.cost_value_net.weight)
    obs = observations(policy)
    rng = np.random.default_rng(0)
    for scale, shift in [(1, 0), (300, 1000), (0.01, 5), (40, -7)]:
        before = policy.predict_cost_values(obs).detach()
        targets = th.as_tensor(rng.normal(size=(500, 2)) * scale + shift, dtype=th.float32)
        policy.update_cost_statistics(targets)
        after = policy.predict_cost_values(obs).detach()
        tolerance = 1e-5 * float(policy.cost_value_net.std.max() + policy.cost_value_net.mean.abs().max())
        th.testing.assert_close(after, before, rtol=1e-4, atol=tolerance)
    # and standardising is the inverse of what makes predictions of outputs
    raw = policy.predict_standardised_cost_values(obs)
    th.testing.assert_close(policy.standardise_costs(policy.predict_cost_values(obs)), raw, rtol=1e-3, atol=1e-3)


def test_statistics_of_the_first_batches_are_those_of_all_their_targets():
    policy = make_policy()
    batches = th.as_tensor(np.random.default_rng(0).normal([3, -50], [2, 20], (4, 1000, 2)), dtype=th.float32)
    batches += th.arange(4).reshape(4, 1, 1) * 5
    for batch in batches:
        policy.update_cost_statistics(batch)
    th.testing.assert_close(policy.cost_value_net.mean, batches.flatten(0, 1).mean(dim=0))
    th.testing.assert_close(policy.cost_value_net.std, batches.flatten(0, 1).std(dim=0, unbiased=False))


def test_costs_without_spread_are_not_scaled():
    policy = make_policy()
    for _ in range(2):
        policy.update_cost_statistics(th.zeros(10, 2))
    assert policy.cost_value_net.std.tolist() == [1, 1]
    assert policy.cost_value_net.mean.tolist() == [0, 0]
    assert th.isfinite(policy.predict_cost_values(observations(policy))).all()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("policy_class", "obs_space", "kwargs"),
    [
        (MlpPolicy, OBS, {"net_arch": {"pi": [4], "vf": [8], "cvf": [16, 5]}}),
        (MlpPolicy, OBS, {"use_sde": True}),
        (CnnPolicy, image_space(), {"features_extractor_kwargs": {"features_dim": 8}}),
        (MultiInputPolicy, dict_space(), {"features_extractor_kwargs": {"cnn_output_dim": 8}}),
    ],
    ids=["mlp", "gsde", "cnn", "multi_input"],
)
def test_a_policy_saved_alone_comes_back_the_same(policy_class, obs_space, kwargs, share, tmp_path):
    policy = make_policy(policy_class, obs_space, share_features_extractor=share, **kwargs)
    policy.update_cost_statistics(th.as_tensor([[1.0, 100], [3, 700]]))
    with th.no_grad():
        for param in policy.parameters():
            param += 0.1 * th.rand_like(param)
    policy.save(tmp_path / "policy.pt")
    loaded = policy_class.load(tmp_path / "policy.pt", device="cpu")
    assert loaded.n_costs == 2
    assert loaded.share_features_extractor == share
    obs = observations(policy)
    for mine, theirs in zip(policy(obs, deterministic=True), loaded(obs, deterministic=True), strict=True):
        assert th.equal(mine, theirs)
    assert th.equal(policy.predict_cost_values(obs), loaded.predict_cost_values(obs))


@pytest.mark.parametrize("share", [True, False])
def test_features_extractor_of_the_cost_critic_is_its_own_unless_shared(share):
    policy = make_policy(
        CnnPolicy, image_space(), share_features_extractor=share, features_extractor_kwargs={"features_dim": 8}
    )
    assert (policy.cvf_features_extractor is policy.features_extractor) == share
    th.nn.init.ones_(policy.cost_value_net.weight)
    policy.predict_cost_values(observations(policy)).sum().backward()
    touched = {name for name, param in policy.named_parameters() if param.grad is not None and param.grad.abs().sum() > 0}
    assert {name for name in touched if not name.startswith(("cost_", "cvf_"))} == (
        {name for name, _ in policy.named_parameters() if name.startswith("features_extractor.")} if share else set()
    )
