"""The constrained decision problem itself, and the exact value of a policy in it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


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
        for name in ("transitions", "rewards", "costs", "initial"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"`{name}` has entries that are not finite")
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
    """
    Expected discounted number of visits to each state, (n_states,): the solution of ``n = initial + gamma P_pi' n``.

    :raises ValueError: ``policy`` is none, or its episodes have no end
    """
    _check_policy(cmdp, policy)
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
    """
    Evaluate a policy exactly, by solving the Bellman equations of the reward and of every cost.

    :param policy: probabilities of the actions, (n_states, n_actions)
    :raises ValueError: ``policy`` is none, or its episodes have no end
    """
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


def _check_policy(cmdp: TabularCMDP, policy: np.ndarray) -> None:
    if policy.shape != cmdp.rewards.shape or not (policy.min() >= 0 and np.allclose(policy.sum(axis=1), 1)):
        raise ValueError(f"a policy has a row of probabilities, which sum to 1, for each state: shape {cmdp.rewards.shape}")
    if cmdp.gamma == 1:
        # The probability that an episode goes on, from each state: an end that can be reached is no farther than n_states
        continues, transitions = np.ones(cmdp.n_states), _state_transitions(cmdp, policy)
        for _ in range(cmdp.n_states):
            continues = transitions @ continues
            if continues.max() < 1 - 1e-12:
                break
        else:
            raise ValueError("with gamma = 1, every state must lead to an end under the policy: one goes on for ever")


def _state_transitions(cmdp: TabularCMDP, policy: np.ndarray) -> np.ndarray:
    return np.einsum("sa,sat->st", policy, cmdp.transitions)
