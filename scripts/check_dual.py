"""
Solve random problems with sb3_cpo.dual and prove every answer right, from the vectors themselves.

    python scripts/check_dual.py                      # 200,000 problems, 0 to 10 constraints
    python scripts/check_dual.py --problems 2000 --conic-share 1

The solver sees the inner products of g and the rows of B, rounded to double precision. The check has g, B and H and counts
in extended precision. Nothing in it is taken from the solver but the answer, and no other solver's tolerance stands behind:

- A step x is right if it is feasible and no step can be better. For any nu >= 0, g.x <= sqrt(D) |g - B'nu| - nu.c wherever
  x is feasible (weak duality), with the norm of H^-1; the solver's own nu must bring that bound down to its x.
- "Infeasible" is right if some u >= 0 has c.u >= sqrt(D) |B'u|; u comes from scipy's nonnegative least squares.
- A recovery is right if it meets the optimality conditions of the first of its three problems that it has to solve.

What these do not settle (nearly parallel rows have a wider tolerance, in which bounds are loose) goes to a second solver in
80 digits, which tries every active set. With the package clarabel installed, a share of the problems is also
given to that interior-point method as second-order cone programs. H is diagonal: a rotation changes no inner product.
"""

import argparse
import time
from collections import Counter
from itertools import combinations
from typing import Any, NamedTuple

import mpmath
import numpy as np
from scipy.optimize import nnls

from sb3_cpo.dual import is_row_vanishing, recovery_coefficients, solve_dual

TRUST_REGION = 1e-6
# What the docstring of solve_dual guarantees, in units of what the trust region can change; and what rounding adds
FEASIBLE, FEASIBLE_PARALLEL, NEARLY_PARALLEL = 2e-9, 1.01e-4, 1.1e-8
OPTIMAL = 2e-6
MULTIPLIERS = 1e-5
ANGLES = 10.0 ** np.arange(-17, 0)

Array = np.ndarray[Any, Any]


class Problem(NamedTuple):
    kind: str
    g: Array
    B: Array
    H: Array  # its diagonal
    c: Array
    D: float


# -- Problems


def random_rows(rng: np.random.Generator, kind: str, m: int, n: int) -> Array:
    B = rng.normal(size=(m, n))
    for i in range(1, m):
        other = B[rng.integers(i)]
        if kind == "parallel" and rng.random() < 0.5:
            B[i] = rng.choice([1, 2, -1, -3]) * other
        elif kind == "nearly parallel" and rng.random() < 0.6:
            B[i] = rng.choice([1, -1, 3]) * other + rng.choice(ANGLES) * B[i]
        elif kind == "contradictory" and rng.random() < 0.7:
            B[i] = -other + rng.choice([0, 1]) * rng.choice(ANGLES) * B[i]
        elif kind == "dependent" and i > 1 and rng.random() < 0.5:
            B[i] = rng.normal(size=i) @ B[:i] + rng.choice([0, 1]) * rng.choice(ANGLES) * B[i]
        elif kind == "integer":
            B[i] = rng.integers(-1, 2, n)
    if kind == "vanishing" and m:
        B[rng.integers(m)] *= rng.choice([0, 1e-200, 1e-20, 1e-9, 1e-7])
    return B


def random_problem(rng: np.random.Generator, max_costs: int) -> Problem:
    m, n = int(rng.integers(max_costs + 1)), int(rng.integers(1, 13))
    rows = str(
        rng.choice(["general", "parallel", "nearly parallel", "contradictory", "dependent", "integer", "vanishing", "scaled"])
    )
    gradient = str(rng.choice(["general", "parallel to a row", "in the span", "zero"], p=[0.5, 0.25, 0.2, 0.05]))
    violation = str(
        rng.choice(["general", "safe", "zero", "some zero", "touching", "far"], p=[0.4, 0.2, 0.05, 0.1, 0.2, 0.05])
    )

    B, g, D = random_rows(rng, rows, m, n), rng.normal(size=n), 2 * 10 ** rng.uniform(-5, 0)
    noise = rng.choice([0, 1]) * rng.choice(ANGLES)
    if gradient == "parallel to a row" and m:
        g = rng.choice([1, -1, 2]) * B[rng.integers(m)] + noise * g
    elif gradient == "in the span" and m:
        g = rng.uniform(-0.3, 1, m) @ B + noise * g
    elif gradient == "zero":
        g = 0 * g

    reach = np.sqrt(D) * np.linalg.norm(B, axis=1)
    c = rng.uniform(-1.2, rng.choice([-0.3, 0.3, 1.0])) * rng.uniform(0.2, 1, m) * reach
    if violation == "general":
        c = rng.uniform(-1, rng.choice([0.1, 0.5, 1.2]), m) * reach
    elif violation == "zero":
        c = np.zeros(m)
    elif violation == "some zero":
        c[rng.random(m) < 0.5] = 0
    elif violation == "touching" and m and np.any(B):
        # The tangent plane of a point on the border, and planes that the point satisfies (some of them with equality)
        point = rng.uniform(0.1, 1, m) * (rng.random(m) < 0.5) @ B if rng.random() < 0.5 else B[0]
        point = -point * np.sqrt(D) / max(np.linalg.norm(point), 1e-300)
        c = -B @ point * (1 + rng.choice([0, 0, 1e-12, -1e-12, 1e-6, -1e-6, 1e-3, -1e-3]))
        c -= rng.uniform(0, 0.5, m) * (rng.random(m) < 0.3) * reach
    elif violation == "far":
        c *= 10 ** rng.uniform(0, 7)

    H = 10 ** rng.uniform(-1, 1, n)
    g, B = g * np.sqrt(H), B * np.sqrt(H)
    if rows == "scaled" or rng.random() < 0.3:
        x_scale, g_scale, row_scale = 10 ** rng.uniform(-12, 12), 10 ** rng.uniform(-12, 12), 10 ** rng.uniform(-12, 12, m)
        g, B, H = g * g_scale / x_scale, B * row_scale[:, None] / x_scale, H / x_scale**2
        c = c * row_scale
    return Problem(f"{rows} rows, g {gradient}, c {violation}", g, B, H, c, D)


