import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize, nnls

from sb3_cpo.dual import Dual, is_row_vanishing, recovery_coefficients, solve_dual

pytestmark = pytest.mark.filterwarnings("error")  # no overflow, no 0 / 0 on the way to an answer
REPRODUCIBLE = settings(max_examples=300, deadline=None, derandomize=True, database=None)


# -- From a problem in x to (q, r, S) and back


def inner_products(g, B, H):
    Hg, HB = np.linalg.solve(H, g), np.linalg.solve(H, B.T)
    return g @ Hg, B @ Hg, B @ HB


def solve(g, B, c, D, H=None):
    """The dual and the step x, both None where the problem is infeasible."""
    H = np.eye(len(g)) if H is None else H
    dual = solve_dual(*inner_products(g, B, H), c, D / 2)
    if dual is None:
        return None, None
    return dual, np.linalg.solve(H, dual.g_coef * g - dual.b_coef @ B)


def recover(B, c, D, H=None):
    H = np.eye(B.shape[1]) if H is None else H
    mu = recovery_coefficients(B @ np.linalg.solve(H, B.T), c, D / 2)
    assert np.all(np.isfinite(mu))
    assert np.all(mu >= 0)
    return -np.linalg.solve(H, mu @ B)


def radii(B, H, D):
    """By how much the trust region can change each cost: the unit of every tolerance on c + B x."""
    return np.sqrt(np.einsum("ij,ji->i", B, np.linalg.solve(H, B.T)) * D)


def random_problem(rng, n_costs):
    n = int(rng.integers(max(3, n_costs), 9))
    A = rng.normal(size=(n, n))
    H = A @ A.T + 0.3 * np.eye(n)
    g, B = rng.normal(size=n), rng.normal(size=(n_costs, n))
    D = 2 * 10 ** rng.uniform(-3, 0)
    c = rng.uniform(-1.2, rng.choice([-0.3, 1.0, 2.0]), n_costs) * radii(B, H, D)
    return g, B, c, D, H


# -- Oracles: other people's solvers


def least_norm_point(B, c, H):
    """min x.H x subject to c + B x <= 0 by Lawson and Hanson's reduction to nonnegative least squares; None: empty."""
    L = np.linalg.cholesky(H)
    G, h = -np.linalg.solve(L, B.T).T, c
    E, f = np.vstack([G.T, h]), np.append(np.zeros(B.shape[1]), 1.0)
    u, residual_norm = nnls(E, f)
    if residual_norm < 1e-7:
        return None
    residual = E @ u - f
    return np.linalg.solve(L.T, -residual[:-1] / residual[-1])


def optimum_by_slsqp(g, B, c, D, H):
    """max g.x in the coordinates in which the trust region is the unit ball, from the least-norm point."""
    L = np.linalg.cholesky(H)
    W, r = np.linalg.solve(L, B.T).T, np.linalg.solve(L, g)
    scale = np.linalg.norm(W, axis=1)
    W, c, r = W / scale[:, None], c / scale / np.sqrt(D), r / np.linalg.norm(r)
    constraints = [{"type": "ineq", "fun": lambda y: 1 - y @ y, "jac": lambda y: -2 * y}]
    if len(c):
        constraints.append({"type": "ineq", "fun": lambda y: -c - W @ y, "jac": lambda y: -W})
    start = np.zeros(len(g)) if not len(c) else L.T @ least_norm_point(B, c * scale * np.sqrt(D), H) / np.sqrt(D)
    # SLSQP may report failure at the optimum ("positive directional derivative"): take the best feasible point of a few
    best = start
    for y0 in (start, start + 0.05 * r, start + 0.3 * r):
        result = minimize(
            lambda y: -r @ y, y0, jac=lambda y: -r, constraints=constraints, method="SLSQP", options={"ftol": 1e-12}
        )
        y = result.x
        if y @ y <= 1 + 1e-8 and np.all(c + W @ y <= 1e-8) and r @ y > r @ best:
            best = y
        if result.success:
            break
    return np.linalg.solve(L.T, best) * np.sqrt(D)


def theorem_2(q, r, s, c, D):
    """
    The paper's Theorem 2 for one constraint, with the sign of r turned round (it minimises g.x, we maximise).

    The dual function is f_a where nu = (r + lam c) / s > 0 and f_b where nu = 0; both are convex in lam.
    """
    A, B = q - r**2 / s, D - c**2 / s
    if B < 0:
        return None if c > 0 else (np.sqrt(q / D), 0.0)
    zero = -r / c  # where r + lam c changes its sign
    if c > 0:
        set_a, set_b = (max(zero, 0), np.inf), (0, max(zero, 0))
    else:
        set_a, set_b = (0, max(zero, 0)), (max(zero, 0), np.inf)
    lam_a, lam_b = np.clip(np.sqrt(A / B), *set_a), np.clip(np.sqrt(q / D), *set_b)
    with np.errstate(divide="ignore"):
        f_a = (A / lam_a + B * lam_a) / 2 - r * c / s
        f_b = (q / lam_b + D * lam_b) / 2
    lam = lam_a if f_a <= f_b else lam_b
    return lam, max(0.0, (r + lam * c) / s)


