"""Oracles: sums by hand, brute force, simulation, scipy's SLSQP, and the theorems of Achiam et al. 2017 (numbers as there)."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import rel_entr

from safe_envs.tabular import (
    TabularCMDP,
    TabularEnv,
    discount_as_termination,
    discounted_visits,
    evaluate,
    mean_kl_divergence,
    mean_tv_distance,
    performance_bound,
    policy_iteration,
    random_cmdp,
    solve_cmdp,
    trust_region_update,
    unroll,
)
from safe_envs.tabular.vec_env import TabularVecEnv

N_PAIRS = 1000
STAY, SWITCH = 0, 1


def two_rooms(gamma: float = 0.5, limit: float = 1.0) -> TabularCMDP:
    """Start in room 0, which pays 1 per step; each step in room 1 costs 1. Action 0 stays, action 1 changes the room."""
    transitions = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], dtype=float)
    rewards = np.array([[1.0, 1.0], [0.0, 0.0]])
    return TabularCMDP(transitions, rewards, 1 - rewards[None], np.array([1.0, 0.0]), gamma, np.array([limit]))


def random_policy(rng: np.random.Generator, cmdp: TabularCMDP) -> np.ndarray:
    """Anything from almost uniform to almost deterministic."""
    return rng.dirichlet(np.full(cmdp.n_actions, rng.choice([0.2, 1.0, 20.0])), size=cmdp.n_states) + 1e-9


def random_pair(seed: int) -> tuple[TabularCMDP, np.ndarray, np.ndarray]:
    """A random CMDP and two policies of it, near or far from each other; the second may be deterministic."""
    rng = np.random.default_rng(seed)
    cmdp = random_cmdp(rng, *rng.integers(2, 7, size=2), n_costs=rng.integers(1, 4), gamma=rng.uniform(0.05, 0.98))
    cmdp = replace(cmdp, rewards=rng.normal(size=cmdp.rewards.shape), costs=rng.exponential(size=cmdp.costs.shape))
    old, other = random_policy(rng, cmdp), random_policy(rng, cmdp)
    if rng.random() < 0.2:
        other = np.eye(cmdp.n_actions)[rng.integers(cmdp.n_actions, size=cmdp.n_states)]
    old /= old.sum(axis=1, keepdims=True)
    other /= other.sum(axis=1, keepdims=True)
    return cmdp, old, old + rng.choice([0.01, 0.3, 1.0]) * (other - old)


def signals_and_changes(cmdp: TabularCMDP, old: np.ndarray, new: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """The reward and every cost, each with the true change of its expected sum."""
    before, after = evaluate(cmdp, old), evaluate(cmdp, new)
    changes = [after.ep_rew_mean - before.ep_rew_mean, *(after.ep_cost_mean - before.ep_cost_mean)]
    return list(zip([cmdp.rewards, *cmdp.costs], changes, strict=True))


def kl_both_ways(cmdp: TabularCMDP, old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    distribution = evaluate(cmdp, old).state_distribution
    return distribution @ rel_entr(new, old).sum(axis=1), distribution @ rel_entr(old, new).sum(axis=1)


# Exact evaluation


def test_evaluation_of_two_rooms_by_hand():
    always_switch = np.array([[0.0, 1.0], [0.0, 1.0]])
    worth = evaluate(two_rooms(), always_switch)
    # Rooms 0, 1, 0, 1, ...: 1 + 1/4 + 1/16 + ... = 4/3 discounted steps in room 0, half as many in room 1.
    assert worth.ep_rew_mean == pytest.approx(4 / 3)
    assert worth.ep_cost_mean == pytest.approx([2 / 3])
    assert worth.values == pytest.approx([4 / 3, 2 / 3])
    assert worth.cost_values[0] == pytest.approx([2 / 3, 4 / 3])
    assert worth.q_values == pytest.approx(np.array([[1 + 2 / 3, 4 / 3], [1 / 3, 2 / 3]]))
    assert worth.advantages == pytest.approx(np.array([[1 / 3, 0], [-1 / 3, 0]]))
    assert worth.cost_advantages[0] == pytest.approx(np.array([[-1 / 3, 0], [1 / 3, 0]]))
    assert worth.ep_len_mean == pytest.approx(2)
    assert worth.state_distribution == pytest.approx([2 / 3, 1 / 3])


def test_divergences_of_two_rooms_by_hand():
    old = np.array([[0.5, 0.5], [0.5, 0.5]])
    new = np.array([[0.75, 0.25], [0.5, 0.5]])
    # Half the mass of room 0 changes over: d(0) = 1/2 + 1/2 d(next is 0) = 1/2 + 1/4.
    assert evaluate(two_rooms(), old).state_distribution == pytest.approx([0.75, 0.25])
    assert mean_tv_distance(two_rooms(), old, new) == pytest.approx(0.75 * 0.25)
    assert mean_kl_divergence(two_rooms(), old, new) == pytest.approx(0.75 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5)))


@pytest.mark.parametrize("seed", range(20))
def test_evaluation_agrees_with_a_sum_over_time(seed):
    cmdp, policy, _ = random_pair(seed)
    at_time_t, total, weight = cmdp.initial, np.zeros(cmdp.n_costs + 1), 1.0
    for _ in range(2000):
        steps = at_time_t[:, None] * policy
        total += weight * np.array([(steps * signal).sum() for signal in (cmdp.rewards, *cmdp.costs)])
        at_time_t, weight = np.einsum("sa,sat->t", steps, cmdp.transitions), weight * cmdp.gamma
    worth = evaluate(cmdp, policy)
    assert [worth.ep_rew_mean, *worth.ep_cost_mean] == pytest.approx(total)


@pytest.mark.parametrize("seed", range(20))
def test_advantages_average_to_zero_and_solve_the_bellman_equation(seed):
    cmdp, policy, _ = random_pair(seed)
    worth = evaluate(cmdp, policy)
    assert (policy * worth.advantages).sum(axis=-1) == pytest.approx(0, abs=1e-9)
    assert (policy * worth.cost_advantages).sum(axis=-1) == pytest.approx(0, abs=1e-9)
    assert worth.cost_q_values[0] == pytest.approx(cmdp.costs[0] + cmdp.gamma * cmdp.transitions @ worth.cost_values[0])


@pytest.mark.parametrize("seed", range(20))
def test_discount_and_random_termination_are_one_problem(seed):
    cmdp, policy, _ = random_pair(seed)
    discounted, undiscounted = evaluate(cmdp, policy), evaluate(discount_as_termination(cmdp), policy)
    for ours, theirs in zip(discounted, undiscounted, strict=True):
        assert ours == pytest.approx(theirs)
    assert undiscounted.ep_len_mean == pytest.approx(1 / (1 - cmdp.gamma))
    assert discount_as_termination(cmdp).gamma == 1


def test_unrolled_problem_counts_the_steps_of_a_fixed_horizon():
    # Switching always, three steps: rooms 0, 1, 0.
    cmdp = unroll(two_rooms(gamma=1.0), horizon=3)
    worth = evaluate(cmdp, np.tile([0.0, 1.0], (6, 1)))
    assert worth.ep_rew_mean == pytest.approx(2)
    assert worth.ep_cost_mean == pytest.approx([1])
    assert worth.ep_len_mean == pytest.approx(3)
    assert worth.state_distribution == pytest.approx(np.array([1, 0, 0, 1, 1, 0]) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": np.zeros((1, 3, 2))}, r"`costs` has shape \(1, 3, 2\), expected \(1, 2, 2\)"),
        ({"cost_limit": np.zeros(2)}, r"`cost_limit` has shape \(2,\), expected \(1,\)"),
        ({"transitions": np.ones((2, 2, 2))}, "`transitions` is no probability distribution: its sum is 2"),
        ({"initial": np.array([0.2, 0.2])}, "`initial` is no probability distribution: its sum is 0.4"),
        ({"gamma": 1.5}, r"`gamma` must lie in \[0, 1\], got 1.5"),
    ],
)
def test_inconsistent_descriptions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(two_rooms(), **change)


# The optimum


def test_optimum_of_a_single_state_by_hand():
    # Two steps on average; the paying action costs what it pays, and the limit allows it half of the time.
    ones = np.array([[1.0, 0.0]])
    cmdp = TabularCMDP(np.ones((1, 2, 1)), 3 * ones, ones[None], np.ones(1), 0.5, np.array([1.0]))
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    assert optimum.policy == pytest.approx(np.array([[0.5, 0.5]]))
    assert optimum.ep_rew_mean == pytest.approx(3)
    assert optimum.ep_cost_mean == pytest.approx([1])
    assert optimum.nu == pytest.approx([3])


def test_limit_out_of_reach_has_no_optimum():
    assert solve_cmdp(replace(two_rooms(), costs=np.ones((1, 2, 2)), cost_limit=np.array([1.9]))) is None
    assert solve_cmdp(replace(two_rooms(), costs=np.ones((1, 2, 2)), cost_limit=np.array([2.1]))) is not None


@pytest.mark.parametrize("n_costs", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_optimum_agrees_with_brute_force_over_policies(seed, n_costs):
    cmdp = random_cmdp(np.random.default_rng(seed), n_states=2, n_actions=2, n_costs=n_costs)
    cmdp = replace(cmdp, cost_limit=cmdp.cost_limit + 0.1)  # room for a grid
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    grid = np.linspace(0, 1, 81)
    policies = [np.array([[p, 1 - p], [q, 1 - q]]) for p in grid for q in grid]
    worths = [evaluate(cmdp, policy) for policy in policies]
    best = max(worth.ep_rew_mean for worth in worths if np.all(worth.ep_cost_mean <= cmdp.cost_limit + 1e-9))
    worst = min(worth.ep_rew_mean for worth in worths)
    assert optimum.ep_rew_mean - 0.02 * (optimum.ep_rew_mean - worst) < best < optimum.ep_rew_mean + 1e-7
    assert np.all(optimum.ep_cost_mean <= cmdp.cost_limit + 1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_optimum_without_limits_is_that_of_policy_iteration(seed):
    cmdp = replace(random_cmdp(np.random.default_rng(seed)), cost_limit=np.array([1e6]))
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    assert optimum.ep_rew_mean == pytest.approx(evaluate(cmdp, policy_iteration(cmdp, cmdp.rewards)).ep_rew_mean)
    assert optimum.nu == pytest.approx([0])


@pytest.mark.parametrize("seed", range(5))
def test_multiplier_is_the_price_of_the_limit(seed):
    cmdp = random_cmdp(np.random.default_rng(seed), n_costs=2)
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    assert optimum.ep_cost_mean @ optimum.nu == pytest.approx(cmdp.cost_limit @ optimum.nu)
    for i, price in enumerate(optimum.nu):
        looser = solve_cmdp(replace(cmdp, cost_limit=cmdp.cost_limit + 1e-5 * np.eye(2)[i]))
        assert looser is not None
        assert (looser.ep_rew_mean - optimum.ep_rew_mean) / 1e-5 == pytest.approx(price, abs=1e-3)


def test_fixed_horizon_needs_the_clock():
    # Limit 1.5, three steps, room 1 now pays 1 and costs 1: one visit for certain, a second one half of the time.
    cmdp = replace(two_rooms(gamma=1.0, limit=1.5), rewards=np.array([[0.0, 0.0], [1.0, 1.0]]))
    optimum = solve_cmdp(unroll(cmdp, horizon=3))
    assert optimum is not None
    assert optimum.ep_rew_mean == pytest.approx(1.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_random_problems_are_feasible_and_their_limits_bind(seed, n_costs):
    cmdp = random_cmdp(np.random.default_rng(seed), n_costs=n_costs)
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    unlimited = evaluate(cmdp, policy_iteration(cmdp, cmdp.rewards))
    if np.any(unlimited.ep_cost_mean > cmdp.cost_limit + 1e-6):
        assert optimum.ep_rew_mean < unlimited.ep_rew_mean
        assert np.any(optimum.nu > 0)
    else:
        assert n_costs > 1 or cmdp.cost_limit == pytest.approx(unlimited.ep_cost_mean)


def test_limits_of_random_problems_run_from_the_greediest_to_the_safest_policy():
    loose, middle, tight = (random_cmdp(np.random.default_rng(3), tightness=tightness) for tightness in (0.0, 0.3, 1.0))
    greediest, safest = policy_iteration(loose, loose.rewards), policy_iteration(loose, -loose.costs[0])
    assert loose.cost_limit == pytest.approx(evaluate(loose, greediest).ep_cost_mean)
    assert tight.cost_limit == pytest.approx(evaluate(tight, safest).ep_cost_mean)
    assert middle.cost_limit == pytest.approx(0.7 * loose.cost_limit + 0.3 * tight.cost_limit)


def test_random_problem_without_discount_is_refused():
    with pytest.raises(ValueError, match="`gamma` must be less than 1"):
        random_cmdp(np.random.default_rng(0), gamma=1.0)


# The exact trust-region step


@pytest.mark.parametrize("seed", range(6))
def test_trust_region_update_agrees_with_slsqp(seed):
    rng = np.random.default_rng(seed)
    cmdp = random_cmdp(rng, n_states=3, n_actions=3, n_costs=2)
    old = rng.dirichlet(np.ones(3), size=3)
    worth = evaluate(cmdp, old)
    cmdp = replace(cmdp, cost_limit=worth.ep_cost_mean + np.array([0.0, 0.01]))

    def expected(new: np.ndarray, signal: np.ndarray) -> float:
        return worth.state_distribution @ (new.reshape(3, 3) * signal).sum(axis=1)

    new = trust_region_update(cmdp, old, target_kl=0.01)
    slsqp = minimize(
        lambda x: -expected(x, worth.advantages),
        old.ravel(),
        method="SLSQP",
        bounds=[(1e-9, 1)] * 9,
        constraints=[
            {"type": "eq", "fun": lambda x: x.reshape(3, 3).sum(axis=1) - 1},
            {"type": "ineq", "fun": lambda x: 0.01 - worth.state_distribution @ rel_entr(x.reshape(3, 3), old).sum(axis=1)},
            {"type": "ineq", "fun": lambda x: -expected(x, worth.cost_advantages[0])},
            {"type": "ineq", "fun": lambda x: 0.01 - worth.ep_len_mean * expected(x, worth.cost_advantages[1])},
        ],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert slsqp.success
    assert expected(new, worth.advantages) == pytest.approx(-slsqp.fun, rel=2e-3)
    assert kl_both_ways(cmdp, old, new)[0] <= 0.01 + 1e-12
    assert np.all(worth.ep_len_mean * expected(new, worth.cost_advantages[0]) <= 1e-9)
    assert np.all(worth.ep_len_mean * expected(new, worth.cost_advantages[1]) <= 0.01 + 1e-9)


def test_trust_region_update_from_outside_the_limits_is_refused():
    with pytest.raises(ValueError, match="more than the limit"):
        trust_region_update(two_rooms(limit=0.1), np.full((2, 2), 0.5), target_kl=0.01)


@pytest.mark.parametrize("n_costs", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_repeated_exact_updates_reach_the_optimum(seed, n_costs):
    cmdp = random_cmdp(np.random.default_rng(seed), n_costs=n_costs, tightness=0.4)
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    policy = solve_cmdp(replace(cmdp, rewards=-cmdp.costs.sum(axis=0))).policy  # the safest there is, made stochastic
    policy = 0.98 * policy + 0.02 / cmdp.n_actions
    for _ in range(150):
        worth = evaluate(cmdp, policy)
        # What a step costs beyond its linear forecast is given back before the next one, as CPO does.
        feasible = replace(cmdp, cost_limit=np.maximum(cmdp.cost_limit, worth.ep_cost_mean))
        policy = trust_region_update(feasible, policy, target_kl=0.01)
    worth = evaluate(cmdp, policy)
    assert worth.ep_rew_mean > 0.97 * optimum.ep_rew_mean


# The theorems, on random policies


def test_theorem_1_on_random_pairs_and_functions():
    """J(new) - J(old) lies between D- and D+, for any function f of the state; m >= 1 costs and the reward."""
    for seed in range(N_PAIRS):
        cmdp, old, new = random_pair(seed)
        rng = np.random.default_rng(seed)
        gamma, distribution = cmdp.gamma, evaluate(cmdp, old).state_distribution
        baseline = rng.normal(scale=rng.choice([0.0, 1.0, 10.0]), size=cmdp.n_states)
        tv_distance = distribution @ np.abs(new - old).sum(axis=1) / 2
        for signal, change in signals_and_changes(cmdp, old, new):
            delta = signal + gamma * cmdp.transitions @ baseline - baseline[:, None]
            surrogate = distribution @ ((new / old - 1) * old * delta).sum(axis=1)
            epsilon = np.abs((new * delta).sum(axis=1)).max()
            penalty = 2 * gamma * epsilon / (1 - gamma) ** 2 * tv_distance
            slop = 1e-9 * (1 + abs(change))
            assert surrogate / (1 - gamma) - penalty - slop <= change <= surrogate / (1 - gamma) + penalty + slop
            # The module's form, with the length of an episode in place of 1 / (1 - gamma), is the same here.
            assert performance_bound(cmdp, signal, old, new, baseline=baseline) == pytest.approx(
                (surrogate / (1 - gamma), penalty), rel=1e-6, abs=1e-9
            )


def test_corollaries_1_and_2_on_random_pairs():
    """With f = V: the reward's lower bound and every cost's upper bound, in the new policy's expected advantages."""
    for seed in range(N_PAIRS):
        cmdp, old, new = random_pair(seed)
        worth, gamma = evaluate(cmdp, old), cmdp.gamma
        (reward, change), *costs = signals_and_changes(cmdp, old, new)
        distances = np.abs(new - old).sum(axis=1) / 2

        expected = (new * worth.advantages).sum(axis=1)
        penalised = expected - 2 * gamma * np.abs(expected).max() / (1 - gamma) * distances
        assert change >= worth.state_distribution @ penalised / (1 - gamma) - 1e-9 * (1 + abs(change))
        bound = performance_bound(cmdp, reward, old, new)
        assert bound.surrogate - bound.penalty == pytest.approx(worth.state_distribution @ penalised / (1 - gamma), rel=1e-6)

        for advantages, (cost, change) in zip(worth.cost_advantages, costs, strict=True):
            expected = (new * advantages).sum(axis=1)
            penalised = expected + 2 * gamma * np.abs(expected).max() / (1 - gamma) * distances
            assert change <= worth.state_distribution @ penalised / (1 - gamma) + 1e-9 * (1 + abs(change))
            bound = performance_bound(cmdp, cost, old, new)
            assert bound.surrogate + bound.penalty == pytest.approx(
                worth.state_distribution @ penalised / (1 - gamma), rel=1e-6, abs=1e-9
            )


