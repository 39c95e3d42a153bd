"""The theorems of Achiam et al. 2017 (numbers as there), on random policies and where they are attained."""

from dataclasses import replace

import numpy as np
import pytest
from test_tabular import kl_both_ways, random_pair, signals_and_changes

from safe_envs.tabular import (
    TabularCMDP,
    evaluate,
    mean_kl_divergence,
    mean_tv_distance,
    performance_bound,
    random_cmdp,
    trust_region_update,
    unroll,
)

N_PAIRS = 1000


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