# -- Numbers worked out by hand


@pytest.mark.parametrize(
    ("c", "lam", "nu", "x"),
    [
        (-0.05, 7.559289, 0.622036, (0.05, 0.132288)),  # feasible, active
        (0.05, 7.559289, 1.377964, (-0.05, 0.132288)),  # violated, recoverable
        (-0.20, 10, 0, (0.1, 0.1)),  # whole region safe
        (-0.12, 10, 0, (0.1, 0.1)),  # feasible, inactive
        (0.0, 7.071068, 1, (0, 0.141421)),  # c = 0 is feasible
    ],
)
def test_one_constraint_by_hand(c, lam, nu, x):
    dual, step = solve(np.array([1.0, 1.0]), np.array([[1.0, 0.0]]), np.array([c]), 0.02)
    np.testing.assert_allclose(dual.lam, lam, rtol=1e-6)
    np.testing.assert_allclose(dual.nu, [nu], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(step, x, atol=1e-6)
    np.testing.assert_allclose([dual.g_coef, *dual.b_coef], [1 / lam, nu / lam], rtol=1e-6, atol=1e-12)


def test_one_constraint_out_of_reach_by_hand():
    B, c = np.array([[1.0, 0.0]]), np.array([0.2])
    assert solve(np.array([1.0, 1.0]), B, c, 0.02) == (None, None)
    np.testing.assert_allclose(recover(B, c, 0.02), [-0.141421, 0], atol=1e-6)


def test_curvature_by_hand():
    H, g, B = np.array([[2, 0.5], [0.5, 1]]), np.array([1, -0.3]), np.array([[0.8, 0.6]])
    q, r, S = inner_products(g, B, H)
    np.testing.assert_allclose([q, *r, *S[0]], [0.845714, 0.148571, 0.502857], atol=1e-6)
    dual, x = solve(g, B, np.array([0.03]), 0.02, H)
    np.testing.assert_allclose([dual.lam, *dual.nu, *x], [6.635601, 0.691328, 0.069266, -0.142354], atol=1e-6)


@pytest.mark.parametrize(
    ("c", "lam", "nu", "x"),
    [
        ((-0.05, -0.02), 7.647191, (0.617640, 0.847056), (0.05, 0.02, 0.130767)),
        ((0.09, 0.08), 13.483997, (2.213560, 2.078720), (-0.09, -0.08, 0.074162)),
    ],
)
def test_two_constraints_by_hand(c, lam, nu, x):
    dual, step = solve(np.ones(3), np.eye(3)[:2], np.array(c), 0.02)
    np.testing.assert_allclose(dual.lam, lam, rtol=1e-6)
    np.testing.assert_allclose(dual.nu, nu, rtol=1e-6)
    np.testing.assert_allclose(step, x, atol=1e-6)


def test_two_constraints_out_of_reach_by_hand():
    B, c = np.eye(3)[:2], np.array([0.12, 0.09])
    assert solve(np.ones(3), B, c, 0.02) == (None, None)
    np.testing.assert_allclose(recover(B, c, 0.02), [-0.113137, -0.084853, 0], atol=1e-6)


def test_no_constraint_is_the_natural_gradient_step():
    H, g = np.array([[2, 0.5], [0.5, 1]]), np.array([1, -0.3])
    dual, x = solve(g, np.zeros((0, 2)), np.zeros(0), 0.02, H)
    np.testing.assert_allclose(x, np.sqrt(0.02 / (g @ np.linalg.solve(H, g))) * np.linalg.solve(H, g), rtol=1e-12)
    assert dual.nu.shape == dual.b_coef.shape == (0,)
    assert recovery_coefficients(np.zeros((0, 0)), np.zeros(0), 0.01).shape == (0,)


# -- Against other solvers


@pytest.mark.parametrize("n_costs", range(5))
def test_agrees_with_slsqp_and_least_norm_on_random_problems(n_costs):
    rng = np.random.default_rng(n_costs)
    counts = dict.fromkeys(["safe and inactive", "safe and active", "violated and recoverable", "infeasible"], 0)
    for _ in range(450):
        g, B, c, D, H = random_problem(rng, n_costs)
        x0 = least_norm_point(B, c, H) if n_costs else np.zeros(len(g))
        dual, x = solve(g, B, c, D, H)
        assert (dual is not None) == (x0 is not None and x0 @ H @ x0 <= D)
        if dual is None:
            counts["infeasible"] += 1
            expected = None if x0 is None else x0 * np.sqrt(D / (x0 @ H @ x0))
            if expected is not None:
                np.testing.assert_allclose(recover(B, c, D, H), expected, atol=1e-6 * abs(expected).max())
            continue
        x_slsqp = optimum_by_slsqp(g, B, c, D, H)
        radius = np.sqrt(g @ np.linalg.solve(H, g) * D)
        assert abs(g @ x - g @ x_slsqp) <= 1e-7 * radius
        np.testing.assert_allclose(x, x_slsqp, atol=1e-4 * abs(x).max())
        assert_optimal(g, B, c, D, H, dual, x)
        kind = "violated and recoverable" if np.any(c > 0) else "safe and active" if np.any(dual.nu) else "safe and inactive"
        counts[kind] += 1
    assert counts["safe and inactive"] >= 30
    if n_costs:
        assert min(counts.values()) >= 30, counts


def assert_optimal(g, B, c, D, H, dual: Dual, x):
    """The Karush-Kuhn-Tucker conditions, which no solver's tolerance stands behind."""
    slack = c + B @ x
    assert dual.lam > 0
    assert np.all(dual.nu >= 0)
    np.testing.assert_allclose(dual.lam * H @ x + dual.nu @ B, g, atol=1e-9 * abs(g).max() * (1 + abs(dual.nu @ B).max()))
    np.testing.assert_allclose(x @ H @ x, D, rtol=1e-9)
    assert np.all(slack <= 1e-9 * radii(B, H, D))
    assert np.all(abs(slack[dual.nu > 0]) <= 1e-8 * radii(B, H, D)[dual.nu > 0])
    np.testing.assert_allclose([dual.g_coef, *dual.b_coef], [1 / dual.lam, *(dual.nu / dual.lam)], rtol=1e-12)


def test_agrees_with_theorem_2_of_the_paper():
    rng = np.random.default_rng(0)
    counts = {"active": 0, "inactive": 0, "infeasible": 0}
    for _ in range(1000):
        g, B, c, D, H = random_problem(rng, 1)
        q, r, S = inner_products(g, B, H)
        expected, dual = theorem_2(q, r[0], S[0, 0], c[0], D), solve_dual(q, r, S, c, D / 2)
        if expected is None:
            counts["infeasible"] += 1
            assert dual is None
            np.testing.assert_allclose(recover(B, c, D, H), -np.sqrt(D / S[0, 0]) * np.linalg.solve(H, B[0]), rtol=1e-9)
        else:
            counts["active" if expected[1] > 0 else "inactive"] += 1
            np.testing.assert_allclose([dual.lam, *dual.nu], expected, rtol=1e-8, atol=1e-12)
    assert min(counts.values()) >= 100, counts


def test_ten_constraints_are_solved():
    rng = np.random.default_rng(1)
    n_feasible = 0
    for _ in range(10):
        H, B = np.diag(rng.uniform(0.5, 2, 15)), rng.normal(size=(10, 15))
        g, D = 0.3 * B.sum(axis=0) + 0.1 * rng.normal(size=15), 0.02
        c = rng.uniform(-0.3, 0.1, 10) * radii(B, H, D)
        dual, x = solve(g, B, c, D, H)
        if dual is not None:
            n_feasible += 1
            assert np.count_nonzero(dual.nu) >= 6
            assert_optimal(g, B, c, D, H, dual, x)
    assert n_feasible >= 5


def test_answers_to_problems_of_every_kind_are_proved(monkeypatch, capsys):
    """Parallel, contradictory and vanishing rows, g along a row, one feasible point, 24 orders of magnitude."""
    path = Path(__file__).parent.parent / "scripts" / "check_dual.py"
    spec = importlib.util.spec_from_file_location("script_check_dual", path)
    check_dual = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_dual)
    monkeypatch.setattr(sys, "argv", ["check_dual.py", "--problems", "1500", "--max-costs", "6"])
    assert check_dual.main() == 0, capsys.readouterr().out


