import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from resuming import with_rows
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import KnapsackEnv, RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, TRPO, cost_surrogates, log_keys, trust_region_algorithm, watchdog
from sb3_cpo.fisher import fisher_products
from sb3_cpo.trust_region import trust_region_step

SMALL = {"net_arch": [8]}
# The paper's update: batches are trusted as they are
PAPER = {"n_noise_draws": 0, "cost_confidence": 0.0, "cost_gae_gamma": 1.0}
UNNORMALIZED = {"policy_kwargs": {**SMALL, "normalize_observations": False}}
KWARGS = {"n_steps": 32, "batch_size": 64, "device": "cpu", "seed": 0, "policy_kwargs": SMALL}


class Updates(BaseCallback):
    """Return and cost of each rollout, without the rewards that SB3 adds at time limits."""

    def __init__(self):
        super().__init__()
        self.returns, self.costs, self.total = [], [], 0.0

    def _on_step(self):
        self.total += self.locals["rewards"].sum()
        return True

    def _on_rollout_end(self):
        self.returns.append(self.total / self.model.raw_cost_estimate.n_episodes)
        self.costs.append(self.model.ep_cost_mean.copy())
        self.total = 0.0


@pytest.fixture
def seen(monkeypatch):
    """Arguments and results of every trust-region step that an algorithm takes."""
    calls = []

    def spy(params, evaluate, violation, target_kl, **kwargs):
        before = evaluate()
        gradients = [th.autograd.grad(cost, params, retain_graph=True, allow_unused=True) for cost in before.costs]
        step = trust_region_step(params, evaluate, violation, target_kl, **kwargs)
        with th.no_grad():
            after = evaluate()
        calls.append({"violation": violation, "before": before, "after": after, "step": step, "gradients": gradients})
        return step

    monkeypatch.setattr(trust_region_algorithm, "trust_region_step", spy)
    return calls


def test_reaches_the_optimum_of_a_knapsack_at_the_limit():
    """An optimum that can be computed: >= 95 % of its return, mean cost within 5 % of the limit."""
    updates = Updates()
    env = vec_env(lambda rank: KnapsackEnv(), 40)
    model = CPO(
        "MlpPolicy", env, KnapsackEnv.cost_limit, n_steps=50, batch_size=250, n_critic_updates=3, learning_rate=3e-3,
        policy_kwargs={"net_arch": [16]}, seed=0, device="cpu", n_noise_draws=0, target_kl=0.01,
    )  # fmt: skip
    model.learn(2000 * 36, callback=updates)
    assert np.mean(updates.returns[-10:]) >= 0.95 * KnapsackEnv.optimal_return
    assert abs(np.mean(updates.costs[-10:]) - KnapsackEnv.cost_limit) <= 0.05 * KnapsackEnv.cost_limit
    # It began far above the limit, at half the items, and the third item is what it stopped taking
    assert updates.costs[0] > 1.5 * KnapsackEnv.cost_limit
    probs = model.policy.get_distribution(th.arange(3)).distribution.probs[:, 1]
    assert probs[0] > 0.9
    assert probs[2] < 0.1


def test_keeps_two_limits_at_once():
    """Two costs, of the first and the second half of the action; both limits bind."""

    class TwoCosts(RiskyEnv):
        def step(self, action):
            obs, _, terminated, truncated, info = super().step(action)
            info["cost"] = np.clip(action, 0, None).astype(float) * [1, 2]
            return obs, float(action.sum()), terminated, truncated, info

    updates = Updates()
    limits = np.array([2.0, 3.0])
    model = CPO(
        "MlpPolicy",
        vec_env(lambda rank: TwoCosts(), 16),
        limits,
        target_kl=0.03,
        n_critic_updates=3,
        **{**KWARGS, "batch_size": 128},
    )
    model.learn(512 * 25, callback=updates)
    np.testing.assert_allclose(np.mean(updates.costs[-10:], axis=0), limits, rtol=0.1)
    # Nobody earns more than 2 + 3 / 2 in the mean: a component of the action earns at most what it costs per unit
    assert np.mean(updates.returns[-10:]) > 0.9 * 3.5


