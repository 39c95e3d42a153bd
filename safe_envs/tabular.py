"""
Constrained decision problems that are small enough to be solved exactly: the yardstick for the algorithms and for the theory.

A policy is an array (n_states, n_actions) of probabilities. A "signal" is the reward or one of the costs, an array
(n_states, n_actions). Everything here is exact linear algebra; only ``TabularEnv`` draws random numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces


@dataclass(frozen=True)
class TabularCMDP:
    """
    Maximise ``E sum_t gamma^t r_t`` subject to ``E sum_t gamma^t c_i,t <= cost_limit_i``.

    A row of ``transitions`` may sum to less than one: what is missing is the probability that the episode ends there.
    So one description covers the discounted problem (gamma < 1), the undiscounted one whose episodes end at random
    (see :func:`discount_as_termination`) and the one of a fixed horizon (see :func:`unroll`), the last two with gamma = 1.

    :param transitions: P(s' | s, a), (n_states, n_actions, n_states)
    :param rewards: (n_states, n_actions)
    :param costs: (n_costs, n_states, n_actions)
    :param initial: probability of starting in each state, (n_states,)
    :param gamma: one discount factor for the reward and for every cost
    :param cost_limit: (n_costs,)
    """

    transitions: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    initial: np.ndarray
    gamma: float
    cost_limit: np.ndarray

    def __post_init__(self) -> None:
        n_states, n_actions = self.rewards.shape
        expected = {
            "transitions": (n_states, n_actions, n_states),
            "costs": (len(self.costs), n_states, n_actions),
            "initial": (n_states,),
            "cost_limit": (len(self.costs),),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"`{name}` has shape {getattr(self, name).shape}, expected {shape}")
        continues = self.transitions.sum(axis=-1)
        if self.transitions.min() < 0 or continues.max() > 1 + 1e-9:
            raise ValueError(f"A row of `transitions` is no probability distribution: its sum is {continues.max():g}")
        if self.initial.min() < 0 or not np.isclose(self.initial.sum(), 1):
            raise ValueError(f"`initial` is no probability distribution: its sum is {self.initial.sum():g}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"`gamma` must lie in [0, 1], got {self.gamma}")

    @property
    def n_states(self) -> int:
        return self.rewards.shape[0]

    @property
    def n_actions(self) -> int:
        return self.rewards.shape[1]

    @property
    def n_costs(self) -> int:
        return len(self.costs)


def discount_as_termination(cmdp: TabularCMDP) -> TabularCMDP:
    """
    The same problem with episodes that end with probability ``1 - gamma`` after every step, and no discount.

    The plain sum of an episode has the expectation that the discounted sum had, for every policy and every signal.
    """
    return replace(cmdp, transitions=cmdp.gamma * cmdp.transitions, gamma=1.0)


def unroll(cmdp: TabularCMDP, horizon: int) -> TabularCMDP:
    """
    The first ``horizon`` steps of the problem, with the time in the state: state s at time t is number ``t * n_states + s``.

    A stationary policy of the result is a policy of the original that may look at the clock, which the best one does.
    """
    n_states, n_actions = cmdp.rewards.shape
    transitions = np.zeros((horizon, n_states, n_actions, horizon, n_states))
    for t in range(horizon - 1):
        transitions[t, :, :, t + 1] = cmdp.transitions
    size = horizon * n_states
    return replace(
        cmdp,
        transitions=transitions.reshape(size, n_actions, size),
        rewards=np.tile(cmdp.rewards, (horizon, 1)),
        costs=np.tile(cmdp.costs, (1, horizon, 1)),
        initial=np.concatenate([cmdp.initial, np.zeros(size - n_states)]),
    )


class PolicyEvaluation(NamedTuple):
    """What a policy is worth. The leading axis of the cost arrays is the constraint."""

    ep_rew_mean: float
    ep_cost_mean: np.ndarray  # (n_costs,)
    values: np.ndarray  # (n_states,)
    q_values: np.ndarray  # (n_states, n_actions)
    advantages: np.ndarray
    cost_values: np.ndarray  # (n_costs, n_states)
    cost_q_values: np.ndarray  # (n_costs, n_states, n_actions)
    cost_advantages: np.ndarray
    ep_len_mean: float  # expected discounted number of steps; 1 / (1 - gamma) where episodes never end
    state_distribution: np.ndarray  # share of the (discounted) steps spent in each state, the paper's d^pi


def discounted_visits(cmdp: TabularCMDP, policy: np.ndarray) -> np.ndarray:
    """Expected discounted number of visits to each state, (n_states,): the solution of ``n = initial + gamma P_pi' n``."""
    return np.linalg.solve(np.eye(cmdp.n_states) - cmdp.gamma * _state_transitions(cmdp, policy).T, cmdp.initial)


def q_values(cmdp: TabularCMDP, signal: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """
    Expected discounted sum of a signal after each state and action, (n_states, n_actions).

    :param signal: the reward, a cost, or ones for the number of steps; (n_states, n_actions)
    """
    values = np.linalg.solve(
        np.eye(cmdp.n_states) - cmdp.gamma * _state_transitions(cmdp, policy), (policy * signal).sum(axis=1)
    )
    return signal + cmdp.gamma * cmdp.transitions @ values


def evaluate(cmdp: TabularCMDP, policy: np.ndarray) -> PolicyEvaluation:
    """Evaluate a policy exactly, by solving the Bellman equations of the reward and of every cost."""
    visits = discounted_visits(cmdp, policy)
    q = np.stack([q_values(cmdp, signal, policy) for signal in (cmdp.rewards, *cmdp.costs)])
    values = (policy * q).sum(axis=-1)
    advantages = q - values[..., None]
    returns = values @ cmdp.initial
    return PolicyEvaluation(
        ep_rew_mean=float(returns[0]),
        ep_cost_mean=returns[1:],
        values=values[0],
        q_values=q[0],
        advantages=advantages[0],
        cost_values=values[1:],
        cost_q_values=q[1:],
        cost_advantages=advantages[1:],
        ep_len_mean=float(visits.sum()),
        state_distribution=visits / visits.sum(),
    )


def mean_tv_distance(cmdp: TabularCMDP, old: np.ndarray, new: np.ndarray) -> float:
    """Total variation distance between the policies' action probabilities, averaged over the states that ``old`` visits."""
    return float(evaluate(cmdp, old).state_distribution @ np.abs(new - old).sum(axis=1)) / 2


def mean_kl_divergence(cmdp: TabularCMDP, old: np.ndarray, new: np.ndarray) -> float:
    """``KL(new || old)`` of the action probabilities, averaged over the states that ``old`` visits."""
    return float(evaluate(cmdp, old).state_distribution @ _kl_per_state(new, old))


class PerformanceBound(NamedTuple):
    """``|J(new) - J(old) - surrogate| <= penalty``, J the expected (discounted) sum of a signal."""

    surrogate: float
    penalty: float


def performance_bound(
    cmdp: TabularCMDP,
    signal: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
    divergence: float | None = None,
    baseline: np.ndarray | None = None,
) -> PerformanceBound:
    """
    Bound how much a signal's sum changes between two policies by what is known at the old one (Theorem 1, Corollaries 1-3).

    The paper's factors are ``1 / (1 - gamma)`` and ``gamma / (1 - gamma)``. They are the expected length L of an episode and
    the number h of steps that an action can still have ahead of it, and in that form the bound holds without a discount too:
    ``surrogate = L E[sum_a new(a|s) A(s, a)]`` and ``penalty = 2 epsilon h L divergence``, see ``docs/theory.md``.

    :param divergence: the mean total variation distance (default), or a number that is at least as large, such as
        ``sqrt(KL / 2)`` for Corollary 3 or ``sqrt(target_kl / 2)`` for the worst case of Propositions 1 and 2
    :param baseline: the function f of Theorem 1, (n_states,); by default the value function of ``old``, as in the corollaries
    """
    if baseline is None:
        baseline = (old * q_values(cmdp, signal, old)).sum(axis=1)
    if divergence is None:
        divergence = mean_tv_distance(cmdp, old, new)
    visits = discounted_visits(cmdp, old)
    errors = signal + cmdp.gamma * cmdp.transitions @ baseline - baseline[:, None]  # E[delta_f | s, a]
    epsilon = np.abs((new * errors).sum(axis=1)).max()
    steps_ahead = q_values(cmdp, np.ones_like(signal), new).max() - 1
    surrogate = visits @ ((new - old) * errors).sum(axis=1)
    return PerformanceBound(float(surrogate), float(2 * epsilon * steps_ahead * visits.sum() * divergence))


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
    """The best policy that respects every limit, and the return that a unit more of each limit would buy."""

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
        raise ImportError("The optimum of a tabular CMDP needs scipy: pip install 'sb3-cpo[plot]'") from error
    n_states, n_actions = cmdp.rewards.shape
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
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("The exact trust-region update needs scipy: pip install 'sb3-cpo[plot]'") from error
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
        kl_div = worth.state_distribution @ _kl_per_state(new, old)
        expected = np.einsum("s,sa,isa->i", worth.state_distribution, new, cost_advantages)
        value = multipliers[0] * (target_kl + worth.state_distribution @ log_totals) + multipliers[1:] @ slack
        return float(value), np.append(target_kl - kl_div, slack - expected)

    start = np.append(1 / np.sqrt(2 * target_kl), np.zeros(cmdp.n_costs))
    bounds = [(1e-6, None)] + [(0, None)] * cmdp.n_costs
    solution = minimize(dual, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
    new = tilted(solution.x)[0]
    used = np.einsum("s,sa,isa->i", worth.state_distribution, new, cost_advantages)
    kl_div = worth.state_distribution @ _kl_per_state(new, old)
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


class TabularEnv(gym.Env[np.int64, np.int64]):
    """
    Play a :class:`TabularCMDP`. The observation is the state's number, which SB3 turns into a one-hot vector.

    The episode ends (``terminated``) with probability ``1 - gamma`` after every step, or where the transitions end it, and
    never by a time limit. So the mean plain sum of rewards and costs over episodes is exactly what :func:`evaluate` computes,
    and the best policy of the observation is exactly what :func:`solve_cmdp` finds.

    :param cost_names: info keys, one per constraint; by default ``info["cost"]``, a float or, for several, an array (n_costs,)
    """

    def __init__(self, cmdp: TabularCMDP, cost_names: Sequence[str] | None = None) -> None:
        self.cmdp = cmdp
        self.cost_names = cost_names
        self.cumulative = cumulative_transitions(cmdp)
        self.observation_space = spaces.Discrete(cmdp.n_states)
        self.action_space = spaces.Discrete(cmdp.n_actions)
        self.state = np.int64(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.int64(self.np_random.choice(self.cmdp.n_states, p=self.cmdp.initial))
        return self.state, {}

    def step(self, action: np.int64) -> tuple[np.int64, SupportsFloat, bool, bool, dict[str, Any]]:
        reward = float(self.cmdp.rewards[self.state, action])
        info = cost_info(self.cmdp.costs[:, self.state, action], self.cost_names)
        next_state = np.int64((self.np_random.random() >= self.cumulative[self.state, action]).sum())
        is_over = bool(next_state == self.cmdp.n_states)
        if not is_over:
            self.state = next_state
        return self.state, reward, is_over, False, info


def cumulative_transitions(cmdp: TabularCMDP) -> np.ndarray:
    """Distribution functions of the next state; a uniform number above all entries of a row ends the episode."""
    cumulative = np.cumsum(cmdp.gamma * cmdp.transitions, axis=-1)
    return np.where(cumulative > 1 - 1e-12, 1.0, cumulative)


def cost_info(costs: np.ndarray, cost_names: Sequence[str] | None) -> dict[str, Any]:
    """The costs of one step, (n_costs,), as an environment reports them."""
    if cost_names is not None:
        return dict(zip(cost_names, costs.tolist(), strict=True))
    return {"cost": float(costs[0]) if len(costs) == 1 else costs.copy()}


def _state_transitions(cmdp: TabularCMDP, policy: np.ndarray) -> np.ndarray:
    return np.einsum("sa,sat->st", policy, cmdp.transitions)


def _kl_per_state(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``KL(p || q)`` per row, infinite where p goes where q never does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=1)