# -- Edges


@pytest.mark.parametrize("c", [0.0, -0.0, 1e-18, -1e-18])
def test_violation_of_zero_is_feasible_with_opposite_constraints(c):
    """x_1 = 0 is all that the two constraints leave."""
    x = solve(np.array([1.0, 1.0]), np.array([[1.0, 0], [-1, 0]]), np.array([c, c]), 0.02)[1]
    np.testing.assert_allclose(x, [0, np.sqrt(0.02)], atol=1e-8)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("n_costs", [1, 2, 3])
def test_touching_the_trust_region_is_feasible(n_costs, scale):
    """D = c.S^-1 c: one point of the trust region is feasible, and one part in 10^6 less is none."""
    rng = np.random.default_rng(n_costs)
    g, B = rng.normal(size=5), scale * rng.normal(size=(n_costs, 5))
    a = rng.uniform(0.01, 0.1, n_costs) / scale
    x0, c = -a @ B, B @ B.T @ a
    dual, x = solve(g, B, c, x0 @ x0)
    np.testing.assert_allclose(x, x0, atol=1e-7 * np.linalg.norm(x0))
    assert np.all(np.isfinite([dual.lam, *dual.nu]))
    assert solve(g, B, c, x0 @ x0 * (1 - 1e-6)) == (None, None)
    np.testing.assert_allclose(recover(B, c, x0 @ x0 * (1 - 1e-6)), x0, rtol=1e-5)


