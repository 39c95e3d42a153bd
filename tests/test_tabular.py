"""Oracles: sums by hand, brute force, and scipy's SLSQP."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import rel_entr

from safe_envs.tabular import (
    TabularCMDP,
    discount_as_termination,
    evaluate,
    mean_kl_divergence,
    mean_tv_distance,
    policy_iteration,
    random_cmdp,
    solve_cmdp,
    trust_region_update,
    unroll,
)

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


def test_what_is_no_policy_no_problem_or_has_no_end_is_refused():
    cmdp = random_cmdp(np.random.default_rng(0))
    for policy in (np.ones((5, 3)), np.full((5, 2), 0.5), np.full((5, 3), np.nan), np.tile([2.0, -1.0, 0.0], (5, 1))):
        with pytest.raises(ValueError, match="which sum to 1, for each state"):
            evaluate(cmdp, policy)
    with pytest.raises(ValueError, match="`rewards` has entries that are not finite"):
        replace(cmdp, rewards=np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="target_kl must be positive"):
        trust_region_update(cmdp, np.full((5, 3), 1 / 3), -1.0)
    endless = replace(cmdp, gamma=1.0)
    with pytest.raises(ValueError, match="episodes need an end"):
        solve_cmdp(endless)
    with pytest.raises(ValueError, match="one goes on for ever"):
        evaluate(endless, np.full((5, 3), 1 / 3))
    # From state 3 only, which one reaches from everywhere
    transitions = cmdp.transitions.copy()
    transitions[3] *= 0.5
    assert evaluate(replace(endless, transitions=transitions), np.full((5, 3), 1 / 3)).ep_len_mean > 2
