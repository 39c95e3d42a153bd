"""The best policies of a constrained problem: over all policies, and within a trust region."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from safe_envs.tabular.bounds import kl_per_state
from safe_envs.tabular.cmdp import TabularCMDP, evaluate, q_values


def policy_iteration(cmdp: TabularCMDP, rewards: np.ndarray) -> np.ndarray:
    """The deterministic policy that maximises ``rewards`` (n_states, n_actions), whatever the costs: Howard's iteration."""
    actions = rewards.argmax(axis=1)
    while True:
        policy = np.eye(cmdp.n_actions)[actions]
        q = q_values(cmdp, rewards, policy)
        # A tie must not send the iteration round in circles.
        better = q.max(axis=1) > (policy * q).sum(axis=1) + 1e-10
        if not better.any():
            return policy
        actions = np.where(better, q.argmax(axis=1), actions)


class Optimum(NamedTuple):
    """The best policy that respects every limit, and the return that a unit more of each limit would add."""

    policy: np.ndarray  # (n_states, n_actions)
    ep_rew_mean: float
    ep_cost_mean: np.ndarray  # (n_costs,)
    nu: np.ndarray  # multipliers of the constraints, (n_costs,)


def solve_cmdp(cmdp: TabularCMDP) -> Optimum | None:
    """
    Solve ``max x.r subject to x.c_i <= cost_limit_i, x the visits of a policy`` with a linear program (scipy's HiGHS).

    The visits x (n_states, n_actions) of the policies are the nonnegative solutions of the flow equations: what is in a state
    is what started there and what arrived. The optimum over *all* policies is attained by a stationary one, ``x / sum_a x``
    (E. Altman, Constrained Markov Decision Processes, 1999, chapter 3).

    :return: None if no policy respects the limits
    """
    try:
        from scipy.optimize import linprog
    except ImportError as error:
        raise ImportError("The optimum of a tabular CMDP needs scipy: pip install scipy") from error
    n_states, n_actions = cmdp.rewards.shape
    if cmdp.gamma == 1 and (cmdp.transitions.sum(axis=-1) >= 1 - 1e-12).all():
        raise ValueError("with gamma = 1, episodes need an end: no row of transitions sums to less than 1")
    arrivals = cmdp.gamma * cmdp.transitions.reshape(-1, n_states).T
    flow = np.repeat(np.eye(n_states), n_actions, axis=1) - arrivals
    solution = linprog(
        -cmdp.rewards.ravel(),
        A_ub=cmdp.costs.reshape(cmdp.n_costs, n_states * n_actions),
        b_ub=cmdp.cost_limit,
        A_eq=flow,
        b_eq=cmdp.initial,
        method="highs",
    )
    if solution.status == 2:
        return None
    if solution.status != 0 or solution.x is None:
        raise RuntimeError(f"HiGHS did not solve the linear program: {solution.message}")
    visits = np.maximum(solution.x, 0).reshape(n_states, n_actions)
    totals = visits.sum(axis=1, keepdims=True)
    is_visited = totals > 1e-12
    policy = np.where(is_visited, visits / np.where(is_visited, totals, 1), 1 / n_actions)
    worth = evaluate(cmdp, policy)
    return Optimum(policy, worth.ep_rew_mean, worth.ep_cost_mean, -solution.ineqlin.marginals)