def test_vanishing_row_that_is_violated_leaves_no_reward_step_and_lowers_the_others():
    B = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    c = np.array([0.3, 0.03, -0.1])
    assert solve(np.ones(3), B, c, 0.02) == (None, None)
    np.testing.assert_array_equal(is_row_vanishing(B @ B.T, c, 0.01), [True, False, False])
    # At the bound itself, too: a radius of 1 moves the cost by 1e-8 of 1e8
    assert is_row_vanishing(np.eye(1), np.array([1e8]), 0.5)[0]
    np.testing.assert_allclose(recover(B, c, 0.02), [-0.03, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(recover(B, np.array([0.3, -1, -1]), 0.02), np.zeros(3))


def test_row_vanishes_only_where_the_trust_region_cannot_change_its_cost():
    B, c = np.array([[1.0, 0, 0]]), np.array([0.3])
    np.testing.assert_array_equal(recover(1e-10 * B, c, 0.02), np.zeros(3))
    np.testing.assert_allclose(recover(1e-6 * B, c, 0.02), [-np.sqrt(0.02), 0, 0])
    assert solve(np.ones(3), 1e-6 * B, c, 0.02) == (None, None)


@pytest.mark.parametrize("c", [0.0, -0.3])
@pytest.mark.parametrize("noise", [0.0, 1e-200, 1e-20])
def test_vanishing_row_that_is_satisfied_changes_nothing(c, noise):
    g, B = np.array([1.0, 1, 1]), np.array([[1.0, 0, 0], [0, 0, -noise]])
    dual, x = solve(g, B, np.array([0.03, c]), 0.02)
    expected_dual, expected_x = solve(g, B[:1], np.array([0.03]), 0.02)
    np.testing.assert_allclose(x, expected_x, rtol=1e-12)
    np.testing.assert_allclose(dual.nu, [expected_dual.nu[0], 0], rtol=1e-12)


def test_tiny_row_at_its_limit_is_not_taken_for_a_vanishing_one():
    dual, x = solve(np.array([1.0, 1.0]), np.array([[1e-30, 0.0]]), np.zeros(1), 0.02)
    np.testing.assert_allclose(x, [0, np.sqrt(0.02)], atol=1e-12)
    np.testing.assert_allclose(dual.nu, [1e30])


@pytest.mark.parametrize("noise", [0.0, 1e-15, 1e-12, 1e-9, 1e-7, 1e-6])
def test_gradient_in_the_span_of_binding_constraints_gives_the_point_of_the_planes(noise):
    """g = b_1 + 2 b_2 with x_1 <= 0.03, x_2 <= -0.04 : the step is (0.03, -0.04, anything), here the shortest."""
    rng = np.random.default_rng(0)
    B, c = np.eye(5)[:2] * [[3], [0.5]], np.array([-0.09, 0.02])
    dual, x = solve(B[0] + 2 * B[1] + noise * rng.normal(size=5), B, c, 0.02)
    np.testing.assert_allclose(x, [0.03, -0.04, 0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(dual.nu, [1, 2], atol=1e-5)
    assert dual.lam == dual.g_coef == 0


def test_gradient_in_the_span_of_a_constraint_with_another_to_satisfy():
    """The plane of b_1 alone is not enough: x_2 <= -0.03 has no part in g, but the step must heed it."""
    B, c = np.eye(3)[:2], np.array([-0.05, 0.03])
    for g in np.array([1, 0, 0]), np.array([1, -1e-7, 0]), np.array([1, -1e-5, 0]), np.array([1, -1e-3, 0]):
        x = solve(g, B, c, 0.02)[1]
        assert x @ x <= 0.02 * (1 + 1e-9)
        assert np.all(c + B @ x <= 1e-9)
        assert g @ x >= 0.05 - 1e-5


@pytest.mark.parametrize("noise", [1e-3, 1e-4, 3e-5, 1e-5])
def test_gradient_almost_in_the_span_keeps_the_trust_region(noise):
    rng = np.random.default_rng(2)
    for _ in range(50):
        B = rng.normal(size=(3, 6))
        g = rng.uniform(0.2, 1, 3) @ B + noise * rng.normal(size=6)
        c = rng.uniform(-0.3, 0.1, 3) * np.linalg.norm(B, axis=1) * np.sqrt(0.02)
        dual, x = solve(g, B, c, 0.02)
        if dual is not None:
            assert x @ x <= 0.02 * (1 + 1e-6)
            assert np.all(c + B @ x <= 1e-8)
            assert g @ x >= g @ optimum_by_slsqp(g, B, c, 0.02, np.eye(6)) - 1e-4 * np.linalg.norm(g) * np.sqrt(0.02)


@pytest.mark.parametrize("noise", [1e-4, 3e-5, 1e-5, 3e-6])
def test_gradient_almost_along_a_row_loses_nothing(noise):
    """x_1 = 0.05 on the plane, and the whole rest of the radius for what is left of g."""
    g = np.array([1.0, noise, 0])
    x = solve(g, np.eye(3)[:1], np.array([-0.05]), 0.02)[1]
    assert g @ x >= 0.05 + noise * np.sqrt(0.02 - 0.05**2) - 1e-7
    assert x @ x <= 0.02 * (1 + 1e-6)
    assert x[0] <= 0.05 + 1e-9


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-9, 1e-7, -1e-9])
def test_gradient_along_a_row_keeps_its_multiplier_where_another_row_moves_the_step(noise):
    """x_1 <= 0 with g = (1, noise): its price is 1, though x_2 >= 0.01 has to be satisfied first."""
    B, c = np.array([[1.0, 0], [0, -1]]), np.array([0.0, 0.01])
    dual, x = solve(np.array([1.0, noise]), B, c, 0.001)
    np.testing.assert_allclose(dual.nu, [1, 0], atol=2e-7)
    assert abs(x[0]) <= 1e-9
    assert x[1] >= 0.01 - 1e-9


def test_gradient_along_one_of_dependent_rows_keeps_the_constraints():
    """Four rows in the plane depend on each other, but two that meet at a right angle are met to a part in 10^7."""
    angles = np.array([0, np.pi / 2, 0.7, 2.5])
    B, c = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([-0.05, -0.02, -0.2, -0.2])
    for noise in (0, 1e-6, 3e-6, 1e-5):
        dual, x = solve(np.array([1.0, noise]), B, c, 0.02)
        assert np.all(c + B @ x <= 2e-7)
        np.testing.assert_allclose(x[0], 0.05, atol=2e-7)
        np.testing.assert_allclose(dual.nu, [1, 0, 0, 0], atol=2e-5)


def test_point_out_of_the_trust_region_is_no_candidate_however_good():
    """Only (0, -1, 0) is feasible; the corner (0.5, -1, 0) is out of the trust region, and g leads straight to it."""
    B, c = np.array([[0.0, 1, 0], [1, 0, 0]]), np.array([1.0, -0.5])
    x = solve(np.array([1.0, 0, 1e-5]), B, c, 1.0)[1]
    np.testing.assert_allclose(x, [0, -1, 0], atol=1e-6)


def test_the_only_feasible_point_has_multipliers_where_the_gradient_leads_away_from_it():
    """x = (-0.1, 0.1) in a ball of that radius; g = (0.3, -1) is spanned by rows of which only a large lam takes both."""
    B, D = np.array([[1.0, 0], [0, -1]]), 0.02
    g, c = np.array([0.3, -1.0]), np.array([0.1, 0.1])
    dual, x = solve(g, B, c, D)
    np.testing.assert_allclose(x, [-0.1, 0.1], atol=1e-9)
    assert dual.lam > 0
    np.testing.assert_allclose(dual.lam * x + dual.nu @ B, g, atol=1e-6 * dual.lam)
    assert np.all(dual.nu > 0)


def test_no_reward_gradient_gives_the_shortest_step_that_satisfies_the_constraints():
    B, c = np.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]]), np.array([0.05, 0.02, -0.1])
    dual, x = solve(np.zeros(3), B, c, 0.02)
    np.testing.assert_allclose(x, [-0.05, 0, 0], atol=1e-12)
    assert dual.lam == dual.g_coef == 0
    np.testing.assert_array_equal(dual.nu, 0)
    np.testing.assert_array_equal(solve(np.zeros(3), B, -np.ones(3), 0.02)[1], np.zeros(3))