# -- The same problem in extended precision and without units: rows, gradient and trust region of size 1


class Whitened(NamedTuple):
    g: Array
    B: Array
    c: Array
    rows: Array  # those that do not vanish
    norms: Array
    smallest_eigenvalue: float


def extended(array: Array) -> Array:
    return np.asarray(array, dtype=np.longdouble)


def norm(vector: Array) -> Any:
    return np.sqrt(np.sum(vector**2, axis=-1))


def inner_products(problem: Problem) -> tuple[float, Array, Array]:
    g, B, H = extended(problem.g), extended(problem.B), extended(problem.H)
    q, r, S = np.sum(g**2 / H), B @ (g / H), (B / H) @ B.T
    return float(q), r.astype(float), S.astype(float)


def whiten(problem: Problem, is_vanishing: Array) -> Whitened:
    rows, root = np.flatnonzero(~is_vanishing), np.sqrt(extended(problem.H))
    g, B = problem.g / root, problem.B[rows] / root
    norms = norm(B)
    unit = B / norms[:, None]
    smallest = float(np.linalg.eigvalsh((unit @ unit.T).astype(float)).min(initial=1))
    c = problem.c[rows] / norms / np.sqrt(extended(problem.D))
    return Whitened(g / norm(g) if np.any(g) else g, unit, c, rows, norms, smallest)


# -- Other solvers


def infeasibility(B: Array, c: Array) -> float:
    """A lower bound on the length of any step that satisfies the constraints, infinite where none does."""
    if not np.any(c > 0):
        return 0.0
    E = np.vstack([-B.T, c / c.max()]).astype(float)
    u = extended(nnls(E, np.append(np.zeros(B.shape[1]), 1.0), maxiter=1000)[0])
    reach, violation = norm(u @ B), u @ c
    # Residues of rounding are no violation
    return 0.0 if violation <= 0 else np.inf if reach <= 1e-15 * np.sum(u) else float(violation / reach)


def optimum(g: Array, B: Array, c: Array) -> float | None:
    """max g.x subject to c + B x <= 0 and |x| <= 1, by trying every active set in 80 digits."""
    mpmath.mp.dps = 80
    m = len(c)
    vectors = [[mpmath.mpf(str(value)) for value in row] for row in np.vstack([B, g[None]])]
    gram = [[mpmath.fdot(a, b) for a in vectors] for b in vectors]
    violation = [mpmath.mpf(str(value)) for value in c]
    best: Any = None
    for K in (K for size in range(min(m, B.shape[1]) + 1) for K in combinations(range(m), size)):
        try:
            if K:
                C = mpmath.matrix([[gram[i][j] for j in K] for i in K])
                at_planes = mpmath.lu_solve(C, mpmath.matrix([violation[i] for i in K]))
                along = mpmath.lu_solve(C, mpmath.matrix([gram[i][m] for i in K]))
            else:
                at_planes = along = []
        except (ZeroDivisionError, TypeError):  # singular; mpmath raises either
            continue
        radius_left = 1 - mpmath.fsum(violation[i] * z for i, z in zip(K, at_planes, strict=True))
        gradient_left = gram[m][m] - mpmath.fsum(gram[i][m] * z for i, z in zip(K, along, strict=True))
        if radius_left < -1e-12:
            continue
        for t in {mpmath.mpf(0), mpmath.sqrt(max(radius_left, 0) / gradient_left) if gradient_left > 1e-24 else mpmath.mpf(0)}:
            b = [z + t * a for z, a in zip(at_planes, along, strict=True)]
            step = [
                violation[j] + t * gram[j][m] - mpmath.fsum(gram[j][i] * z for i, z in zip(K, b, strict=True))
                for j in range(m)
            ]
            if max(step, default=0) <= 1e-14:
                value = t * gram[m][m] - mpmath.fsum(gram[i][m] * z for i, z in zip(K, b, strict=True))
                best = value if best is None else max(best, value)
    return None if best is None else float(best)


