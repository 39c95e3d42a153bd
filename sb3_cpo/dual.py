"""
The trust-region problem of Constrained Policy Optimization, for any number of constraints.

    max_x  g.x   subject to   c + B x <= 0   and   x.H x <= D = 2 delta

Its dual has one unknown for the trust region and one for each constraint, whatever the size of x. So this file sees
x, g, B and H only through the inner products q = g.H^-1 g, r = B H^-1 g and S = B H^-1 B', and answers in coefficients.

Paper: Achiam et al. 2017, https://arxiv.org/abs/1705.10528, equations 11-14, whose convention (maximise) holds here;
Theorem 2 in its appendix minimises, so r has the other sign there.
Equation 12 prints lam * delta / 2; it must be lam * delta for equations 11, 13 and 14 to agree.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

MAX_CONSTRAINTS = 10  # 2^10 active sets take some 3 ms
# Slack in the optimality conditions, in units of the trust region's radius
TOLERANCE = 1e-9
# Below this share of |g|^2, what the constraints leave of g is taken for rounding: a loss of 1e-6 |g| sqrt(D) at most
MIN_GRADIENT_LEFT = 1e-12
# Smallest eigenvalue that the matrix of cosines between the constraints may have (nearly parallel rows)
RIDGE = 1e-8
# 1 / rho: how soft constraints become that cannot be satisfied together
SOFTNESS = 1e-4
# The constraints contradict each other where the shortest step to all of them is this many times the largest violation
FARTHEST = 1e3
# A few times machine epsilon: the error of an inner product of two unit rows
ROUNDING = 1e-15
# A row vanishes when the whole trust region moves its cost by less than this share of the violation
VANISHING = 1e-8


class Dual(NamedTuple):
    """The optimal step ``x = g_coef H^-1 g - b_coef . H^-1 B`` and its multipliers, ``g = lam H x + B' nu``."""

    lam: float  # multiplier of the trust region; 0 where the constraints alone determine the step
    nu: np.ndarray  # multipliers of the constraints, (n_costs,)
    g_coef: float  # 1 / lam where lam > 0
    b_coef: np.ndarray  # nu / lam where lam > 0, (n_costs,)


class _Constraints(NamedTuple):
    """The rows that do not vanish, scaled so that every row and the trust region have unit size in the norm of H."""

    rows: np.ndarray  # which rows these are, (n_rows,)
    norms: np.ndarray  # sqrt(S_ii)
    c: np.ndarray  # violation: signed distance of x = 0 to the plane, in radii of the trust region
    gram: np.ndarray  # inner products of the rows as they were given
    C: np.ndarray  # the same, positive definite
    ridge: float  # what was added to the diagonal for that


def solve_dual(q: float, r: np.ndarray, S: np.ndarray, c: np.ndarray, delta: float) -> Dual | None:
    """
    Solve ``max g.x`` subject to ``c + B x <= 0`` and ``x.H x <= 2 delta`` (equations 11 and 12 of the paper).

    The step lies in the trust region whatever the (finite) input. It satisfies the linearised constraints to 1e-9 of what
    the trust region can change them by, nearly parallel ones (angle below 1e-4) to 1e-4 of it.

    Where ``D = c.S^-1 c`` a single point is feasible and lam has no upper bound: the one returned is large.

    :param q: g.H^-1 g; zero means no reward gradient, the step is then the shortest that satisfies the constraints
    :param r: B H^-1 g, (n_costs,)
    :param S: B H^-1 B', (n_costs, n_costs)
    :param c: Violation of each constraint at x = 0 (> 0: exceeded), (n_costs,)
    :param delta: Bound on the KL divergence, ``target_kl``
    :return: None if no point of the trust region satisfies the constraints; a row that vanishes with c > 0 is such a case
    :raises ValueError: if an argument is not finite, has the wrong shape, or if there are more than 10 constraints
    """
    S, c, delta = _check_constraints(S, c, delta)
    q, r = float(_check_array("q", q, ())), _check_array("r", r, c.shape)
    if np.any(is_row_vanishing(S, c, delta) & (c > 0)):
        return None
    constraints = _scale(S, c, delta)

    # Feasibility first: the shortest step that satisfies every constraint is x0 = -H^-1 B' nu0
    nu0 = _nonnegative_qp(constraints.C, constraints.c)
    if constraints.c @ nu0 > 1 + TOLERANCE:
        return None

    if q >= np.finfo(float).tiny:
        g_norm = np.sqrt(q)
        with np.errstate(over="ignore"):
            r = r[constraints.rows] / constraints.norms / g_norm
        g_coef, b_coef, nu = _best_active_set(constraints, np.clip(r, -1, 1), nu0)
    else:
        g_norm, r, g_coef, b_coef, nu = 0.0, np.zeros_like(nu0), 0.0, nu0, np.zeros_like(nu0)

    # Only rounding, or q, r and S that belong to no g, B and H, can have brought the step out of the trust region
    fraction = _fraction_inside(constraints.gram, b_coef, r, g_coef)
    g_coef, b_coef = fraction * g_coef, fraction * b_coef
    lam, nu = (1 / g_coef, np.maximum(b_coef, 0) / g_coef) if g_coef > 0 else (0.0, nu)

    radius = np.sqrt(2 * delta)
    return Dual(
        lam=float(lam * g_norm / radius),
        nu=_unscale(constraints, g_norm * nu, c.shape),
        g_coef=float(g_coef * radius / g_norm) if g_coef > 0 else 0.0,
        b_coef=_unscale(constraints, radius * b_coef, c.shape),
    )