def test_corollary_3_on_random_pairs():
    """The same with sqrt(KL / 2) for the distance. Pinsker does not care for the order of the policies, so CPO's KL serves."""
    for seed in range(N_PAIRS):
        cmdp, old, new = random_pair(seed)
        worth, gamma = evaluate(cmdp, old), cmdp.gamma
        (_, change), *costs = signals_and_changes(cmdp, old, new)
        kl_new_old, kl_old_new = kl_both_ways(cmdp, old, new)
        assert mean_kl_divergence(cmdp, old, new) == pytest.approx(kl_new_old)
        for kl_div in (kl_new_old, kl_old_new):
            expected = (new * worth.advantages).sum(axis=1)
            penalty = gamma * np.abs(expected).max() / (1 - gamma) * np.sqrt(2 * kl_div)
            assert change >= (worth.state_distribution @ expected - penalty) / (1 - gamma) - 1e-9 * (1 + abs(change))
            for advantages, (cost, cost_change) in zip(worth.cost_advantages, costs, strict=True):
                expected = (new * advantages).sum(axis=1)
                penalty = gamma * np.abs(expected).max() / (1 - gamma) * np.sqrt(2 * kl_div)
                worst = (worth.state_distribution @ expected + penalty) / (1 - gamma)
                assert cost_change <= worst + 1e-9 * (1 + abs(cost_change))
                if np.isfinite(kl_div):
                    bound = performance_bound(cmdp, cost, old, new, divergence=np.sqrt(kl_div / 2))
                    assert bound.surrogate + bound.penalty == pytest.approx(worst, rel=1e-6, abs=1e-9)