def conic_optimum(g: Array, B: Array, c: Array) -> float | None:
    """The same by clarabel; None: primal infeasible, NaN: no answer."""
    import clarabel
    from scipy import sparse

    n, m = len(g), len(c)
    A = np.vstack([B, np.zeros((1, n)), -np.eye(n)]).astype(float)
    b = np.concatenate([-c, [1.0], np.zeros(n)]).astype(float)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = ([clarabel.NonnegativeConeT(m)] if m else []) + [clarabel.SecondOrderConeT(n + 1)]
    P = sparse.csc_matrix((n, n))
    solution = clarabel.DefaultSolver(P, -g.astype(float), sparse.csc_matrix(A), b, cones, settings).solve()
    status = str(solution.status)
    return float(-solution.obj_val) if status == "Solved" else None if status == "PrimalInfeasible" else np.nan


# -- Verdicts: None, or what is wrong


def judge_step(problem: Problem, white: Whitened, dual: Any, is_conic: bool, proofs: Counter[str]) -> str | None:
    g, B, c = white.g, white.B, white.c
    root = np.sqrt(extended(problem.D))
    is_parallel = white.smallest_eigenvalue < NEARLY_PARALLEL
    feasible = FEASIBLE_PARALLEL if is_parallel else FEASIBLE
    if dual is None:
        if len(c) < len(problem.c) and np.any(np.delete(problem.c, white.rows) > 0):
            return None
        if infeasibility(B, c) >= 1 - 1e-6:
            return None
        return "infeasible in error" if optimum(0 * g + 1, B, c + 1e-6) is not None else None
    if not np.all(np.isfinite([dual.lam, dual.g_coef, *dual.nu, *dual.b_coef])):
        return "not finite"
    if np.any(dual.nu < 0) or np.any(np.delete(dual.b_coef, white.rows)):
        return "negative multiplier, or a vanishing row used"
    g_norm = norm(problem.g / np.sqrt(extended(problem.H)))
    x = dual.g_coef * g_norm / root * g - dual.b_coef[white.rows] * white.norms / root @ B
    if x @ x > 1 + TRUST_REGION:
        return f"outside the trust region by {float(x @ x) - 1:.1e}"
    violation = float(np.max(c + B @ x, initial=0))
    if violation > feasible:
        return f"constraints missed by {violation:.1e}"
    if float(g_norm) ** 2 < np.finfo(float).tiny:
        length = float(norm(x)) * (1 - 1e-6)
        is_shortest = length <= infeasibility(B, c) or length < 1e-6 or optimum(g, B, (c + feasible) / length) is None
        return None if is_shortest else "not the shortest"
    if is_conic and not is_parallel:
        value = conic_optimum(g, B, c)
        proofs["also within 1e-5 of clarabel"] += value is not None and abs(value - float(g @ x)) <= 1e-5
        if value is not None and value > float(g @ x) + 1e-5:
            return f"{value - float(g @ x):.1e} below clarabel"
    nu = extended(dual.nu[white.rows]) * white.norms / g_norm
    implied = dual.b_coef[white.rows] / dual.g_coef * white.norms / g_norm if dual.lam > 0 else nu
    if np.max(abs(implied - nu), initial=0) > (feasible if is_parallel else 1e-6) * (1 + float(np.sum(nu))):
        return "coefficients and multipliers disagree"
    gap = float(norm(g - nu @ B) - nu @ c - g @ x)
    if gap <= OPTIMAL + feasible:
        proofs["by its own multipliers"] += 1
        return None
    proofs["by the second solver"] += 1
    value = optimum(g, B, c)
    if value is not None and is_parallel and value - float(g @ x) > feasible:  # how much do the constraints' tolerances cost?
        value = optimum(g, B, c + feasible)
        proofs["of these, feasible but optimum undecided"] += value is None
    if value is not None and value - float(g @ x) > (feasible if is_parallel else OPTIMAL):
        return f"suboptimal by {value - float(g @ x):.1e}"
    return None if is_parallel or gap <= MULTIPLIERS * (1 + float(np.sum(nu))) else f"multipliers leave a gap of {gap:.1e}"