def test_the_surrogate_cost_is_that_of_an_episode(seen):
    """In units of J: the surrogate's gradient is that of the mean cost of an episode, computed from whole episodes."""
    env = vec_env(lambda rank: RiskyEnv(length=8), 8)
    # lambda = 1 and a critic that says 0: the advantage of a step is the cost from there to the end of the episode
    model = CPO("MlpPolicy", env, 3.0, cost_gae_lambda=1.0, **{**KWARGS, **PAPER, **UNNORMALIZED})
    with th.no_grad():
        model.policy.cost_value_net.weight.zero_()
        model.policy.cost_value_net.bias.zero_()

    class Kept(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = self.model.rollout_buffer
            self.obs, self.actions, self.costs = buffer.observations.copy(), buffer.actions.copy(), buffer.costs.copy()

    kept = Kept()
    initial = [param.detach().clone() for param in model.policy.parameters()]
    model.learn(256, callback=kept)
    with th.no_grad():
        for param, old in zip(model.policy.parameters(), initial, strict=True):
            param.copy_(old)
    # Policy gradient of the episode's cost by hand: mean over episodes of sum_t (cost to go - its mean) grad log pi
    to_go = np.cumsum(kept.costs.reshape(4, 8, 8)[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    obs, actions = th.as_tensor(kept.obs.reshape(-1, 3)), th.as_tensor(kept.actions.reshape(-1, 2))
    log_prob = model.policy.get_distribution(obs).log_prob(actions)
    n_episodes = 4 * 8
    by_hand = (log_prob * th.as_tensor(to_go - to_go.mean(), dtype=th.float32)).sum() / n_episodes
    params = [param for name, param in model.policy.named_parameters() if "value" not in name and "cost" not in name]
    expected = th.cat([grad.flatten() for grad in th.autograd.grad(by_hand, params)])
    found = th.cat([grad.flatten() for grad in seen[0]["gradients"][0]])
    th.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen[0]["violation"], model.ep_cost_mean - 3.0)


@pytest.mark.parametrize("cost_limit", [-1e3, 3.0, 1e3])
def test_every_update_keeps_within_its_bounds(cost_limit, seen):
    env = vec_env(lambda rank: RiskyEnv(n_costs=2), 4)
    CPO("MlpPolicy", env, [cost_limit, cost_limit + 2], target_kl=0.01, **{**KWARGS, **PAPER}).learn(128 * 8)
    for call in seen:
        step, before, after, violation = (call[key] for key in ("step", "before", "after", "violation"))
        assert after.kl_div <= 0.01
        np.testing.assert_allclose(before.kl_div.item(), 0, atol=1e-7)
        rise = (after.costs - before.costs).detach().numpy()
        assert np.all(rise <= np.maximum(-violation, 0) + 1e-6)
        np.testing.assert_allclose(step.cost_surrogate_change, rise, atol=1e-5)
        if np.all(violation <= 0) and step.step_size > 0:
            assert after.objective > before.objective
        if cost_limit == -1e3:
            assert not step.is_feasible
            assert step.step_size > 0
            assert np.all(rise < 0)
        if cost_limit == 1e3:
            assert np.all(step.nu == 0)


def test_a_limit_that_nothing_reaches_is_no_constraint():
    models = [
        algorithm("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 4), cost_limit=1e9, **KWARGS).learn(128)
        for algorithm in (CPO, TRPO)
    ]
    ours = dict(models[0].policy.named_parameters())
    for name, param in models[1].policy.named_parameters():
        th.testing.assert_close(ours[name], param, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost", [0.0, 2.0])
def test_a_cost_that_no_action_changes(cost):
    """All-zero costs at a limit of 0 are feasible and do not disturb the reward; constant ones are what they are."""
    env = vec_env(lambda rank: ConstantCost(cost), 4)
    updates = Updates()
    model = CPO("MlpPolicy", env, 0.0, target_kl=0.05, **KWARGS)
    if cost == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(128 * 10, callback=updates)
        assert model.ep_cost_mean == 0
        assert updates.returns[-1] > updates.returns[0] + 1
        assert model.safety.violation_rate == 0
        assert np.abs(model.predict_cost_values(env.reset())).max() < 1
    else:
        model.learn(128, callback=updates)
        assert model.ep_cost_mean == 8


class ConstantCost(RiskyEnv):
    def __init__(self, cost):
        super().__init__()
        self.constant = cost

    def step(self, action):
        *result, info = super().step(action)
        return *result, {**info, "cost": self.constant}


def test_a_cost_without_gradient_is_warned_of_once_and_counted():
    """lambda = 0 and a critic that knows the constant cost to come would do; one state, one step is the simplest case."""

    class OneStep(ConstantCost):
        def __init__(self):
            super().__init__(2.0)
            self.length = 1

    model = CPO("MlpPolicy", vec_env(lambda rank: OneStep(), 4), 1.0, **KWARGS)
    with th.no_grad():
        model.policy.cost_value_net.weight.zero_()
    with pytest.warns(UserWarning, match="over its limit by 1.*no change of the policy") as record:
        model.learn(128)
    assert len(record) == 1
    assert model.logger.name_to_value["train/n_vanishing_gradients"] == 1
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


def test_watchdog_warns_once_of_a_limit_out_of_reach(monkeypatch):
    monkeypatch.setattr(watchdog, "PATIENCE", 3)
    env = vec_env(lambda rank: RiskyEnv(), 4)
    model = CPO("MlpPolicy", env, -1e4, **KWARGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="cost_limit is -10000")
        model.learn(128 * 2)
    with pytest.warns(UserWarning, match="for 3 updates, the violation.*more than 10 times") as record:
        model.learn(128 * 4, reset_num_timesteps=False)
    assert len(record) == 1


def test_watchdog_compares_what_an_update_changed_with_what_it_predicted(seen, monkeypatch):
    compared, costs = [], []
    monkeypatch.setattr(watchdog.Watchdog, "compare", lambda self, *values: compared.append(values))
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 4), 1.0, **{**KWARGS, **PAPER})
    for _ in range(3):
        model.learn(128, reset_num_timesteps=False)
        costs.append(model.raw_cost_estimate.mean)
    assert len(compared) == 2
    for index, (violation, predicted, actual, limits) in enumerate(compared):
        np.testing.assert_allclose(violation, costs[index + 1] - 1.0)
        np.testing.assert_array_equal(predicted, seen[index]["step"].predicted_cost_change)
        np.testing.assert_allclose(actual, costs[index + 1] - costs[index])
        assert limits is model.cost_limits


def test_confidence_adds_standard_errors_to_the_violation(seen):
    env = vec_env(lambda rank: RiskyEnv(), 4)
    model = CPO("MlpPolicy", env, 1.0, n_noise_draws=0, cost_confidence=2.0, **KWARGS).learn(128)
    estimate = model.raw_cost_estimate
    assert estimate.standard_error > 0
    np.testing.assert_allclose(seen[0]["violation"], estimate.mean + 2 * estimate.standard_error - 1)


def test_by_default_the_distance_from_the_limit_is_learned_and_goes_on_after_loading(seen, tmp_path):
    env, limit = vec_env(lambda rank: RiskyEnv(), 4), 1.3
    model = CPO("MlpPolicy", env, limit, **KWARGS)
    assert model.cost_confidence is None
    distances, costs = [], []
    for _ in range(6):
        model.learn(128, reset_num_timesteps=False)
        distances.append(np.concatenate(model.distance))
        costs.append(model.raw_cost_estimate.mean.item())
        filtered = model.filtered_cost
        deviation = np.sqrt(filtered.variance + filtered.process_noise)
        np.testing.assert_allclose(seen[-1]["violation"], filtered.mean + model.distance.total * deviation - limit)
    # The first rollout tells nothing of updates; from then on, each is near the limit here
    np.testing.assert_array_equal(distances[0], [0.5, 0.0])
    for cost, (learned, urgent), after in zip(costs[1:], distances, distances[1:], strict=False):
        expected = [learned + 0.085, urgent + 0.3] if cost > limit else [learned - 0.015, urgent / 2]
        np.testing.assert_allclose(after, expected)
    assert max(costs[1:]) > limit > min(costs[1:])

    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=env, device="cpu")
    np.testing.assert_array_equal(loaded.distance, model.distance)
    # Another run begins anew
    loaded.learn(0)
    np.testing.assert_array_equal(np.concatenate(loaded.distance), [0.5, 0.0])


@pytest.mark.parametrize("n_noise_draws", [0, 2])
@pytest.mark.parametrize("kind", ["constant", "early"])
@pytest.mark.filterwarnings("ignore:no episode ended")
def test_a_limit_is_never_believed_kept_because_no_episode_ended(n_noise_draws, kind, seen):
    """Five rollouts per episode of unknown length, whose cost is 40: a limit of 20 is exceeded in all of them."""
    cost = {"constant": lambda rank, t: 1.0, "early": lambda rank, t: 8.0 * (t % 40 < 5)}[kind]
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(40,), cost=cost), 2)
    kwargs = {**KWARGS, "n_steps": 8, "batch_size": 16, "n_noise_draws": n_noise_draws}
    CPO("MlpPolicy", env, 20.0, **kwargs).learn(16 * 16)
    assert len(seen) == 16
    assert min(call["violation"][0] for call in seen) >= 15
    if n_noise_draws == 0:
        np.testing.assert_allclose([seen[update]["violation"][0] for update in (4, 9, 14)], 20.0)