@pytest.fixture(scope="module")
def updates() -> list[tuple[TabularCMDP, np.ndarray, np.ndarray, float]]:
    """Random policies that respect their limits, some exactly, and the exact trust-region step from each."""
    pairs = []
    for seed in range(N_PAIRS):
        cmdp, old, _ = random_pair(seed)
        rng = np.random.default_rng(seed)
        slack = rng.choice([0.0, 0.01, 1.0], size=cmdp.n_costs)
        cmdp = replace(cmdp, cost_limit=evaluate(cmdp, old).ep_cost_mean + slack)
        target_kl = rng.choice([0.001, 0.01, 0.1])
        pairs.append((cmdp, old, trust_region_update(cmdp, old, target_kl), target_kl))
    return pairs


def test_proposition_1_on_exact_updates(updates):
    """A step that keeps KL <= delta and does not lower the surrogate loses at most so much return."""
    n_active = 0
    for cmdp, old, new, target_kl in updates:
        gamma, before, after = cmdp.gamma, evaluate(cmdp, old), evaluate(cmdp, new)
        expected = (new * before.advantages).sum(axis=1)
        assert mean_kl_divergence(cmdp, old, new) <= target_kl + 1e-9
        assert before.state_distribution @ expected >= -2e-6
        worst = np.sqrt(2 * target_kl) * gamma * np.abs(expected).max() / (1 - gamma) ** 2
        assert after.ep_rew_mean - before.ep_rew_mean >= -worst - 2e-6
        n_active += mean_kl_divergence(cmdp, old, new) > 0.9 * target_kl
    assert n_active > N_PAIRS / 2  # the steps are real ones