@pytest.mark.parametrize("c", [-0.2, -0.05, 0.0, 0.05, 0.2])
@pytest.mark.parametrize("factors", [(1, 1), (1, 3), (1e-3, 1, 1e3), (1, 1, 1, 1)])
def test_repeating_a_constraint_leaves_the_step(c, factors):
    g, b, D = np.array([1.0, 1.0, 0.3]), np.array([1.0, 0.2, 0.0]), 0.02
    rows, violations = np.outer(factors, b), c * np.array(factors)
    dual, x = solve(g, rows, violations, D)
    expected_dual, expected = solve(g, b[None], np.array([c]), D)
    if expected is None:
        assert dual is None
        x, expected = recover(rows, violations, D), recover(b[None], np.array([c]), D)
    else:
        np.testing.assert_allclose(dual.nu @ factors, expected_dual.nu[0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(x, expected, atol=1e-8)


@pytest.mark.parametrize("angle", 10.0 ** np.arange(-16, 0))
@pytest.mark.parametrize("sign", [1, -1])
def test_nearly_parallel_rows_keep_trust_region_and_constraints(angle, sign):
    rng = np.random.default_rng(3)
    n_solved = 0
    for _ in range(40):
        g, b, D = rng.normal(size=5), rng.normal(size=5), 0.02
        B = np.array([b, sign * b + angle * rng.normal(size=5), rng.normal(size=5)])
        reach = np.linalg.norm(B, axis=1) * np.sqrt(D)
        x_inside = rng.normal(size=5)
        x_inside *= np.sqrt(0.3 * D) / np.linalg.norm(x_inside)
        c = -B @ x_inside - rng.uniform(0, 1, 3) * rng.integers(0, 2, 3) * reach
        dual, x = solve(g, B, c, D)
        assert np.all(np.isfinite([*dual.nu, *x]))
        assert x @ x <= D * (1 + 1e-6)
        assert np.all(c + B @ x <= 1e-4 * reach)
        assert g @ x >= g @ x_inside - 1e-4 * np.linalg.norm(g) * np.sqrt(D)
        n_solved += 1
    assert n_solved == 40


def test_two_contradictory_constraints_meet_in_the_middle():
    """x_1 <= -0.06 and x_1 >= 0.02: at x_1 = -0.02 both are missed by 0.04."""
    B, c = np.array([[1.0, 0], [-2, 0]]), np.array([0.06, 0.04])
    assert solve(np.ones(2), B, c, 0.02) == (None, None)
    np.testing.assert_allclose(recover(B, c, 0.02), [-0.02, 0], atol=1e-5)
    np.testing.assert_allclose(recover(B, 100 * c, 0.02), [-np.sqrt(0.02), 0], atol=1e-6)


def test_many_contradictory_constraints_do_not_outvote_the_worst():
    """One constraint, missed by 1, against eight missed by 0.9: least squares alone would raise the one."""
    B, c = np.array([[1.0, 0]] + 8 * [[-1.0, 0]]), np.array([1.0] + 8 * [0.9])
    np.testing.assert_allclose(recover(B, c, 1.0), [-0.05, 0], atol=1e-3)


def test_recovery_from_rows_that_almost_cancel_keeps_the_trust_region():
    """Their multipliers are up to 1e7 times as long as the step, and so is the rounding."""
    rng = np.random.default_rng(5)
    for _ in range(1000):
        B, D = rng.normal(size=(3, 4)), 0.02
        B[1] = -B[0] + 10 ** rng.uniform(-9, -1) * B[1]
        c = np.array([1, -1 + 10 ** rng.uniform(-9, 0), rng.uniform(-1, 1)]) * np.linalg.norm(B, axis=1)
        x = recover(B, c, D)
        assert x @ x <= D * (1 + 1e-6)
        assert np.max((c + B @ x) / np.linalg.norm(B, axis=1)) <= 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4])