@pytest.mark.filterwarnings("ignore:no episode ended")
def test_a_rollout_in_which_no_episode_ended_teaches_the_filter_nothing():
    """All that an episode costs comes at once: what is feared in between is no surprise that updates have caused."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(40,), cost=lambda rank, t: 40.0 * (t % 40 == 0)), 2)
    model = CPO("MlpPolicy", env, 1e6, **{**KWARGS, "n_steps": 8, "batch_size": 16})
    model.learn(16 * 4)
    assert model.filtered_cost is None
    model.learn(16 * 11, reset_num_timesteps=False)
    # Every episode costs 40, of which all is known
    np.testing.assert_allclose(model.filtered_cost.mean, 40.0)
    assert model.filtered_cost.deviation < 10


def test_a_distance_that_is_given_stays(seen):
    env = vec_env(lambda rank: RiskyEnv(), 4)
    model = CPO("MlpPolicy", env, 0.5, cost_confidence=1.5, **KWARGS).learn(128 * 3)
    filtered = model.filtered_cost
    deviation = np.sqrt(filtered.variance + filtered.process_noise)
    np.testing.assert_allclose(seen[-1]["violation"], filtered.mean + 1.5 * deviation - 0.5)


def test_margin_is_the_sum_of_the_violations_that_an_update_could_have_mended(seen):
    env = vec_env(lambda rank: RiskyEnv(), 4)
    model = CPO("MlpPolicy", env, 2.0, cost_margin_lr=0.5, **{**KWARGS, **PAPER})
    margin, signs = 0.0, set()
    for _ in range(6):
        model.learn(128, reset_num_timesteps=False)
        violation, step = model.raw_cost_estimate.mean - 2, seen[-1]["step"]
        np.testing.assert_allclose(seen[-1]["violation"], violation + margin)
        if step.is_feasible:
            margin = max(margin + 0.5 * np.clip(violation, -step.reachable_cost_change, step.reachable_cost_change)[0], 0)
            signs.add(np.sign(violation[0]))
        np.testing.assert_allclose(model.cost_margin, margin)
    assert margin > 0 or signs == {1, -1}


@pytest.mark.parametrize("learning_rate", [0.0, 0.5])
def test_a_margin_is_logged_where_there_is_one(learning_rate):
    model = CPO("MlpPolicy", vec_env(lambda rank: RiskyEnv(), 4), 0.1, cost_margin_lr=learning_rate, **{**KWARGS, **PAPER})
    rows = with_rows(model)
    model.learn(128 * 3)
    margins = [row["train/cost_margin"] for row in rows if "train/cost_margin" in row]
    assert len(margins) == (2 if learning_rate else 0)


LONGER_AND_LONGER = 8 * (4,) + 4 * (8,) + 2 * (16,) + 2 * (32,)


@pytest.mark.parametrize("make", [lambda rank: RiskyEnv(), lambda rank: ScriptedEnv(rank, LONGER_AND_LONGER)])
def test_earlier_rollouts_lend_the_surrogate_their_ratios(make, seen):
    """
    The surrogate is the mean over rollouts, each weighted by the ratio of the policies that acted in it, and with the length
    that its episodes had.
    """
    model = CPO("MlpPolicy", vec_env(make, 4), 2.0, n_cost_rollouts=4, **{**KWARGS, **PAPER, **UNNORMALIZED})
    data = []
    for n_rollouts in (1, 2, 3, 4, 4):
        model.learn(128, reset_num_timesteps=False)
        buffer, length = model.rollout_buffer, model.raw_cost_estimate.mean_length
        centred = buffer.cost_advantages - buffer.cost_advantages.mean()
        data.append([th.as_tensor(array.copy()) for array in (buffer.observations, buffer.actions, buffer.log_probs[:, 0])])
        data[-1].append(th.as_tensor(centred[:, 0] * length, dtype=th.float32))
        expected = 0.0
        with th.no_grad():
            for obs, actions, old_log_prob, advantages in data[-n_rollouts:]:
                ratio = (model.policy.get_distribution(obs).log_prob(actions) - old_log_prob).exp().clamp(max=10)
                expected += (ratio * advantages).mean().item() / n_rollouts
        np.testing.assert_allclose(seen[-1]["after"].costs.item(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_rollouts", [1, 2, 3])
def test_the_cost_critic_is_fitted_to_the_costs_to_come_in_the_recent_rollouts(n_rollouts, monkeypatch):
    """Two episodes of five steps per rollout; step number t of an environment costs t."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(5,), cost=lambda rank, t: float(t)), 2)
    kwargs = {**KWARGS, "n_steps": 10, "batch_size": 10, "n_critic_updates": 20}
    model = CPO("MlpPolicy", env, 1.0, n_cost_rollouts=n_rollouts, **PAPER, **kwargs)
    model.learn(3 * 20)
    policy, observations, targets = model.policy, [], []
    predict, standardise = policy.predict_standardised_cost_values, policy.standardise_costs

    def spy_predict(obs):
        if th.is_grad_enabled():
            observations.append(obs)
        return predict(obs)

    monkeypatch.setattr(policy, "predict_standardised_cost_values", spy_predict)
    monkeypatch.setattr(policy, "standardise_costs", lambda costs: targets.append(costs) or standardise(costs))
    model.learn(20, reset_num_timesteps=False)
    assert [len(minibatch) for minibatch in targets] == [10] * 40
    steps, episodes, _ = th.cat(observations).T
    assert episodes.unique().tolist() == list(range(8 - 2 * n_rollouts, 8))
    first = 5 * episodes + steps
    to_come = (5 - steps) * (first + 5 * episodes + 4) / 2
    th.testing.assert_close(th.cat(targets)[:, 0], to_come)
    assert len(model._recent) == n_rollouts
    model.learn(20)
    assert {int(episode) for data in model._recent for episode in data.observations[:, 1]} <= {8, 9, 10}


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "image", "dict"])
def test_earlier_rollouts_of_all_kinds(kind, seen):
    """Three are held, this one last, and the surrogate after a step is the mean of those on each of them."""
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}.get(kind, "MlpPolicy")
    extractor = {"image": {"features_dim": 8}, "dict": {"cnn_output_dim": 8}}.get(kind, {})
    # Statistics of observations would move after the step
    model = CPO(
        policy, vec_env(lambda rank: RiskyEnv(kind), 2), 1.0, n_steps=8, batch_size=8, device="cpu", seed=0, n_cost_rollouts=3,
        policy_kwargs={"net_arch": [8], "features_extractor_kwargs": extractor, "normalize_observations": False},
    )  # fmt: skip
    model.learn(4 * 16)
    assert len(model._recent) == 3
    no_signs = th.zeros(0, 16)
    with th.no_grad():
        surrogates = [cost_surrogates.surrogates_of_earlier(model.policy, batch, no_signs).item() for batch in model._recent]
    assert seen[-1]["after"].costs.item() == pytest.approx(np.mean(surrogates), rel=1e-3, abs=1e-5)
    assert min(np.abs(np.subtract(surrogates[:2], surrogates[2]))) > 1e-2


