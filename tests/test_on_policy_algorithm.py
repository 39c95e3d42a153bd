import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnvWrapper, VecFrameStack, VecNormalize
from toy_envs import RiskyEnv, ScriptedEnv, scripted_cost, scripted_steps, vec_env

from sb3_cpo import CPO, FPO, PDO, TRPO, rollout_loop
from sb3_cpo.critics import actor_parameters

SMALL = {"net_arch": [8]}


class Rollouts(BaseCallback):
    """Keeps a copy of what each rollout held, and may stop training in the middle of one.

    :param stop_at: step at which ``_on_step`` returns False
    """

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.costs, self.ends, self.advantages, self.estimates, self.logged = stop_at, [], [], [], [], []

    def _on_step(self):
        return self.num_timesteps != self.stop_at

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        self.costs.append(buffer.costs.copy())
        self.ends.append(buffer.episode_ends.copy())
        self.advantages.append(buffer.cost_advantages.copy())
        self.estimates.append(self.model.raw_cost_estimate)


def make_model(env, algorithm=CPO, **kwargs):
    kwargs = {"cost_limit": 5.0, "n_steps": 4, "batch_size": 4, "seed": 0, "device": "cpu", "policy_kwargs": SMALL, **kwargs}
    if algorithm is CPO:
        # Costs count to the end of their episode
        kwargs.setdefault("cost_gae_gamma", kwargs.get("cost_gamma", 1.0))
    return algorithm("MlpPolicy", env, **kwargs)


def expected_costs(n_steps, n_envs, n_costs):
    costs = np.array([[scripted_cost(rank, t) for rank in range(n_envs)] for t in range(n_steps)])
    return costs[..., None] * np.arange(1, n_costs + 1)


def expected_episodes(lengths, first, last, n_envs):
    """(sums, lengths, steps before ``first``) of the scripted episodes that end in the steps first .. last - 1."""
    numbers, ends, _ = scripted_steps(lengths, last)
    rows = []
    for t in np.flatnonzero(ends):
        if t >= first:
            begin = t - numbers[t]
            for rank in range(n_envs):
                sums = sum(scripted_cost(rank, step) for step in range(begin, t + 1))
                rows.append((sums, t + 1 - begin, max(first - begin, 0)))
    return np.array(rows)


# -- The hook: costs in the buffer are those that the environment emitted


@pytest.mark.parametrize("subproc", [False, True], ids=["dummy", "subproc"])
@pytest.mark.parametrize("form", ["number", "array", "keys"])
def test_costs_in_the_buffer_are_step_for_step_those_of_the_environment(form, subproc):
    n_costs = 1 if form == "number" else 3
    keys = ("cost_a", "cost_b", "cost_c") if form == "keys" else ()
    cost_limit = {"number": 5.0, "array": [5.0, 6, 7], "keys": dict.fromkeys(keys, 5.0)}[form]
    env = vec_env(lambda rank: ScriptedEnv(rank, n_costs=n_costs, keys=keys), 2, subproc)
    rollouts = Rollouts()
    try:
        make_model(env, cost_limit=cost_limit).learn(2 * 4 * 4, callback=rollouts)
    finally:
        env.close()
    # Four rollouts of four steps; episodes of 3 and 5 steps, by time limit and termination, cross their boundaries
    np.testing.assert_array_equal(np.concatenate(rollouts.costs), expected_costs(16, 2, n_costs))
    _, ends, _ = scripted_steps((3, 5), 16)
    np.testing.assert_array_equal(np.concatenate(rollouts.ends), np.stack([ends, ends], axis=1))
    # and each J is the mean over exactly the episodes that ended in its rollout
    for index, estimate in enumerate(rollouts.estimates):
        episodes = expected_episodes((3, 5), 4 * index, 4 * index + 4, 2)
        np.testing.assert_allclose(estimate.mean, episodes[:, 0].mean() * np.arange(1, n_costs + 1))
        error = episodes[:, 0].std(ddof=1) / np.sqrt(len(episodes))
        np.testing.assert_allclose(estimate.standard_error, error * np.arange(1, n_costs + 1))
        assert estimate.n_episodes == len(episodes)
        assert estimate.mean_length == episodes[:, 1].mean()
        np.testing.assert_allclose(estimate.stale_share, episodes[:, 2].sum() / episodes[:, 1].sum())


def test_named_costs_go_to_the_constraint_of_their_name():
    env = vec_env(lambda rank: ScriptedEnv(rank, keys=("cost_a", "cost_b")))
    rollouts = Rollouts()
    make_model(env, cost_limit={"cost_b": 1.0, "cost_a": 2.0}).learn(4, callback=rollouts)
    np.testing.assert_array_equal(rollouts.costs[0], expected_costs(4, 1, 2)[..., ::-1])