def test_recovery_from_nearly_parallel_rows_never_raises_the_worst_violation(angle, sign):
    rng = np.random.default_rng(6)
    for _ in range(100):
        B, D = rng.normal(size=(4, 3)), 1.0
        B[1], B[2] = sign * B[0] + angle * B[1], -B[0] + angle * B[2]
        B /= np.linalg.norm(B, axis=1, keepdims=True)
        c = np.array([1, 1 - rng.choice([0, 1e-6, 0.1]), 1 - rng.choice([0, 1e-7, 1e-4, 0.1]), rng.uniform(-1, 1)])
        x = recover(B, c, D)
        assert x @ x <= D * (1 + 1e-6)
        assert np.max(c + B @ x) <= 1 + 1e-9


def test_recovery_stays_where_every_step_raises_the_worst_violation():
    np.testing.assert_allclose(recover(np.array([[1.0, 0], [-1, 0]]), np.full(2, 0.1), 0.02), [0, 0], atol=1e-12)


def test_almost_contradictory_constraints_are_balanced():
    """The feasible set is a wedge a million radii away; the way there would hardly lower either violation."""
    B, c = np.array([[1.0, 1e-6], [-1, 1e-6]]), np.array([0.1, 0.02])
    np.testing.assert_allclose(recover(B, c, 0.02), [-0.04, 0], atol=2e-3)


def test_recovery_does_not_set_out_for_a_point_thousands_of_violations_away():
    """The wedge is at x_2 = -200; straight there the worst violation falls by 0.0001, between the planes by 0.01 and more."""
    B, c = np.array([[1.0, 3e-4], [-1, 3e-4]]), np.array([0.1, 0.02])
    assert np.max(c + B @ recover(B, c, 0.02)) <= 0.09


@pytest.mark.parametrize("g_scale", [1e-12, 1e12])
@pytest.mark.parametrize("row_scale", [1e-12, 1e12])
@pytest.mark.parametrize("x_scale", [1e-12, 1e12])
def test_units_do_not_matter(g_scale, row_scale, x_scale):
    rng = np.random.default_rng(4)
    for _ in range(20):
        g, B, c, D, H = random_problem(rng, 3)
        dual, x = solve(g, B, c, D, H)
        scales = np.array([row_scale, 1.0, 1 / row_scale])
        B_scaled, H_scaled = scales[:, None] * B / x_scale, H / x_scale**2
        scaled_dual, scaled_x = solve(g_scale * g / x_scale, B_scaled, scales * c, D, H_scaled)
        if dual is None:
            assert scaled_dual is None
            x, scaled_x = recover(B, c, D, H), recover(B_scaled, scales * c, D, H_scaled)
        else:
            np.testing.assert_allclose(scaled_dual.lam, g_scale * dual.lam, rtol=1e-9)
            np.testing.assert_allclose(scaled_dual.nu, g_scale * dual.nu / scales, rtol=1e-9)
        np.testing.assert_allclose(scaled_x, x_scale * x, atol=1e-9 * x_scale * abs(x).max())