def test_earlier_rollouts_with_two_costs_and_after_loading(tmp_path):
    env = vec_env(lambda rank: ScriptedEnv(rank, n_costs=2), 2)
    kwargs = {**KWARGS, "n_steps": 16, "batch_size": 16}
    model = CPO("MlpPolicy", env, [1.0, 2.0], n_cost_rollouts=3, cost_gae_gamma=0.9, **kwargs)
    model.learn(4 * 32)
    assert [data.returns.shape for data in model._recent] == [(32, 2)] * 3
    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=env)
    assert loaded.n_cost_rollouts == 3
    loaded.learn(32, reset_num_timesteps=False)
    assert loaded.cost_gae_gamma == loaded.rollout_buffer.cost_gamma == 0.9
    assert len(loaded._recent) == 1


def test_fisher_matrix_on_fewer_states_still_keeps_the_divergence_of_all(seen, monkeypatch):
    n_states = []

    def spy(distribution, params):
        n_states.append(len(distribution.distribution.mean))
        return fisher_products(distribution, params)

    monkeypatch.setattr(trust_region_algorithm, "fisher_products", spy)
    env = vec_env(lambda rank: RiskyEnv(), 4)
    CPO("MlpPolicy", env, 1.0, fisher_sub_sampling_factor=5, target_kl=0.01, **KWARGS).learn(128 * 4)
    # Every fifth of 128
    assert n_states == [26] * 4
    assert all(call["after"].kl_div <= 0.01 for call in seen)
    assert any(call["step"].step_size > 0 for call in seen)