def recovery_coefficients(S: np.ndarray, c: np.ndarray, delta: float) -> np.ndarray:
    """
    Solve ``min x.H x`` subject to ``c + B x <= 0``, shortened to ``x.H x <= 2 delta``: ``x = -mu H^-1 B`` (equation 14).

    Every violated constraint falls in proportion, and for one constraint x is the paper's ``-sqrt(2 delta / s) H^-1 b``.
    If they contradict each other, or so nearly that x would hardly lower any, violations (as distances to the planes) are
    minimised in the least-squares sense; if the largest rose by that, it alone is minimised.

    :param S: B H^-1 B', (n_costs, n_costs)
    :param c: Violation of each constraint at x = 0 (> 0: exceeded), (n_costs,)
    :param delta: Bound on the KL divergence, ``target_kl``
    :return: mu, (n_costs,), nonnegative; zero for rows that vanish
    :raises ValueError: if an argument is not finite, has the wrong shape, or if there are more than 10 constraints
    """
    S, c, delta = _check_constraints(S, c, delta)
    constraints = _scale(S, c, delta)
    shape, worst = c.shape, constraints.c.max(initial=0)
    if worst == 0:
        return np.zeros(shape)
    c, C, identity = constraints.c, constraints.C, np.eye(len(constraints.c))
    # A ridge as large as that of C would hide a rise of the largest violation; softness needs none but to be definite
    cosines, almost = C - constraints.ridge * identity, C - min(constraints.ridge, RIDGE - 1e-12) * identity
    for matrix in (C, almost + SOFTNESS * identity, almost + SOFTNESS):
        nu = worst * _nonnegative_qp(matrix, c / worst)
        is_contradictory = np.sqrt(nu @ C @ nu) > FARTHEST * worst or np.max(c - cosines @ nu) > worst / FARTHEST
        # Rows that cancel each other leave little but rounding of a long nu: make room for it
        nu *= _fraction_inside(constraints.gram + ROUNDING * identity, nu)
        if np.max(c - cosines @ nu) <= worst and not (matrix is C and is_contradictory):
            break
    else:
        nu = np.zeros_like(c)  # nothing lowers the largest violation
    return _unscale(constraints, np.sqrt(2 * delta) * nu, shape)


def is_row_vanishing(S: np.ndarray, c: np.ndarray, delta: float) -> np.ndarray:
    """
    Whether ``b_i ~ 0``: the trust region ``x.H x <= 2 delta`` cannot change cost i by 1e-8 of its violation.

    Nothing local reduces such a cost: with c > 0 the problem is infeasible, and recovery lowers the other costs.

    :return: booleans, (n_costs,)
    """
    norms = np.sqrt(np.maximum(np.diagonal(S), 0))
    return (norms**2 < np.finfo(float).tiny) | (norms * np.sqrt(2 * delta) <= VANISHING * np.abs(c))