# -- Properties


unit_floats = st.floats(-1, 1, allow_subnormal=False).map(lambda value: round(value, 3))


@st.composite
def problems(draw, min_costs=0, max_costs=4):
    """Small problems in x, with rows that repeat, vanish or contradict each other more often than chance has it."""
    n, n_costs = draw(st.integers(1, 5)), draw(st.integers(min_costs, max_costs))
    A, g = draw(arrays(float, (n, n), elements=unit_floats)), draw(arrays(float, n, elements=unit_floats))
    B, c = draw(arrays(float, (n_costs, n), elements=unit_floats)), draw(arrays(float, n_costs, elements=unit_floats))
    if n_costs > 1 and draw(st.booleans()):
        B[1] = draw(st.sampled_from([0, 1, -1, -2, 3])) * B[0] + draw(st.sampled_from([0, 1e-9, 1e-6, 1e-3])) * B[1]
    if n_costs > 0 and draw(st.booleans()):
        g = draw(arrays(float, n_costs, elements=unit_floats)) @ B + draw(st.sampled_from([0, 1e-9, 1e-5])) * g
    return (
        g,
        B,
        c * draw(st.sampled_from([0, 0.01, 0.1, 1])),
        draw(st.sampled_from([1e-3, 0.02, 1])),
        A @ A.T + 0.1 * np.eye(n),
    )


@REPRODUCIBLE
@given(problems())
def test_step_is_finite_in_the_trust_region_and_satisfies_the_constraints(problem):
    g, B, c, D, H = problem
    dual, x = solve(*problem)
    x0 = least_norm_point(B, c, H) if len(c) else np.zeros(len(g))
    if dual is None:
        if x0 is not None and not np.any(is_row_vanishing(B @ np.linalg.solve(H, B.T), c, D / 2)):
            assert x0 @ H @ x0 >= D * (1 - 1e-6)
        return
    assert np.isfinite(dual.lam)
    assert np.all(np.isfinite(dual.nu))
    assert np.all(dual.nu >= 0)
    assert x @ H @ x <= D * (1 + 1e-6)
    assert np.all(c + B @ x <= 1e-4 * radii(B, H, D))
    if x0 is not None and x0 @ H @ x0 <= D:
        assert g @ x >= g @ x0 - 1e-4 * np.sqrt(g @ np.linalg.solve(H, g) * D)


@REPRODUCIBLE
@given(problems(min_costs=1))
def test_recovery_step_stays_in_the_trust_region_and_lowers_the_worst_violation(problem):
    _, B, c, D, H = problem
    x = recover(B, c, D, H)
    assert x @ H @ x <= D * (1 + 1e-6)
    is_row_reachable = ~is_row_vanishing(B @ np.linalg.solve(H, B.T), c, D / 2)
    B, c = B[is_row_reachable], c[is_row_reachable]
    before, after = c / radii(B, H, D), (c + B @ x) / radii(B, H, D)
    assert max(0, after.max(initial=0)) <= max(0, before.max(initial=0)) * (1 + 1e-6)
    if not np.any(c > 0):
        np.testing.assert_array_equal(x, np.zeros(len(x)))
    elif np.linalg.matrix_rank(B, tol=1e-2 * abs(B).max()) == len(c):
        assert np.all(after[c > 0] < before[c > 0])


def assert_same_step(problem, x, expected):
    """Where the constraints leave little of g, the direction of that has few digits: one per digit that it is shorter."""
    g, B, _, _, H = problem
    L = np.linalg.cholesky(H)
    W, w = np.linalg.solve(L, B.T), np.linalg.solve(L, g)
    left = np.linalg.norm(w - W @ np.linalg.lstsq(W, w)[0]) / max(np.linalg.norm(w), 1e-300)
    np.testing.assert_allclose(x, expected, atol=1e-8 if left < 1e-7 else 1e-8 + 1e-14 / left**2)
    np.testing.assert_allclose(g @ x, g @ expected, atol=1e-8)


@REPRODUCIBLE
@given(problems(min_costs=2), st.randoms(use_true_random=False))
def test_permuting_the_constraints_permutes_their_multipliers(problem, random):
    g, B, c, D, H = problem
    if np.linalg.cond(B @ B.T) > 1e4:  # multipliers are not unique
        return
    order = random.sample(range(len(c)), len(c))
    dual, x = solve(*problem)
    permuted_dual, permuted_x = solve(g, B[order], c[order], D, H)
    if dual is None:
        assert permuted_dual is None
        np.testing.assert_allclose(recover(B[order], c[order], D, H), recover(B, c, D, H), atol=1e-8)
    else:
        np.testing.assert_allclose(permuted_dual.nu, dual.nu[order], rtol=1e-6, atol=1e-8)
        assert_same_step(problem, permuted_x, x)