def test_proposition_2_on_exact_updates(updates):
    """... and exceeds each limit by at most so much."""
    n_exceeded = 0
    for cmdp, old, new, target_kl in updates:
        gamma, before, after = cmdp.gamma, evaluate(cmdp, old), evaluate(cmdp, new)
        epsilon = np.abs((new * before.cost_advantages).sum(axis=2)).max(axis=1)
        worst = np.sqrt(2 * target_kl) * gamma * epsilon / (1 - gamma) ** 2
        assert np.all(after.ep_cost_mean <= cmdp.cost_limit + worst + 2e-6)
        n_exceeded += np.any(after.ep_cost_mean > cmdp.cost_limit + 1e-4)
    assert n_exceeded > N_PAIRS / 10  # the allowance is needed


def test_proposition_2_from_any_policy():
    """The old policy may break its limits as long as the trust region reaches the linearised ones: take the tightest."""
    for seed in range(N_PAIRS):
        cmdp, old, new = random_pair(seed)
        gamma, before, after = cmdp.gamma, evaluate(cmdp, old), evaluate(cmdp, new)
        target_kl = min(kl_both_ways(cmdp, old, new))
        expected = (new * before.cost_advantages).sum(axis=2)
        cost_limit = before.ep_cost_mean + expected @ before.state_distribution / (1 - gamma)
        worst = np.sqrt(2 * target_kl) * gamma * np.abs(expected).max(axis=1) / (1 - gamma) ** 2
        assert np.all(after.ep_cost_mean <= cost_limit + worst + 1e-9 * (1 + after.ep_cost_mean))


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_bound_without_discount_on_random_pairs(horizon):
    """Episodes of H steps: 2 eps (H - 1) H E[TV] in place of 2 gamma eps / (1 - gamma)^2 E[TV]."""
    for seed in range(200):
        cmdp = unroll(replace(random_pair(seed)[0], gamma=1.0), horizon)
        rng = np.random.default_rng(seed)
        old, new = (rng.dirichlet(np.ones(cmdp.n_actions), size=cmdp.n_states) for _ in range(2))
        for signal, change in signals_and_changes(cmdp, old, new):
            bound = performance_bound(cmdp, signal, old, new)
            assert abs(change - bound.surrogate) <= bound.penalty + 1e-9
            advantages = signal + cmdp.transitions @ (values := solve_values(cmdp, signal, old)) - values[:, None]
            epsilon = np.abs((new * advantages).sum(axis=1)).max()
            assert bound.penalty == pytest.approx(2 * epsilon * (horizon - 1) * horizon * mean_tv_distance(cmdp, old, new))