def _best_active_set(constraints: _Constraints, r: np.ndarray, nu0: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """
    Solve ``max g.x`` subject to ``c + B x <= 0`` and ``x.H x <= 1``, where g and the rows of B have unit norm.

    The problem is convex: of the points that some set of active constraints determines and that satisfy all of them, the
    optimum has the largest value, and multipliers that are not negative. Both together point to it despite rounding.

    :return: g_coef, b_coef, and nu where g_coef = 0 (elsewhere it is b_coef / g_coef)
    """
    c, C = constraints.c, constraints.C
    at_planes, along_gradient = np.moveaxis(_solve_on_subsets(C, np.stack([c, r], axis=1)), 2, 0)
    radius_left = 1 - at_planes @ c  # denominator of lam^2
    gradient_left = 1 - along_gradient @ r  # its numerator
    norms_squared = 1 + np.sum(along_gradient**2, axis=1)
    # The formula for lam loses its digits where g is spanned by the constraints. Of its numerator the ridge is no part
    gradient_real = gradient_left - constraints.ridge * (norms_squared - 1)
    is_spanned = gradient_real <= (MIN_GRADIENT_LEFT + 0.1 * constraints.ridge) * norms_squared
    # Rounding makes the numerator too small by up to ROUNDING, and the step too long. No radius left: any large lam fits
    squares = np.maximum(radius_left, 1e-20) / np.where(is_spanned, 1, gradient_left + ROUNDING * norms_squared)
    is_spanned &= radius_left > TOLERANCE
    g_coefs = np.where(is_spanned, 0, np.sqrt(squares))
    b_coefs = at_planes + g_coefs[:, None] * along_gradient
    nus = np.where(is_spanned[:, None], along_gradient, b_coefs)
    violations = np.max(c + g_coefs[:, None] * r - b_coefs @ C, axis=1, initial=-np.inf)
    values = g_coefs - b_coefs @ r
    wrong_signs = -np.sum(np.minimum(nus, 0), axis=1) / (1 + g_coefs)
    # A ridge moves the planes by its own size and more: look again, less strictly, where no point passes for an optimum
    for tolerance in TOLERANCE + constraints.ridge * np.array([0, 10, 100, 1000]):
        is_feasible = (radius_left >= -TOLERANCE) & (violations <= tolerance)
        scores = np.where(is_feasible, values - wrong_signs, -np.inf)
        best = np.argmax(scores >= scores.max() - TOLERANCE)  # the smallest set
        if is_feasible[best] and wrong_signs[best] <= TOLERANCE:
            break
    if not is_feasible[best]:  # rounding lets no point pass, but x0 always satisfies the constraints
        return 0.0, nu0, np.zeros_like(c)
    return float(g_coefs[best]), b_coefs[best], np.maximum(nus[best], 0)


def _nonnegative_qp(C: np.ndarray, c: np.ndarray) -> np.ndarray:
    """
    Solve ``max c.nu - nu.C nu / 2`` subject to ``nu >= 0``, C positive definite.

    A stationary point on a face that is nonnegative is feasible with value c.nu / 2, and the solution is one of them.
    """
    if np.all(c <= 0):
        return np.zeros_like(c)
    nus = _solve_on_subsets(C, c[:, None])[:, :, 0]
    return nus[np.argmax(np.where(np.all(nus >= 0, axis=1), nus @ c, 0))]


def _solve_on_subsets(C: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The solutions z of ``C_KK z_K = columns_K``, zero outside K, for every subset K: (2^n, n, n_columns), smallest first."""
    is_active = np.array(sorted(product((False, True), repeat=len(C)), key=sum), dtype=bool)
    solutions = np.zeros((*is_active.shape, columns.shape[1]))
    sizes = is_active.sum(axis=1)
    for size in range(1, len(C) + 1):
        subsets = np.flatnonzero(sizes == size)[:, None]
        K = np.nonzero(is_active[subsets[:, 0]])[1].reshape(-1, size)
        solutions[subsets, K] = np.linalg.solve(C[K[:, :, None], K[:, None, :]], columns[K])
    return solutions


def _scale(S: np.ndarray, c: np.ndarray, delta: float) -> _Constraints:
    rows = np.flatnonzero(~is_row_vanishing(S, c, delta))
    norms = np.sqrt(np.diagonal(S)[rows])
    with np.errstate(over="ignore"):
        gram = S[np.ix_(rows, rows)] / norms / norms[:, None]
    C = np.clip(gram, -1, 1)
    ridge = max(0.0, RIDGE - np.linalg.eigvalsh(C).min(initial=1.0))
    return _Constraints(rows, norms, c[rows] / norms / np.sqrt(2 * delta), gram, C + ridge * np.eye(len(rows)), ridge)


def _unscale(constraints: _Constraints, coefficients: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    unscaled = np.zeros(shape)
    unscaled[constraints.rows] = coefficients / constraints.norms
    return unscaled


def _fraction_inside(gram: np.ndarray, b_coef: np.ndarray, r: np.ndarray | float = 0.0, g_coef: float = 0.0) -> float:
    """How much of a step lies in the trust region, whose radius is 1; nothing where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm_squared = g_coef**2 - 2 * g_coef * np.sum(b_coef * r) + b_coef @ gram @ b_coef
    if not np.isfinite(norm_squared):
        return 0.0
    # Shortening a step costs feasibility: not within the 1e-6 that we promise
    return float(1 / np.sqrt(norm_squared)) if norm_squared > 1 + 5e-7 else 1.0


def _check_constraints(S: np.ndarray, c: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray, float]:
    n_costs = np.size(c)
    if n_costs > MAX_CONSTRAINTS:
        raise ValueError(f"at most {MAX_CONSTRAINTS} constraints can be solved for, got {n_costs}")
    c = _check_array("c", c, (n_costs,))
    S = _check_array("S", S, (n_costs, n_costs))
    delta = float(_check_array("delta", delta, ()))
    if delta <= 0:
        raise ValueError(f"`delta` must be positive, got {delta}")
    return (S + S.T) / 2, c, delta


def _check_array(name: str, value: np.ndarray | float, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {array.shape}: {value}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"`{name}` must be finite, got {value}")
    return array