def trust_region_update(cmdp: TabularCMDP, old: np.ndarray, target_kl: float) -> np.ndarray:
    """
    Solve ``max E[A] subject to J_i + L E[A_i] <= cost_limit_i, KL(new || old) <= target_kl`` over all policies (problem 10).

    Nothing is sampled, linearised or parametrised: this is the step of which a CPO update is the approximation. It has the
    form ``new(a|s) ~ old(a|s) exp((A - nu.A_i) / lam)``; lam and nu minimise the convex dual. What the minimiser leaves of
    infeasibility is removed by moving back towards ``old``, except for one part in a million of a cost's standard deviation.

    :param old: a policy that respects the limits, with positive probabilities; ValueError otherwise
    :param target_kl: positive
    """
    if not target_kl > 0:
        raise ValueError(f"target_kl must be positive, not {target_kl}")
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("The exact trust-region update needs scipy: pip install scipy") from error
    worth = evaluate(cmdp, old)
    slack = (cmdp.cost_limit - worth.ep_cost_mean) / worth.ep_len_mean
    if slack.min(initial=0.0) < -1e-12:
        raise ValueError(f"The old policy costs {worth.ep_cost_mean}, more than the limit {cmdp.cost_limit}")
    slack = np.maximum(slack, 0.0)
    signals = np.concatenate([worth.advantages[None], worth.cost_advantages])
    scales = np.maximum(np.sqrt(np.einsum("s,sa,isa->i", worth.state_distribution, old, signals**2)), 1e-12)
    advantages, cost_advantages = signals[0] / scales[0], signals[1:] / scales[1:, None, None]
    slack = slack / scales[1:]

    def tilted(multipliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exponent = (advantages - np.tensordot(multipliers[1:], cost_advantages, axes=1)) / multipliers[0]
        exponent = np.where(old > 0, exponent, -np.inf)
        largest = exponent.max(axis=1, keepdims=True)
        weights = old * np.exp(exponent - largest)
        totals = weights.sum(axis=1, keepdims=True)
        return weights / totals, (np.log(totals) + largest)[:, 0]

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        new, log_totals = tilted(multipliers)
        kl_div = worth.state_distribution @ kl_per_state(new, old)
        expected = np.einsum("s,sa,isa->i", worth.state_distribution, new, cost_advantages)
        value = multipliers[0] * (target_kl + worth.state_distribution @ log_totals) + multipliers[1:] @ slack
        return float(value), np.append(target_kl - kl_div, slack - expected)

    start = np.append(1 / np.sqrt(2 * target_kl), np.zeros(cmdp.n_costs))
    bounds = [(1e-6, None)] + [(0, None)] * cmdp.n_costs
    solution = minimize(dual, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    new = tilted(solution.x)[0]
    used = np.einsum("s,sa,isa->i", worth.state_distribution, new, cost_advantages)
    kl_div = worth.state_distribution @ kl_per_state(new, old)
    # KL is convex and the surrogate costs are linear, so the fraction of the step that is feasible can be read off.
    fractions = [target_kl / kl_div if kl_div > target_kl else 1.0]
    fractions += [room / use if use > room + 1e-6 else 1.0 for room, use in zip(slack, used, strict=True)]
    return old + min(fractions) * (new - old)


def random_cmdp(
    rng: np.random.Generator,
    n_states: int = 5,
    n_actions: int = 3,
    n_costs: int = 1,
    gamma: float = 0.9,
    tightness: float = 0.5,
) -> TabularCMDP:
    """
    Draw a CMDP with rewards and costs in [0, 1] whose limits are feasible and, for n_costs = 1, always binding.

    The limits are the costs of a policy that lies, in the space of visits, between the one of the greatest return
    (tightness 0) and the one of the least total cost (tightness 1).
    """
    if gamma >= 1:
        raise ValueError(f"`gamma` must be less than 1 in a problem without an end, got {gamma}")
    transitions = rng.dirichlet(np.full(n_states, 0.5), size=(n_states, n_actions))
    rewards = rng.uniform(size=(n_states, n_actions))
    costs = rng.uniform(size=(n_costs, n_states, n_actions))
    initial = rng.dirichlet(np.ones(n_states))
    cmdp = TabularCMDP(transitions, rewards, costs, initial, gamma, np.full(n_costs, np.inf))
    greediest, safest = (
        evaluate(cmdp, policy_iteration(cmdp, signal)).ep_cost_mean for signal in (rewards, -costs.sum(axis=0))
    )
    return replace(cmdp, cost_limit=(1 - tightness) * greediest + tightness * safest)