def test_bound_without_discount_counts_the_steps_of_the_new_policy():
    """The old policy ends most episodes at once, the new one prolongs them: what counts is how long the new one's last."""
    n_beyond_old_length = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        cmdp = replace(random_cmdp(rng, n_states=3, n_actions=2), gamma=1.0)
        survival = np.column_stack([rng.uniform(0, 0.1, size=3), rng.uniform(0.9, 0.99, size=3)])
        cmdp = replace(cmdp, transitions=survival[..., None] * cmdp.transitions)
        old, new = (np.column_stack([1 - p, p]) for p in (rng.uniform(0, 0.1, size=3), rng.uniform(size=3)))
        bound = performance_bound(cmdp, cmdp.costs[0], old, new)
        change = (evaluate(cmdp, new).ep_cost_mean - evaluate(cmdp, old).ep_cost_mean)[0]
        assert abs(change - bound.surrogate) <= bound.penalty
        ratio = evaluate(cmdp, old).ep_len_mean / evaluate(cmdp, new).ep_len_mean
        n_beyond_old_length += abs(change - bound.surrogate) > ratio * bound.penalty
    assert n_beyond_old_length > 0


def solve_values(cmdp: TabularCMDP, signal: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """Backward sweeps instead of a linear system."""
    values = np.zeros(cmdp.n_states)
    for _ in range(cmdp.n_states):
        values = (policy * (signal + cmdp.transitions @ values)).sum(axis=1)
    return values


# The constants, on a problem where they are attained


def fork(gamma: float, shift: float, wiggle: float, sign: float = 1.0) -> tuple[TabularCMDP, np.ndarray, np.ndarray]:
    """
    One choice, then for ever in the good or in the bad room; the old policy is uniform everywhere.

    The new policy moves ``shift`` of the first choice to the good room. In the rooms it moves ``wiggle``, so little that no
    divergence notices, but actions there pay ``+- 1 / wiggle``: its expected advantage is +2 in the good room and -2 in the
    bad one. Over the visits of the old policy that cancels; what the new one gains lies in visits that the old one lacks.
    With sign = -1 the rooms change roles. The cost is the reward.
    """
    transitions = np.zeros((3, 2, 3))
    transitions[0, 0, 1] = transitions[0, 1, 2] = 1.0
    transitions[1, :, 1] = transitions[2, :, 2] = 1.0
    signal = np.zeros((3, 2))
    signal[1] = signal[2] = sign / wiggle * np.array([1.0, -1.0])
    old = np.full((3, 2), 0.5)
    new = np.array([[0.5 + shift, 0.5 - shift], [0.5 + wiggle, 0.5 - wiggle], [0.5 - wiggle, 0.5 + wiggle]])
    return TabularCMDP(transitions, signal, signal[None], np.array([1.0, 0.0, 0.0]), gamma, np.zeros(1)), old, new


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_theorem_1_is_attained(gamma, sign):
    """With f = 0, rooms that pay +-1 and nothing else to tell the policies apart, the change *is* the penalty."""
    cmdp, old, new = fork(gamma, shift=0.3, wiggle=0.1)
    new[1:] = old[1:]
    signal = sign * np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    bound = performance_bound(cmdp, signal, old, new, baseline=np.zeros(3))
    before, after = (evaluate(replace(cmdp, rewards=signal), policy) for policy in (old, new))
    change = after.ep_rew_mean - before.ep_rew_mean
    # By hand: 2 * shift more in the good room from the second step on, where it makes a difference of 1 per step ... twice.
    assert change == pytest.approx(sign * 2 * 0.3 * gamma / (1 - gamma))
    assert bound.surrogate == pytest.approx(0, abs=1e-12)
    assert abs(change) == pytest.approx(bound.penalty)
    assert bound.surrogate + bound.penalty / 2 < abs(change)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 0.99])