def test_a_rollout_that_a_callback_stopped_loses_no_cost_of_the_episode_in_progress():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(6,)), 2)
    rollouts = Rollouts(stop_at=2 * 10)
    model = make_model(env).learn(2 * 40, callback=rollouts)
    assert model.num_timesteps == 20
    assert len(rollouts.costs) == 2
    # Nor does the record of what training has cost
    assert model.safety.n_steps == 20
    assert model.safety.cumulative_cost == expected_costs(10, 2, 1).sum()
    assert model.safety.n_updates == 2
    rollouts.stop_at = None
    # The episode of the steps 6 .. 11 was stopped within step 9, after which two more steps end it
    model.learn(2 * 8, callback=rollouts, reset_num_timesteps=False)
    np.testing.assert_array_equal(rollouts.costs[2], expected_costs(14, 2, 1)[10:14])
    np.testing.assert_array_equal(rollouts.costs[3], expected_costs(18, 2, 1)[14:18])
    for estimate, (first, last) in zip(rollouts.estimates[2:], [(10, 14), (14, 18)], strict=True):
        np.testing.assert_allclose(estimate.mean, expected_episodes((6,), first, last, 2)[:, 0].mean())
        assert estimate.n_episodes == 2
        assert estimate.mean_length == 6


def test_sums_go_on_when_learning_continues_and_begin_anew_when_the_environments_are_reset():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(6,)))
    rollouts = Rollouts()
    model = make_model(env).learn(4, callback=rollouts)
    model.learn(4, callback=rollouts, reset_num_timesteps=False)
    assert rollouts.estimates[1].mean == sum(scripted_cost(0, t) for t in range(6))
    assert rollouts.estimates[1].stale_share == 4 / 6
    # Now two steps into the second episode
    model.learn(8, callback=rollouts)
    assert rollouts.estimates[3].mean == sum(scripted_cost(0, t) for t in range(8, 14))


@pytest.mark.parametrize("algorithm", [CPO, PDO, TRPO])
def test_no_finished_episode_is_neither_nan_nor_safe(algorithm):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(100,)), 2)
    model = make_model(env, algorithm)
    rollouts = Rollouts()
    model.learn(2 * 4, callback=rollouts)
    so_far = expected_costs(4, 2, 1).sum(axis=0).mean()
    # A critic that has not learned yet adds little; PDO and TRPO have none
    np.testing.assert_allclose(model.ep_cost_mean, so_far, atol=0 if algorithm is not CPO else 10)
    assert model.raw_cost_estimate.n_episodes == 0
    model.learn(2 * 4, callback=rollouts, reset_num_timesteps=False)
    assert rollouts.estimates[1].mean >= expected_costs(8, 2, 1).sum(axis=0).mean() - 10
    assert rollouts.estimates[1].stale_share == 0.5


def test_no_finished_episode_adds_the_critic_s_value_of_what_is_to_come(monkeypatch):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(100,)), 2)
    env.envs[0].spec = gym.envs.registration.EnvSpec("Scripted-v0", max_episode_steps=50)
    model = make_model(env)
    # The critic says 1000 (steps so far) + rank
    monkeypatch.setattr(model.policy, "predict_cost_values", lambda obs: (1000 * obs[:, 0] + obs[:, 2])[:, None])
    rollouts = Rollouts()
    model.learn(2 * 4, callback=rollouts)
    so_far = expected_costs(4, 2, 1).sum(axis=0).mean()
    np.testing.assert_allclose(rollouts.estimates[0].mean, so_far + 4000.5)
    assert rollouts.estimates[0].mean_length == 50
    assert rollouts.estimates[0].n_episodes == 0