@REPRODUCIBLE
@given(problems(min_costs=1), arrays(float, 4, elements=st.floats(-6, 6)))
def test_scaling_a_constraint_scales_its_multiplier_and_leaves_the_step(problem, exponents):
    g, B, c, D, H = problem
    if np.linalg.cond(B @ B.T) > 1e4:
        return
    a = 10 ** exponents[: len(c)]
    dual, x = solve(*problem)
    scaled_dual, scaled_x = solve(g, a[:, None] * B, a * c, D, H)
    if dual is None:
        assert scaled_dual is None
        np.testing.assert_allclose(recover(a[:, None] * B, a * c, D, H), recover(B, c, D, H), atol=1e-8)
    else:
        np.testing.assert_allclose(a * scaled_dual.nu, dual.nu, rtol=1e-6, atol=1e-8)
        assert_same_step(problem, scaled_x, x)


wide_floats = st.floats(-12, 12).map(lambda exponent: 10**exponent)
signed_wide_floats = st.tuples(wide_floats, st.sampled_from([-1, 0, 1])).map(lambda pair: pair[0] * pair[1])


@REPRODUCIBLE
@given(st.data(), st.integers(0, 4), wide_floats)
def test_trust_region_holds_for_numbers_that_belong_to_no_problem(data, n_costs, delta):
    """CG that stopped early, or broke down: S need not be positive definite, nor r fit q and S."""
    q = data.draw(signed_wide_floats)
    r, c = (data.draw(arrays(float, n_costs, elements=signed_wide_floats)) for _ in range(2))
    S = data.draw(arrays(float, (n_costs, n_costs), elements=signed_wide_floats))
    S = (S + S.T) / 2
    dual, mu = solve_dual(q, r, S, c, delta), recovery_coefficients(S, c, delta)
    assert np.all(np.isfinite(mu))
    steps = [(0.0, mu)]
    if dual is not None:
        assert np.all(np.isfinite([dual.lam, dual.g_coef, *dual.nu, *dual.b_coef]))
        steps.append((dual.g_coef, dual.b_coef))
    for a, b in steps:
        products = [a * a * q, *(-2 * a * b * r), *(np.outer(b, b) * S).ravel()]
        assert sum(products) <= 2 * delta * (1 + 1e-6) + 1e-14 * sum(map(abs, products))


def test_trust_region_holds_where_the_inner_products_contradict_each_other():
    """A cosine of 5, rows that cancel, r beyond every bound."""
    S, c = np.array([[1.0, 5], [5, 1]]), np.array([0.1, 0.1])
    dual, mu = solve_dual(1.0, np.zeros(2), S, c, 0.01), recovery_coefficients(S, c, 0.01)
    np.testing.assert_allclose(dual.g_coef**2 + dual.b_coef @ S @ dual.b_coef, 0.02, rtol=1e-6)
    np.testing.assert_allclose(mu @ S @ mu, 0.02, rtol=1e-6)
    dual = solve_dual(1e-300, np.full(2, 1e300), np.eye(2), -c, 0.01)
    assert np.all(np.isfinite([dual.lam, dual.g_coef, *dual.nu, *dual.b_coef]))


def test_only_the_symmetric_part_of_S_counts():
    r, c = np.array([0.7, 0.2]), np.array([0.03, -0.01])
    skewed = solve_dual(1.0, r, np.array([[2, 0.5], [0.1, 1]]), c, 0.01)
    np.testing.assert_allclose(skewed.nu, solve_dual(1.0, r, np.array([[2, 0.3], [0.3, 1]]), c, 0.01).nu, rtol=1e-12)
    assert np.all(skewed.nu > 0)


# -- Bad input


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", np.nan, "`q` must be finite, got nan"),
        ("q", np.ones(2), r"`q` must have shape \(\), got \(2,\)"),
        ("r", np.array([0.0, np.inf]), r"`r` must be finite, got \[ 0. inf\]"),
        ("r", np.zeros(3), r"`r` must have shape \(2,\), got \(3,\)"),
        ("S", np.full((2, 2), np.nan), r"`S` must be finite, got .*nan"),
        ("S", np.eye(3), r"`S` must have shape \(2, 2\), got \(3, 3\)"),
        ("c", np.array([np.nan, 0]), r"`c` must be finite, got \[nan  0.\]"),
        ("c", np.zeros((2, 1)), r"`c` must have shape \(2,\), got \(2, 1\)"),
        ("delta", np.inf, "`delta` must be finite, got inf"),
        ("delta", 0.0, "`delta` must be positive, got 0.0"),
        ("delta", -0.01, "`delta` must be positive, got -0.01"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(name, value, message):
    arguments = {"q": 1.0, "r": np.zeros(2), "S": np.eye(2), "c": np.zeros(2), "delta": 0.01} | {name: value}
    with pytest.raises(ValueError, match=message):
        solve_dual(**arguments)
    if name in ("S", "c", "delta"):
        with pytest.raises(ValueError, match=message):
            recovery_coefficients(*(arguments[key] for key in ("S", "c", "delta")))


def test_eleven_constraints_are_an_error():
    with pytest.raises(ValueError, match="at most 10 constraints can be solved for, got 11"):
        solve_dual(1.0, np.zeros(11), np.eye(11), np.zeros(11), 0.01)