def test_critic_of_this_batch_does_not_see_the_costs_of_this_batch_before_the_policy_does():
    """Advantages come from the critics before their fit: a critic of zero gives the plain costs, lambda = 1."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 1.0))
    model = CPO("MlpPolicy", env, 1.0, cost_gae_lambda=1.0, **{**KWARGS, **PAPER, "n_steps": 8, "batch_size": 8})
    with th.no_grad():
        model.policy.cost_value_net.weight.zero_()
        model.policy.cost_value_net.bias.zero_()
    model.learn(8)
    assert model.rollout_buffer.cost_advantages[:, 0].tolist() == [4, 3, 2, 1] * 2


def test_worst_case_of_proposition_2_by_hand():
    for cost_gamma, horizon in ((1.0, 4.0), (0.9, 10.0)):
        env = vec_env(lambda rank: RiskyEnv(action_space=spaces.Discrete(3)), 4)
        model = CPO("MlpPolicy", env, 1.0, cost_gamma=cost_gamma, target_kl=0.01, n_noise_draws=0, **KWARGS).learn(128)
        advantages = model.rollout_buffer.cost_advantages
        epsilon = np.abs(advantages - advantages.mean()).max()
        expected = 1.0 + np.sqrt(2 * 0.01) * cost_gamma * epsilon * horizon**2
        np.testing.assert_allclose(model.logger.name_to_value["train/worst_case_cost"], expected, rtol=1e-5)


def test_learns_with_the_defaults_from_an_environment_id():
    model = CPO("MlpPolicy", "SafePointCircle-v0", n_steps=65, device="cpu", seed=0).learn(130)
    assert np.isfinite(model.ep_cost_mean).all()
    assert model.cost_limit == 5
    assert model.env.num_envs == 100
    assert model.raw_cost_estimate.n_episodes >= 100


def test_margin_shrinks_where_no_step_is_feasible_but_the_limit_is_kept():
    """Else a margin from a higher limit would forbid every step for ever."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), cost=lambda rank, t: 0.0))
    model = CPO("MlpPolicy", env, 0.5, cost_margin_lr=0.1, **KWARGS)
    model._setup_learn(0)
    model.margin.value = np.array([0.6])
    model.learn(128 * 4, reset_num_timesteps=False)
    assert model.cost_margin < 0.5