def test_values_with_another_discount_do_not_enter_the_estimate_where_no_episode_ended(monkeypatch):
    """Cost 1 per step: 4 steps, and 46 more at the same rate. The critic would say that nothing is to come."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(50,), cost=lambda rank, t: 1.0), 2)
    env.envs[0].spec = gym.envs.registration.EnvSpec("Scripted-v0", max_episode_steps=50)
    model = make_model(env, n_steps=4, cost_gae_gamma=0.5)
    monkeypatch.setattr(model.policy, "predict_cost_values", lambda obs: 0 * obs[:, :1])
    with pytest.warns(UserWarning, match="no episode ended"):
        model.learn(2 * 4)
    np.testing.assert_allclose(model.ep_cost_mean, 50.0)


# -- Cost advantages


@pytest.mark.parametrize(("cost_gamma", "cost_gae_gamma"), [(1.0, 1.0), (0.9, 0.9), (1.0, 0.8), (0.9, 0.8)])
def test_cost_advantages_by_hand_with_a_time_limit_a_termination_and_a_cut(cost_gamma, cost_gae_gamma, monkeypatch):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2, 3)), 2)
    model = make_model(env, n_steps=7, cost_gamma=cost_gamma, cost_gae_lambda=0.5, cost_gae_gamma=cost_gae_gamma)
    gamma = cost_gae_gamma or cost_gamma
    value = lambda steps, episode, rank: 10.0 * steps + 3 * episode + 50 * rank  # noqa: E731
    monkeypatch.setattr(model.policy, "predict_cost_values", lambda obs: value(obs[:, 0], obs[:, 1], obs[:, 2])[:, None])
    rollouts = Rollouts()
    model.learn(2 * 7, callback=rollouts)
    # Steps 0 1 | 2 3 4 | 5 6 |: episode 0 ends at its time limit after step 1, episode 1 by termination after 4,
    # episode 2, two steps long, at its limit after 6, where the rollout is cut as well
    numbers, ends, limits = scripted_steps((2, 3), 7)
    episodes = np.concatenate([[0], np.cumsum(ends)[:-1]])
    assert limits.tolist() == [False, True, False, False, False, False, True]
    for rank in range(2):
        expected, later = np.zeros(7), 0.0
        for t in reversed(range(7)):
            here, after = value(numbers[t], episodes[t], rank), value(numbers[t] + 1, episodes[t], rank)
            if limits[t]:
                after = 0.0 if cost_gamma == 1 else after
            elif ends[t]:
                after = 0.0
            later = 0.0 if ends[t] else later
            later = scripted_cost(rank, t) + gamma * after - here + gamma * 0.5 * later
            expected[t] = later
        np.testing.assert_allclose(rollouts.advantages[0][:, rank, 0], expected, rtol=1e-5)
    # The discount of the advantages is not that of J
    episodes = ((rank, steps) for rank in range(2) for steps in ([0, 1], [2, 3, 4], [5, 6]))
    sums = [sum(cost_gamma**k * scripted_cost(rank, t) for k, t in enumerate(steps)) for rank, steps in episodes]
    np.testing.assert_allclose(rollouts.estimates[0].mean, np.mean(sums), rtol=1e-6)


@pytest.mark.parametrize("cost_gamma", [1.0, 0.9])
def test_a_rollout_cut_within_an_episode_bootstraps_the_cost_critic(cost_gamma, monkeypatch):
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank, lengths=(100,))), n_steps=4, cost_gamma=cost_gamma)
    monkeypatch.setattr(model.policy, "predict_cost_values", lambda obs: 10 * obs[:, :1] + 1)
    rollouts = Rollouts()
    model.learn(4, callback=rollouts)
    np.testing.assert_allclose(rollouts.advantages[0][-1], scripted_cost(0, 3) + cost_gamma * 41 - 31)


def test_with_discount_bootstrapped_values_do_not_enter_the_estimate(monkeypatch):
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,))), n_steps=4, cost_gamma=0.5)
    monkeypatch.setattr(model.policy, "predict_cost_values", lambda obs: 1e6 + 0 * obs[:, :1])
    rollouts = Rollouts()
    model.learn(4, callback=rollouts)
    costs = [scripted_cost(0, t) for t in range(4)]
    assert rollouts.estimates[0].mean == (costs[0] + costs[1] / 2 + costs[2] + costs[3] / 2) / 2


def test_reward_advantages_are_those_of_sb3():
    """The reward of a time limit is bootstrapped by SB3, the cost of the same step is not touched."""
    from sb3_contrib import TRPO as ContribTRPO

    class Advantages(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.model.kept = self.model.rollout_buffer.advantages.copy(), self.model.rollout_buffer.returns.copy()

    kept = []
    for algorithm, kwargs in ((CPO, {}), (ContribTRPO, None)):
        env = vec_env(lambda rank: ScriptedEnv(rank), 2)
        common = {"n_steps": 8, "batch_size": 4, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
        model = algorithm("MlpPolicy", env, **common, **({"cost_limit": 5.0} if kwargs is not None else {}))
        # Ours begins without an opinion
        th.nn.init.ones_(model.policy.value_net.weight)
        model.learn(16, callback=Advantages())
        kept.append(model.kept)
    np.testing.assert_array_equal(kept[0], kept[1])


@pytest.mark.parametrize("is_vector", [True, False])
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(
    ("algorithm", "kwargs", "penalty"),
    [(CPO, {}, 0.0), (TRPO, {}, 0.0), (FPO, {"penalty_coef": 3.0}, 3.0), (PDO, {"penalty_coef": 2.0}, 2.0)],
)
def test_rewards_end_at_the_time_limit_where_nothing_is_bootstrapped(
    algorithm, kwargs, penalty, scale, is_vector, monkeypatch
):
    """In the loop of SB3, and in ours for vectors; a wrapper's rewards, less the penalty on what the same steps cost."""
    kept = {}

    class Scaled(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            obs, rewards, dones, infos = self.venv.step_wait()
            return obs, rewards / scale, dones, infos

    for bootstrap in (True, False):

        class Rewards(BaseCallback):
            def _on_step(self):
                return True

            def _on_rollout_end(self, bootstrap=bootstrap):
                kept[bootstrap] = self.model.rollout_buffer.rewards.copy()

        env = Scaled(vec_env(lambda rank: ScriptedEnv(rank, lengths=(2, 3)), 2))
        model = make_model(env, algorithm, n_steps=7, bootstrap_time_limits=bootstrap, **kwargs)
        monkeypatch.setattr(rollout_loop, "is_supported", lambda model: is_vector)
        with th.no_grad():
            # The value of everything
            model.policy.value_net.bias.fill_(1.0)
        model.learn(2 * 7, callback=Rewards())
    # Episode 0 ends at its time limit after step 1, episode 1 by termination after 4, episode 2 at its limit after 6
    is_limit = np.isin(np.arange(7), (1, 6))
    assert np.all(kept[True][is_limit] != kept[False][is_limit])
    np.testing.assert_array_equal(kept[True][~is_limit], kept[False][~is_limit])
    played = np.arange(1, 8)[:, None] % 7 / scale
    np.testing.assert_allclose(kept[False], played - penalty * expected_costs(7, 2, 1)[..., 0], rtol=1e-6)


# -- Critics


@pytest.mark.parametrize("kind", ["box", "image"])
@pytest.mark.parametrize("share", [True, False])
def test_the_critic_step_changes_no_parameter_of_the_actor(kind, share, monkeypatch):
    env = vec_env(lambda rank: RiskyEnv(kind), 2)
    policy = "CnnPolicy" if kind == "image" else "MlpPolicy"
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}} if kind == "image" else {}
    model = CPO(
        policy, env, 1.0, n_steps=8, batch_size=8, n_critic_updates=2, learning_rate=0.1, device="cpu", seed=0,
        policy_kwargs={"net_arch": [8], "share_features_extractor": share, **kwargs},
    )  # fmt: skip
    fit_critics, seen = model._fit_critics, []

    def spy(rollout):
        before = {name: param.detach().clone() for name, param in model.policy.named_parameters()}
        obs = model.policy.obs_to_tensor(np.stack([env.observation_space.sample() for _ in range(20)]))[0]
        actions = model.policy._predict(obs, deterministic=True)
        row = fit_critics(rollout)
        changed = {name for name, param in model.policy.named_parameters() if not th.equal(param, before[name])}
        assert th.equal(model.policy._predict(obs, deterministic=True), actions)
        assert model.policy.get_parameter("log_std") is not None
        seen.append(changed)
        return row

    monkeypatch.setattr(model, "_fit_critics", spy)
    model.learn(2 * 8 * 2)
    for changed in seen:
        # What changed belongs to a critic, and both critics changed
        critics = ("value_net", "mlp_extractor.value_net", "cost_value_net", "cost_mlp_extractor")
        critics += () if share else ("vf_features_extractor", "cvf_features_extractor")
        assert all(name.startswith(critics) for name in changed)
        assert all(
            any(name.startswith(critic) for name in changed)
            for critic in critics
            if kind == "image" or "features" not in critic
        )