def judge_recovery(problem: Problem, white: Whitened, mu: Array) -> str | None:
    if not np.all(np.isfinite(mu)) or np.any(mu < 0) or np.any(np.delete(mu, white.rows)):
        return "recovery: not finite, negative, or a vanishing row used"
    B, c = white.B, white.c
    mu = extended(mu[white.rows]) * white.norms / np.sqrt(extended(problem.D))
    x = -mu @ B
    if x @ x > 1 + TRUST_REGION:
        return f"recovery: outside the trust region by {float(x @ x) - 1:.1e}"
    worst = np.max(c, initial=0)
    if worst == 0:
        return "recovery: a step without need" if np.any(mu) else None
    rise = float(np.max(c + B @ x) - worst)
    if rise > 1e-9 * max(1, float(worst)):
        return f"recovery: worst violation rises by {rise:.1e}"
    # The shortest step to the feasible set is due if it lowers the worst violation by 1e-3 of its length
    shortest = infeasibility(B, c)
    C, identity = B @ B.T, np.eye(len(c))
    ridge = max(0.0, 1e-8 - white.smallest_eigenvalue)
    is_due = shortest <= 0.99e3 * worst and ridge == 0
    allowed = [C] if is_due else [C + ridge * identity, C + 1e-4 * identity, C + 1e-4]
    if not np.any(mu):
        worst_rows = B[c >= worst * (1 - 1e-6)]
        E = np.vstack([worst_rows.T, np.ones(len(worst_rows))]).astype(float)
        is_stuck = nnls(E, np.append(np.zeros(B.shape[1]), 1.0))[1] < 1e-6
        return None if is_stuck else "recovery: no step though one helps"
    tolerance = 1e-4 if white.smallest_eigenvalue < 1e-6 else 1e-6
    for matrix in allowed:
        # A step cut to the trust region leaves room for the rounding of rows that cancel
        is_cut = x @ x > 1 - 1e-4 - 4e-15 * np.sum(mu) ** 2
        curvature = mu @ matrix @ mu
        stretch = max(1, (c @ mu) / curvature) if is_cut and curvature > 0 else 1
        slack = (c - stretch * matrix @ mu) / worst
        if np.max(slack) <= tolerance * max(1, stretch) and abs(mu @ slack) * stretch <= tolerance * max(
            1, stretch * np.sum(mu)
        ):
            return None
    return f"recovery: solves none of its problems{' (the shortest step is due)' if is_due else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--problems", type=int, default=200_000)
    parser.add_argument("--max-costs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conic-share", type=float, default=0.0, help="share of the problems that clarabel solves too")
    parser.add_argument("--show", type=int, default=10, help="how many faults to print")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of single problems")
    args = parser.parse_args()

    faults: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    proofs: Counter[str] = Counter()
    seconds: dict[tuple[str, int], list[float]] = {}
    for i in args.only or range(args.problems):
        rng = np.random.default_rng([args.seed, i])
        problem = random_problem(rng, args.max_costs)
        m, delta = len(problem.c), problem.D / 2
        q, r, S = inner_products(problem)
        white = whiten(problem, is_row_vanishing(S, problem.c, delta))
        verdicts: list[str | None] = []
        try:
            start = time.process_time()
            dual = solve_dual(q, r, S, problem.c, delta)
            seconds.setdefault(("solve_dual", m), []).append(time.process_time() - start)
            start = time.process_time()
            mu = recovery_coefficients(S, problem.c, delta)
            seconds.setdefault(("recovery_coefficients", m), []).append(time.process_time() - start)
            verdicts.append(judge_step(problem, white, dual, rng.random() < args.conic_share, proofs))
            verdicts.append(judge_recovery(problem, white, mu))
            kinds[
                "infeasible" if dual is None else "lam = 0" if dual.lam == 0 else "active" if np.any(dual.nu) else "inactive"
            ] += 1
        except Exception as error:
            verdicts.append(f"exception {error!r}")
        for verdict in filter(None, verdicts):
            faults[" ".join(word for word in verdict.split() if "e-" not in word and "e+" not in word)] += 1
            if sum(faults.values()) <= args.show:
                print(f"problem {i} ({m} constraints; {problem.kind}): {verdict}", flush=True)

    print(f"{args.problems} problems: {dict(kinds)}")
    print(f"optima proved: {dict(proofs)}")
    print(f"faults: {sum(faults.values())} {dict(faults)}")
    for (name, m), values in sorted(seconds.items()):
        print(
            f"{name}, {m} constraints: {np.mean(values) * 1e3:.2f} ms CPU, 99 % below {np.quantile(values, 0.99) * 1e3:.2f} ms"
        )
    return sum(faults.values())


if __name__ == "__main__":
    raise SystemExit(main() > 0)