def test_no_margin_is_left_when_a_model_is_loaded_without(tmp_path, seen):
    env = vec_env(lambda rank: RiskyEnv(), 4)
    model = CPO("MlpPolicy", env, 1.0, cost_margin_lr=0.5, **{**KWARGS, **PAPER}).learn(256)
    model.margin.value = np.array([3.0])
    model.save(tmp_path / "cpo")
    loaded = CPO.load(tmp_path / "cpo", env=env, cost_margin_lr=0.0).learn(128, reset_num_timesteps=False)
    np.testing.assert_allclose(seen[-1]["violation"], loaded.ep_cost_mean - 1)


def test_worst_case_of_each_constraint_is_made_of_its_own_advantages(monkeypatch):
    rows = []
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), keys=("a", "b"), cost=lambda rank, t: 1e3 * (t % 2)), 2)
    model = CPO("MlpPolicy", env, {"a": 0.0, "b": 0.0}, **{**KWARGS, **PAPER, "cost_gae_lambda": 1.0})
    monkeypatch.setattr(log_keys, "of_worst_case", lambda limit, largest, *args: rows.append(largest) or {})
    model.learn(128)
    # Costs of b are twice those of a, and the critic begins near zero
    np.testing.assert_allclose(rows[0][1] / rows[0][0], 2.0, rtol=0.05)


def test_where_nothing_costs_cpo_is_trpo_to_the_last_bit():
    class Free(RiskyEnv):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "cost": 0.0}

    trained = []
    for algorithm, kwargs in ((TRPO, {}), (CPO, {"cost_limit": 0.0}), (CPO, {"cost_limit": 1.0, "n_noise_draws": 5})):
        env = vec_env(lambda rank: Free(), 4)
        model = algorithm("MlpPolicy", env, **{**KWARGS, **kwargs}).learn(4 * 128)
        trained.append(dict(model.policy.named_parameters()))
    trpo, *with_limits = trained
    for parameters in with_limits:
        for name in ("log_std", "action_net.weight", "value_net.weight"):
            np.testing.assert_array_equal(parameters[name].detach(), trpo[name].detach())