@pytest.mark.parametrize("cost_gae_lambda", [0.0, 1.0])
def test_the_cost_critic_learns_the_cost_to_come(cost_gae_lambda):
    """Episodes of 5 steps at 100 each: 500, 400, ... 100 are to come. The units are the costs'."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(5,), cost=lambda rank, t: 100.0), 4)
    model = make_model(env, n_steps=10, batch_size=20, n_critic_updates=20, learning_rate=1e-2)
    model.rollout_buffer.cost_gae_lambda = cost_gae_lambda
    model.learn(40 * 15)
    obs = np.array([[steps, model.env.envs[0].unwrapped.episode, 0] for steps in range(5)], dtype=np.float32)
    np.testing.assert_allclose(model.predict_cost_values(obs)[:, 0], [500, 400, 300, 200, 100], atol=40)


def test_predict_cost_values_takes_one_observation_or_several():
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank, n_costs=2)), cost_limit=[1, 2])
    obs = np.ones((3, 3), dtype=np.float32)
    assert model.predict_cost_values(obs).shape == (3, 2)
    np.testing.assert_allclose(model.predict_cost_values(obs[0]), model.predict_cost_values(obs)[:1], rtol=1e-5)
    with pytest.raises(ValueError, match="this TRPO has no cost critic"):
        make_model(vec_env(lambda rank: ScriptedEnv(rank)), TRPO).predict_cost_values(obs)


# -- What goes together with what


@pytest.mark.parametrize("kind", ["box", "discrete", "multi_discrete", "image", "dict"])
@pytest.mark.parametrize("cost_gamma", [1.0, 0.9])
def test_observation_spaces(kind, cost_gamma):
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}.get(kind, "MlpPolicy")
    extractor = {"image": {"features_dim": 8}, "dict": {"cnn_output_dim": 8}}.get(kind, {})
    model = CPO(
        policy, vec_env(lambda rank: RiskyEnv(kind), 2), 1.0, n_steps=8, batch_size=8, n_critic_updates=1, device="cpu",
        seed=0, cost_gamma=cost_gamma, policy_kwargs={"net_arch": [8], "features_extractor_kwargs": extractor},
    )  # fmt: skip
    before = [param.detach().clone() for param in model.policy.parameters()]
    model.learn(2 * 16)
    assert all(th.isfinite(param).all() for param in model.policy.parameters())
    assert any(not th.equal(param, old) for param, old in zip(model.policy.parameters(), before, strict=True))
    assert np.isfinite(model.ep_cost_mean).all()


@pytest.mark.parametrize(
    ("action_space", "kwargs"),
    [
        (spaces.Box(-1, 1, (2,)), {}),
        (spaces.Box(-1, 1, (2,)), {"use_sde": True, "sde_sample_freq": 3}),
        (spaces.Box(-1, 1, (2,)), {"use_sde": True, "policy_kwargs": {"net_arch": [8], "squash_output": True}}),
        (spaces.Discrete(3), {}),
        (spaces.MultiDiscrete([2, 3]), {}),
        (spaces.MultiBinary(3), {}),
    ],
    ids=["box", "gsde", "squashed_gsde", "discrete", "multi_discrete", "multi_binary"],
)
def test_action_spaces_and_the_direction_of_the_update(action_space, kwargs):
    """Reward and cost rise with the action: far over the limit every distribution moves down, without a limit up."""
    costs = []
    for cost_limit in (-1e6, 1e6):
        env = vec_env(lambda rank: RiskyEnv(action_space=action_space), 4)
        model = make_model(
            env, cost_limit=cost_limit, n_steps=32, batch_size=128, n_critic_updates=1, target_kl=0.05, **kwargs
        )
        model.learn(128 * 8)
        costs.append(float(model.ep_cost_mean[0]))
    assert costs[0] < 0.9 * costs[1]


@pytest.mark.parametrize("n_costs", [0, 1, 10])
def test_any_number_of_constraints(n_costs):
    env = vec_env(lambda rank: RiskyEnv(n_costs=max(n_costs, 1)), 2)
    model = make_model(env, cost_limit=[1.5 + index for index in range(n_costs)], n_steps=16, batch_size=16)
    model.learn(2 * 32)
    assert model.ep_cost_mean.shape == (n_costs,)
    assert model.safety.cumulative_cost.shape == (n_costs,)
    assert model.n_costs == n_costs
    # The costs of a step are those of the first and 1/2, 1, ... more, over 4 steps
    np.testing.assert_allclose(
        model.ep_cost_mean, (model.ep_cost_mean[:1] if n_costs else 0) + 2 * np.arange(n_costs), rtol=1e-12
    )


def test_vec_normalize_leaves_the_costs_raw():
    env = VecNormalize(vec_env(lambda rank: ScriptedEnv(rank), 2))
    rollouts = Rollouts()
    make_model(env).learn(2 * 8, callback=rollouts)
    np.testing.assert_array_equal(np.concatenate(rollouts.costs), expected_costs(8, 2, 1))


def test_vec_frame_stack():
    env = VecFrameStack(vec_env(lambda rank: ScriptedEnv(rank), 2), 3)
    rollouts = Rollouts()
    for cost_gamma in (1.0, 0.9):
        make_model(env, cost_gamma=cost_gamma).learn(2 * 8, callback=rollouts)
    assert np.isfinite(np.concatenate(rollouts.advantages)).all()


def test_limit_is_a_schedule_of_the_remaining_progress():
    class Limits(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            limits.append(self.model.current_cost_limit.tolist())

    limits = []
    env = vec_env(lambda rank: ScriptedEnv(rank, n_costs=2))
    make_model(env, cost_limit=[lambda progress: 10 * progress, 3.0]).learn(16, callback=Limits())
    # after 4, 8, 12 and 16 of 16 steps
    assert limits == [[7.5, 3], [5, 3], [2.5, 3], [0, 3]]


def test_safety_of_training_by_hand():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: float(t < 8)))
    model = make_model(env, cost_limit=1.5).learn(16)
    # Episodes of 2 steps, cost 2 in the first two rollouts and 0 in the last two
    assert model.safety.cumulative_cost == 8
    assert model.safety.n_steps == 16
    assert model.safety.n_updates == 4
    assert model.safety.n_violations == 2
    assert model.safety.longest_streak == 2
    assert model.safety.cost_regret == 1.0
    assert model.safety.first_feasible_step == 12


def test_mean_reward_of_the_rollout_covers_the_episodes_behind_the_mean_cost():
    model = CPO("MlpPolicy", ScriptedEnv(lengths=(2,)), 5.0, n_steps=4, batch_size=4, device="cpu").learn(8)
    # Rewards t % 7: (1 + 2), (3 + 4) in the first rollout, (5 + 6), (0 + 1) in the last
    assert model.ledger.returns == [11, 1]
    assert model.ep_rew_mean == 6


def test_two_seeded_runs_are_identical():
    runs = []
    for _ in range(2):
        model = make_model(
            vec_env(lambda rank: RiskyEnv(n_costs=2), 2), cost_limit=[1.0, 4.0], n_steps=16, batch_size=16, seed=3
        )
        runs.append(model.learn(3 * 32))
    for mine, theirs in zip(runs[0].policy.state_dict().values(), runs[1].policy.state_dict().values(), strict=True):
        assert th.equal(mine, theirs)
    np.testing.assert_array_equal(runs[0].ep_cost_mean, runs[1].ep_cost_mean)


def test_actor_parameters_are_found_whatever_their_names_and_modules():
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class ValueNamedExtractor(BaseFeaturesExtractor):
        """Called "value" although the actor sees through it."""

        def __init__(self, observation_space):
            super().__init__(observation_space, 4)
            self.value_of_everything = th.nn.Linear(3, 4)

        def forward(self, obs):
            return self.value_of_everything(obs)

    env = vec_env(lambda rank: RiskyEnv(), 2)
    model = make_model(env, n_steps=8, policy_kwargs={"net_arch": [4], "features_extractor_class": ValueNamedExtractor})
    model._setup_learn(16)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 8)
    params = actor_parameters(model.policy, next(model.rollout_buffer.get()))
    names = {name for name, param in model.policy.named_parameters() if any(param is mine for mine in params)}
    assert names == {
        "log_std", "action_net.weight", "action_net.bias",
        "mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias",
        "features_extractor.value_of_everything.weight", "features_extractor.value_of_everything.bias",
    }  # fmt: skip


# -- Logs


GLOSSARY = (
    "rollout/ep_cost_mean", "rollout/ep_cost_std_error", "rollout/cost_limit", "train/violation", "train/nu",
    "train/predicted_cost_change", "train/linear_cost_change", "train/cost_surrogate",
    "train/actual_cost_change", "train/actual_cost_change_se",
    "train/worst_case_cost", "train/cost_explained_variance", "safety/cumulative_cost", "safety/cost_rate",
    "safety/violation_rate", "safety/cost_regret", "safety/longest_streak",
)  # fmt: skip
SCALARS = (
    "rollout/ep_rew_mean_rollout", "rollout/n_episodes", "rollout/stale_share",
    "train/policy_objective", "train/cost_value_loss", "train/kl_divergence_loss", "train/cg_residual", "train/lambda",
    "train/is_feasible", "train/step_size", "train/is_line_search_success", "train/value_loss", "train/explained_variance",
    "safety/first_feasible_step",
)  # fmt: skip


@pytest.mark.parametrize("names", [(), ("cost_velocity_of_the_left_leg", "cost_velocity_of_the_right_leg")])
def test_logs_have_the_glossary_s_keys_in_every_format(names, tmp_path):
    import csv

    from stable_baselines3.common.logger import configure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = vec_env(lambda rank: ScriptedEnv(rank, keys=names), 2)
    limit = dict.fromkeys(names, 5.0) or 5.0
    model = CPO("MlpPolicy", env, limit, n_steps=8, batch_size=8, device="cpu", policy_kwargs=SMALL, cost_gae_gamma=1.0)
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))
    model.learn(3 * 16)
    per_constraint = {f"{key}/{name}" for key in GLOSSARY for name in names} or set(GLOSSARY)
    scalars = {key for key in SCALARS if key != "rollout/ep_rew_mean_rollout"}  # no Monitor here
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert per_constraint | scalars <= set(rows[-1])
    assert not {key for key in set(rows[-1]) - per_constraint if key.rsplit("/", 1)[0] in GLOSSARY}
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert per_constraint | scalars <= set(events.Tags()["scalars"])
    # Costs double with the name: rows agree with the model
    last = names[-1:] or ("",)
    key = "/".join(["rollout/ep_cost_mean", *filter(None, last)])
    np.testing.assert_allclose(float(rows[-1][key]), model.ep_cost_mean[-1], rtol=1e-6)


def test_with_a_monitor_the_rollout_s_reward_is_logged(tmp_path):
    import csv

    from stable_baselines3.common.logger import configure

    model = CPO("MlpPolicy", ScriptedEnv(lengths=(2,)), 5.0, n_steps=4, batch_size=4, device="cpu", policy_kwargs=SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(8)
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rollout/ep_rew_mean_rollout"]) for row in rows] == [5, 6]
    assert float(rows[1]["rollout/ep_rew_mean"]) == 5.5


def test_actual_change_is_that_between_two_rollouts(tmp_path):
    import csv

    from stable_baselines3.common.logger import configure

    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,)), 2)
    model, rollouts = make_model(env), Rollouts()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(3 * 8, callback=rollouts)
    with open(tmp_path / "progress.csv") as file:
        rows = list(csv.DictReader(file))
    for index in (1, 2):
        before, after = rollouts.estimates[index - 1], rollouts.estimates[index]
        np.testing.assert_allclose(float(rows[index]["train/actual_cost_change"]), after.mean - before.mean, rtol=1e-6)
        error = np.sqrt(before.standard_error**2 + after.standard_error**2)
        np.testing.assert_allclose(float(rows[index]["train/actual_cost_change_se"]), error, rtol=1e-6)
    assert not rows[0].get("train/actual_cost_change")


def test_an_interrupted_rollout_loses_no_cost_of_the_episode_in_progress():
    class Interrupt(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 7:
                raise KeyboardInterrupt
            return True

    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(12,), cost=lambda rank, t: 1.0))
    model = make_model(env)
    with pytest.raises(KeyboardInterrupt):
        model.learn(40, callback=Interrupt())
    model.learn(8, reset_num_timesteps=False)
    # The step in which the interruption came is lost, as its transition is
    assert model.ep_cost_mean == 11


def test_predicted_stands_beside_actual_change_although_an_evaluation_wrote_in_between():
    class Evaluation(BaseCallback):
        def _on_step(self):
            self.logger.dump(self.num_timesteps)
            return True

    rows = []
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank)))
    model.set_logger(Logger(None, []))
    dump = model.logger.dump
    model.logger.dump = lambda step=0: (rows.append(dict(model.logger.name_to_value)), dump(step))
    model.learn(12, callback=Evaluation())
    rows = [row for row in rows if "train/actual_cost_change" in row]
    assert len(rows) == 2
    assert all("train/predicted_cost_change" in row for row in rows)


def test_a_rollout_without_a_finished_episode_is_no_proof_of_a_kept_limit():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(100,), cost=lambda rank, t: 0.0))
    model = make_model(env, cost_limit=1e9)
    with pytest.warns(UserWarning, match="no episode ended in this rollout of 4 steps"):
        model.learn(8)
    assert model.safety.first_feasible_step == -1


# -- What goes on from one call of learn, or from one model, to the next


def test_a_cost_mentioned_late_loses_no_end_of_an_episode():
    """TRPO learns in the middle of a rollout that there are two costs: all 16 episodes of 4 steps still end."""

    class Late(ScriptedEnv):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info if self.t > 20 else {}

    env = vec_env(lambda rank: Late(rank, lengths=(4,), n_costs=2), 2)
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu").learn(64)
    assert model.n_costs == 2
    assert model.raw_cost_estimate.n_episodes == 16
    assert model.raw_cost_estimate.mean_length == 4


def test_after_learn_nothing_of_the_user_is_held_and_the_model_can_be_copied():
    import copy
    import gc
    import weakref

    class Mine(BaseCallback):
        def _on_step(self):
            return True

    callback = Mine()
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank), 2)).learn(8, callback=callback)
    gone = weakref.ref(callback)
    del callback
    gc.collect()
    assert gone() is None
    twin = copy.deepcopy(model)
    obs = np.zeros((1, 3), dtype=np.float32)
    np.testing.assert_array_equal(twin.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    twin.learn(8, reset_num_timesteps=False)
    assert (twin.safety.n_steps, model.safety.n_steps) == (16, 8)


@pytest.mark.parametrize("reset", ["timesteps", "environment"])
def test_what_was_learned_of_the_costs_ends_with_the_run_or_its_environment(reset):
    env = vec_env(lambda rank: ScriptedEnv(rank), 2)
    model = make_model(env, cost_limit=-1e5, cost_margin_lr=0.5, n_noise_draws=0).learn(16)
    model.margin.value = np.array([3.0])
    model._watchdog.n_unreachable = 7
    if reset == "timesteps":
        model._setup_learn(8, reset_num_timesteps=True)
    else:
        model.set_env(vec_env(lambda rank: ScriptedEnv(rank), 2))
    assert model.cost_margin == 0
    assert model._watchdog.n_unreachable == 0
    assert np.isnan(model.ep_cost_mean).all()
    # The record is of the training, as the number of its steps is
    assert model.safety.n_steps == (0 if reset == "timesteps" else 16)


def test_a_training_that_goes_on_in_another_environment_keeps_its_record_and_its_distance_from_the_limit():
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank), 2), cost_limit=5.0).learn(32)
    distance, cost = model.distance, model.safety.cumulative_cost
    model.set_env(vec_env(lambda rank: ScriptedEnv(rank), 2))
    assert model.distance is distance
    assert model.filtered_cost is None
    model.learn(8, reset_num_timesteps=False)
    assert model.safety.n_steps == model.num_timesteps == 40
    assert model.safety.cumulative_cost > cost > 0


def test_a_loaded_model_without_environment_keeps_what_it_learned_when_it_gets_one(tmp_path):
    model = make_model(vec_env(lambda rank: ScriptedEnv(rank), 2)).learn(16)
    model.margin.value = np.array([3.0])
    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model")
    loaded.set_env(vec_env(lambda rank: ScriptedEnv(rank), 2))
    assert loaded.cost_margin == 3
    np.testing.assert_array_equal(loaded.ep_cost_mean, model.ep_cost_mean)


def test_a_limit_assigned_by_a_callback_is_the_limit_of_the_next_update(tmp_path):
    class Curriculum(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            self.model.cost_limit = 10.0 - self.model.num_timesteps

    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: 1.0), 2)
    model = make_model(env, cost_limit=10.0, n_noise_draws=0)
    model.learn(16, callback=Curriculum())
    assert model.cost_limit == 10 - 8
    assert model.logger.name_to_value["train/violation"] == 2 - 2
    model.save(tmp_path / "model")
    assert CPO.load(tmp_path / "model").current_cost_limit == 2
    with pytest.raises(ValueError, match="limits other costs"):
        model.cost_limit = [1.0, 2.0]
    with pytest.raises(ValueError, match="limits other costs"):
        model.cost_limit = {"cost_speed": 1.0}
    with pytest.raises(ValueError, match="expected a number"):
        model.cost_limit = "five"
    assert model.cost_limit == 2


def test_other_arguments_can_be_assigned_too_and_are_checked():
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,)), 2)
    model = make_model(env).learn(8)
    model.cost_gae_lambda, model.gamma, model.cost_gae_gamma, model.n_cost_rollouts = 0.5, 0.7, 0.3, 2
    model.learn(16, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    assert (buffer.cost_gae_lambda, buffer.gamma, buffer.cost_gamma) == (0.5, 0.7, 0.3)
    assert len(model._recent) == 2
    model.target_kl = -1.0
    with pytest.raises(ValueError, match="target_kl must be positive, not -1"):
        model.learn(8, reset_num_timesteps=False)


def test_a_replaced_buffer_still_counts_costs_and_one_without_costs_is_refused():
    from stable_baselines3.common.buffers import RolloutBuffer

    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(2,), cost=lambda rank, t: 1.0), 2)
    model = make_model(env)
    old = model.rollout_buffer
    model.rollout_buffer = type(old)(old.buffer_size, old.observation_space, old.action_space, "cpu", n_envs=2)
    model.learn(8)
    assert model.ep_cost_mean == 2
    model.rollout_buffer = RolloutBuffer(old.buffer_size, old.observation_space, old.action_space, "cpu", n_envs=2)
    with pytest.raises(ValueError, match="the rollout buffer has no costs: it is a RolloutBuffer"):
        model.learn(8)


@pytest.mark.parametrize("when", ["step", "critics"])
def test_an_update_happens_whole_or_not_at_all(when, monkeypatch):
    from sb3_cpo import critics, trust_region

    env = vec_env(lambda rank: RiskyEnv(), 2)
    model = make_model(env, cost_limit=1.0, n_steps=16, batch_size=16, n_cost_rollouts=3).learn(32)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    moments = [value.clone() for state in model.policy.optimizer.state.values() for value in state.values()]
    n_recent = len(model._recent)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "step":
            patch.setattr(
                trust_region, "line_search", lambda params, *args, **kwargs: (params[0].data.fill_(9.0), interrupt())
            )
        else:
            fit = critics.fit_critics
            patch.setattr(critics, "fit_critics", lambda *args, **kwargs: (fit(*args, **kwargs), interrupt()))
        with pytest.raises(KeyboardInterrupt):
            model.learn(32, reset_num_timesteps=False)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]), name
    now = [value for state in model.policy.optimizer.state.values() for value in state.values()]
    assert all(th.equal(mine, theirs) for mine, theirs in zip(now, moments, strict=True))
    model.learn(32, reset_num_timesteps=False)
    assert len(model._recent) <= n_recent + 1 + (when == "critics")


def test_a_cost_too_large_to_square_leaves_a_model_that_can_go_on():
    class Once(ScriptedEnv):
        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {"cost": 1e30 if self.t == 5 else 1.0}

    model = make_model(vec_env(lambda rank: Once(rank, lengths=(2,)), 2))
    with pytest.raises(ValueError, match=r"cost"):
        model.learn(16)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    model.learn(16, reset_num_timesteps=False)
    assert model.ep_cost_mean == 2


@pytest.mark.parametrize(("n_steps", "is_few"), [(8, True), (40, False)])
def test_few_episodes_in_a_rollout_are_warned_of(n_steps, is_few):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,)), 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(env, n_steps=n_steps, batch_size=n_steps).learn(4 * n_steps)
    messages = [str(warning.message) for warning in caught if "episodes ended in the first rollout" in str(warning.message)]
    assert len(messages) == int(is_few)
    if is_few:
        assert messages[0].startswith("only 4 episodes ended in the first rollout of 16 steps")


@pytest.mark.parametrize(("length", "n_warnings"), [(4, 0), (100, 1)])
def test_rollouts_without_a_finished_episode_are_warned_of_once(length, n_warnings):
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(length,)), 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(env).learn(4 * 8)
    assert sum("no episode ended in this rollout" in str(warning.message) for warning in caught) == n_warnings