def test_corollaries_1_and_2_are_attained_in_the_limit(gamma):
    for sign in (-1.0, 1.0):
        cmdp, old, new = fork(gamma, shift=0.3, wiggle=1e-6, sign=sign)
        [(reward, change), (cost, cost_change)] = signals_and_changes(cmdp, old, new)
        bound = performance_bound(cmdp, reward, old, new)
        assert bound.surrogate == pytest.approx(0, abs=1e-8)
        assert bound.penalty == pytest.approx(2 * gamma * 2 / (1 - gamma) ** 2 * (1 - gamma) * 0.3, rel=1e-3)
        if sign < 0:  # Corollary 1: the return falls as far as the bound allows, and further than half of it
            assert bound.surrogate - bound.penalty <= change < bound.surrogate - 0.999 * bound.penalty
        else:  # Corollary 2: the cost rises as far as the bound allows
            bound = performance_bound(cmdp, cost, old, new)
            assert bound.surrogate + 0.999 * bound.penalty < cost_change <= bound.surrogate + bound.penalty


@pytest.mark.parametrize("gamma", [0.01, 0.1, 0.5, 0.7])
def test_corollary_3_loses_only_what_jensen_takes(gamma):
    """All of the difference lies in the first step, a share 1 - gamma of all: sqrt(E[KL]) overstates E[TV] by that much."""
    cmdp, old, new = fork(gamma, shift=0.01, wiggle=1e-6)
    [_, (cost, change)] = signals_and_changes(cmdp, old, new)
    for kl_div in kl_both_ways(cmdp, old, new):
        bound = performance_bound(cmdp, cost, old, new, divergence=np.sqrt(kl_div / 2))
        assert change - bound.surrogate == pytest.approx(np.sqrt(1 - gamma) * bound.penalty, rel=1e-3)
        assert change > bound.surrogate + bound.penalty / 2


@pytest.mark.parametrize("gamma", [0.01, 0.1, 0.5, 0.7])
def test_proposition_1_is_nearly_attained(gamma):
    """A step on which a cost stands in the way of all gain: the surrogate is 0 at the best, and the return falls."""
    cmdp, old, new = fork(gamma, shift=0.01, wiggle=1e-6, sign=-1.0)
    # The cost is the reward and may not rise: every point of the region with surrogate 0 is a solution, `new` among them.
    before, after = evaluate(cmdp, old), evaluate(cmdp, new)
    assert before.ep_cost_mean == pytest.approx(cmdp.cost_limit, abs=1e-9)
    expected = (new * before.advantages).sum(axis=1)
    assert before.state_distribution @ expected == pytest.approx(0, abs=1e-9)
    target_kl = mean_kl_divergence(cmdp, old, new)
    worst = np.sqrt(2 * target_kl) * gamma * np.abs(expected).max() / (1 - gamma) ** 2
    change = after.ep_rew_mean - before.ep_rew_mean
    assert -worst <= change < -0.999 * np.sqrt(1 - gamma) * worst
    assert change < -worst / 2


