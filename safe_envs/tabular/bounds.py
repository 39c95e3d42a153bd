"""How far apart two policies are, and how much a sum can change between them: the bounds of the theory, exactly."""

from typing import NamedTuple

import numpy as np

from safe_envs.tabular.cmdp import TabularCMDP, discounted_visits, evaluate, q_values


def mean_tv_distance(cmdp: TabularCMDP, old: np.ndarray, new: np.ndarray) -> float:
    """Total variation distance between the policies' action probabilities, averaged over the states that ``old`` visits."""
    return float(evaluate(cmdp, old).state_distribution @ np.abs(new - old).sum(axis=1)) / 2


def mean_kl_divergence(cmdp: TabularCMDP, old: np.ndarray, new: np.ndarray) -> float:
    """``KL(new || old)`` of the action probabilities, averaged over the states that ``old`` visits."""
    return float(evaluate(cmdp, old).state_distribution @ kl_per_state(new, old))


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


def kl_per_state(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """``KL(p || q)`` per row, infinite where p goes where q never does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=1)