@pytest.mark.parametrize("gamma", [0.01, 0.1, 0.5, 0.7])
def test_proposition_2_is_nearly_attained_by_the_exact_step(gamma):
    """The solver's own step from a policy exactly at its limit breaks the limit by more than half of the worst case."""
    cmdp, old, new = fork(gamma, shift=0.01, wiggle=1e-3)
    # The step that maximises sum_s d(s) sum_a new(a|s) log(target(a|s) / old(a|s)) is the target, with KL as large as its own.
    wish = np.log(new / old)
    cmdp = replace(cmdp, rewards=wish - (old * wish).sum(axis=1, keepdims=True))
    target_kl = mean_kl_divergence(cmdp, old, new)
    step = trust_region_update(replace(cmdp, cost_limit=cmdp.cost_limit + 1e-9), old, target_kl)
    assert step == pytest.approx(new, abs=2e-4)
    before, after = evaluate(cmdp, old), evaluate(cmdp, step)
    epsilon = np.abs((step * before.cost_advantages[0]).sum(axis=1)).max()
    worst = np.sqrt(2 * target_kl) * gamma * epsilon / (1 - gamma) ** 2
    assert worst / 2 < after.ep_cost_mean[0] - cmdp.cost_limit[0] <= worst
    assert after.ep_cost_mean[0] - cmdp.cost_limit[0] > 0.9 * np.sqrt(1 - gamma) * worst


# The environments


@pytest.mark.parametrize("cmdp", [random_cmdp(np.random.default_rng(0), n_costs=2), unroll(two_rooms(), 4)])
def test_environment_passes_gymnasiums_checker(cmdp):
    check_env(TabularEnv(cmdp), skip_render_check=True)


def test_environments_carry_the_limits_of_the_problem():
    one, two = (random_cmdp(np.random.default_rng(0), n_costs=n_costs) for n_costs in (1, 2))
    first, second = two.cost_limit
    for cmdp, names, expected in (
        (one, None, one.cost_limit[0]),
        (two, None, [first, second]),
        (two, ("cost_a", "cost_b"), {"cost_a": first, "cost_b": second}),
    ):
        assert TabularEnv(cmdp, names).get_wrapper_attr("cost_limit") == expected
        assert TabularVecEnv(cmdp, 3, cost_names=names).get_attr("cost_limit") == [expected] * 3


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_episode_sums_agree_with_the_evaluation(gamma):
    cmdp = random_cmdp(np.random.default_rng(7), n_costs=2, gamma=gamma)
    policy = np.random.default_rng(8).dirichlet(np.ones(cmdp.n_actions), size=cmdp.n_states)
    env, rng, sums = TabularEnv(cmdp), np.random.default_rng(9), []
    state, _ = env.reset(seed=10)
    for _ in range(1500):
        total, is_over = np.zeros(4), False
        while not is_over:
            state, reward, is_over, truncated, info = env.step(rng.choice(cmdp.n_actions, p=policy[state]))
            assert not truncated
            total += [reward, *info["cost"], 1]
            assert total[3] < 1000  # 0.9**1000 is never
        sums.append(total)
        state, _ = env.reset()
    worth = evaluate(cmdp, policy)
    expected = np.array([worth.ep_rew_mean, *worth.ep_cost_mean, worth.ep_len_mean])
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert np.all(np.abs(np.mean(sums, axis=0) - expected) < 4 * error)
    assert np.all(error < 0.05 * expected)


def test_vectorised_episode_sums_agree_with_the_evaluation():
    cmdp = random_cmdp(np.random.default_rng(7), n_costs=2, gamma=0.9)
    policy = np.random.default_rng(8).dirichlet(np.ones(cmdp.n_actions), size=cmdp.n_states)
    env, rng = TabularVecEnv(cmdp, n_envs=200, seed=3), np.random.default_rng(9)
    states, running, sums = env.reset(), np.zeros((200, 4)), []
    for _ in range(1000):
        actions = (rng.random((200, 1)) >= np.cumsum(policy[states], axis=1)).sum(axis=1)
        states, rewards, dones, infos = env.step(np.minimum(actions, cmdp.n_actions - 1))
        running += np.column_stack([rewards, [info["cost"] for info in infos], np.ones(200)])
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == pytest.approx(running[i, 0], rel=1e-5)
            assert infos[i]["episode"]["l"] == running[i, 3]
            assert infos[i]["terminal_observation"] in env.observation_space
            assert not infos[i]["TimeLimit.truncated"]
            sums.append(running[i].copy())
            running[i] = 0
        assert all("episode" not in infos[i] for i in np.flatnonzero(~dones))
    worth = evaluate(cmdp, policy)
    expected = np.array([worth.ep_rew_mean, *worth.ep_cost_mean, worth.ep_len_mean])
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert np.all(np.abs(np.mean(sums, axis=0) - expected) < 4 * error)


def test_fixed_horizon_episodes_last_exactly_so_long():
    env = TabularVecEnv(unroll(two_rooms(gamma=1.0), horizon=3), n_envs=2, seed=0)
    assert env.reset().tolist() == [0, 0]
    observations, rewards, dones, infos = zip(*[env.step(np.array([SWITCH, STAY])) for _ in range(3)], strict=True)
    assert np.array(observations).tolist() == [[3, 2], [4, 4], [0, 0]]  # 2 * time + room, then the next episode
    assert np.array(rewards).tolist() == [[1, 1], [0, 1], [1, 1]]
    assert np.array(dones).tolist() == [[False, False], [False, False], [True, True]]
    assert [[info["cost"] for info in step] for step in infos] == [[0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("n_costs", "names", "kinds"),
    [(1, None, {"cost": float}), (2, None, {"cost": np.ndarray}), (2, ("noise", "wear"), {"noise": float, "wear": float})],
)
def test_costs_are_reported_in_the_three_forms(n_costs, names, kinds):
    cmdp = random_cmdp(np.random.default_rng(0), n_costs=n_costs)
    env = TabularEnv(cmdp, names)
    state, _ = env.reset(seed=0)
    *_, info = env.step(np.int64(1))
    assert {key: type(value) for key, value in info.items()} == kinds
    assert np.hstack(list(info.values())) == pytest.approx(cmdp.costs[:, state, 1])


def test_vectorised_environment_trains_and_repeats():
    from stable_baselines3 import PPO

    cmdp = random_cmdp(np.random.default_rng(0))
    parameters = []
    for _ in range(2):
        model = PPO("MlpPolicy", TabularVecEnv(cmdp, n_envs=4), n_steps=16, batch_size=64, n_epochs=1, seed=5, device="cpu")
        model.learn(64)
        parameters.append(model.policy.action_net.weight.detach().numpy())
    assert np.array_equal(*parameters)


@pytest.mark.slow
@pytest.mark.parametrize("n_costs", [1, 2])
def test_cpo_reaches_the_optimum(n_costs):
    """A table of logits, 60 updates: 97 % of the optimal return, costs within 3 % of the limits (last 15 policies)."""
    import torch as th

    from sb3_cpo import CPO

    cmdp = random_cmdp(np.random.default_rng(1), n_costs=n_costs)
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    n_envs, n_steps, worths = 256, 80, []
    model = CPO(
        "MlpPolicy",
        TabularVecEnv(cmdp, n_envs, seed=0),
        cost_limit=cmdp.cost_limit.tolist() if n_costs > 1 else cmdp.cost_limit[0],
        n_steps=n_steps,
        gamma=1.0,
        target_kl=0.02,
        cg_damping=1e-3,
        n_critic_updates=5,
        batch_size=2048,
        learning_rate=0.02,
        policy_kwargs={"net_arch": []},
        seed=0,
        device="cpu",
    )
    for update in range(60):
        model.learn(n_envs * n_steps, reset_num_timesteps=update == 0)
        with th.no_grad():
            policy = model.policy.get_distribution(th.arange(cmdp.n_states)).distribution.probs.double().numpy()
        worths.append(evaluate(cmdp, policy / policy.sum(axis=1, keepdims=True)))
    assert np.mean([worth.ep_rew_mean for worth in worths[-15:]]) > 0.97 * optimum.ep_rew_mean
    assert np.all(np.mean([worth.ep_cost_mean for worth in worths[-15:]], axis=0) < 1.03 * cmdp.cost_limit)


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.9])
def test_gradient_of_the_cost_surrogate_is_that_of_the_discounted_cost(gamma, monkeypatch):
    """
    J discounts costs by ``cost_gamma``, from the beginning of each episode; so does the surrogate. Against the exact gradient
    of episodes of 50 steps; without the weight gamma^t it is 1.3 (0.99) and 5 (0.9) times too long.
    """
    import torch as th

    from sb3_cpo import CPO, trust_region_algorithm

    horizon, gradients = 50, []
    # Episodes of 50 steps; whether J discounts them is the algorithm's affair, not the environment's
    played = replace(unroll(two_rooms(), horizon), gamma=1.0)
    cmdp = replace(played, gamma=gamma)
    step_of = trust_region_algorithm.trust_region_step

    def spy(params, evaluate, *args, **kwargs):
        grads = th.autograd.grad(evaluate().costs.sum(), params, allow_unused=True)
        gradients.extend(grad for grad in grads if grad is not None and grad.ndim == 2)
        return step_of(params, evaluate, *args, **kwargs)

    monkeypatch.setattr(trust_region_algorithm, "trust_region_step", spy)
    n_actions = cmdp.rewards.shape[1]
    model = CPO(
        "MlpPolicy",
        TabularVecEnv(played, 500, seed=0),
        cost_limit=1.0,
        cost_gamma=gamma,
        cost_gae_lambda=1.0,
        n_noise_draws=0,
        n_steps=4 * horizon,
        batch_size=10_000,
        n_critic_updates=1,
        policy_kwargs={"net_arch": [], "ortho_init": False},
        seed=0,
        device="cpu",
    )
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.zero_()
    model.learn(500 * 4 * horizon)
    policy = np.full(cmdp.rewards.shape, 1 / n_actions)
    visits, evaluation = discounted_visits(cmdp, policy), evaluate(cmdp, policy)
    exact = (visits[:, None] * policy * evaluation.cost_advantages[0]).T
    found = gradients[0].numpy()
    np.testing.assert_allclose(model.ep_cost_mean, evaluation.ep_cost_mean, rtol=0.05)
    projection = (found * exact).sum() / (exact**2).sum()
    assert projection == pytest.approx(1.0, abs=0.1)
    # Where it is not the exact one, it is noise
    assert ((found - exact) ** 2).sum() < 0.5 * (exact**2).sum()
