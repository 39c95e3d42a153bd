from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy.optimize import minimize
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.func import functional_call, hessian

from sb3_cpo.fisher import fisher_products, flat_grad, hessian_products
from sb3_cpo.trust_region import (
    Surrogates,
    conjugate_gradient,
    line_search,
    set_flat_params,
    trust_region_step,
)
from sb3_cpo.trust_region_algorithm import mean_kl_divergence

ACTION_SPACES = {
    "gaussian": (spaces.Box(-1, 1, (2,)), {}),
    "gsde": (spaces.Box(-1, 1, (2,)), {"use_sde": True}),
    "squashed_gsde": (spaces.Box(-1, 1, (2,)), {"use_sde": True, "squash_output": True}),
    "categorical": (spaces.Discrete(3), {}),
    "multi_categorical": (spaces.MultiDiscrete([2, 3]), {}),
    "bernoulli": (spaces.MultiBinary(3), {}),
}


def kl_by_hand(old, new):
    """KL(old || new) of the joint distribution, mean over states, from the formulas in a textbook."""
    old, new = old.distribution, new.distribution
    if isinstance(old, list):
        return sum(categorical_kl(p, q) for p, q in zip(old, new, strict=True)).mean()
    if isinstance(old, th.distributions.Categorical):
        return categorical_kl(old, new).mean()
    if isinstance(old, th.distributions.Bernoulli):
        p, q = old.probs, new.probs
        return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1).mean()
    spread = (old.stddev**2 + (old.mean - new.mean) ** 2) / (2 * new.stddev**2)
    return ((new.stddev / old.stddev).log() + spread - 0.5).sum(dim=1).mean()


def categorical_kl(old, new):
    return (old.probs * (old.probs.log() - new.probs.log())).sum(dim=1)


def distribution(policy, obs):
    """SB3's ``get_distribution``, which would cast to float32 on the way."""
    return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(policy.pi_features_extractor(obs)))


class KL(th.nn.Module):
    """Of the distribution at some parameters from the one at the policy's present parameters."""

    def __init__(self, policy, obs, kl=mean_kl_divergence):
        super().__init__()
        self.policy, self.obs, self.kl = policy, obs, kl
        with th.no_grad():
            self.old = copy(distribution(policy, obs))  # SB3's distributions are mutable

    def forward(self):
        return self.kl(self.old, distribution(self.policy, self.obs))


def make_policy(name):
    th.manual_seed(0)
    space, kwargs = ACTION_SPACES[name]
    policy = ActorCriticPolicy(
        spaces.Box(-1, 1, (3,)), space, lambda _: 1e-3, net_arch={"pi": [4], "vf": [4]}, ortho_init=False, **kwargs
    ).double()
    if kwargs.get("use_sde"):
        policy.reset_noise()
    obs = th.as_tensor(np.random.default_rng(0).normal(size=(7, 3)))
    names = [name for name, _ in policy.named_parameters() if "value" not in name]
    return policy, obs, names, [policy.get_parameter(name) for name in names]


def full_hessian(module, policy, names, params):
    """Of a module's output with respect to the flat parameters, by ``torch.func``."""
    rest = {
        "policy." + key: value.detach()
        for key, value in {**dict(policy.named_parameters()), **dict(policy.named_buffers())}.items()
    }
    shapes = [param.shape for param in params]

    def at(flat):
        chunks = flat.split([shape.numel() for shape in shapes])
        new = {"policy." + name: chunk.view(shape) for name, chunk, shape in zip(names, chunks, shapes, strict=True)}
        return functional_call(module, {**rest, **new}, ())

    return hessian(at)(th.cat([param.detach().flatten() for param in params]))


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_fisher_products_are_those_of_the_full_hessian(name):
    policy, obs, names, params = make_policy(name)
    # The oracle is made of the formulas by hand and torch.func
    H = full_hessian(KL(policy, obs, kl_by_hand), policy, names, params)
    assert H.abs().max() > 1e-3
    assert flat_grad(KL(policy, obs)(), params).abs().max() < 1e-12
    by_hessian = hessian_products(KL(policy, obs)(), params)
    by_distribution = fisher_products(distribution(policy, obs), params)
    for vector in th.as_tensor(np.random.default_rng(1).normal(size=(3, len(H)))):
        th.testing.assert_close(by_hessian(vector), H @ vector)
        th.testing.assert_close(by_distribution(vector), H @ vector)


def test_fisher_product_where_the_noise_is_not_learned():
    policy, obs, names, params = make_policy("gaussian")
    policy.log_std.requires_grad_(False)
    pairs = [(name, param) for name, param in zip(names, params, strict=True) if name != "log_std"]
    names, params = [name for name, _ in pairs], [param for _, param in pairs]
    H = full_hessian(KL(policy, obs, kl_by_hand), policy, names, params)
    vector = th.as_tensor(np.random.default_rng(1).normal(size=len(H)))
    th.testing.assert_close(fisher_products(distribution(policy, obs), params)(vector), H @ vector)


def test_unknown_distributions_have_no_closed_form():
    unknown = SimpleNamespace(distribution=th.distributions.Gumbel(th.zeros(2, 1, requires_grad=True), th.ones(2, 1)))
    assert fisher_products(unknown, []) is None


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_divergence_is_that_of_the_joint_distribution_from_the_old_policy(name):
    policy, obs, _, params = make_policy(name)
    kl, by_hand = KL(policy, obs), KL(policy, obs, kl_by_hand)
    with th.no_grad():
        for param in params:
            param += 0.3 * th.randn_like(param)
    expected, backwards = by_hand(), kl_by_hand(distribution(policy, obs), kl.old)
    assert abs(expected - backwards) > 1e-3 * expected  # the two directions can be told apart
    th.testing.assert_close(kl(), expected)


def test_flat_grad_by_hand():
    a, b, unused = (th.nn.Parameter(th.tensor(value)) for value in ([[1.0, 2], [3, 4]], [5.0], [6.0, 7]))
    output = (a**2).sum() * b.sum()
    assert flat_grad(output, [a, unused, b]).tolist() == [10, 20, 30, 40, 0, 0, 30]
    # with a graph, the gradient has a gradient: d/db of the first entry 2 a b
    grad = flat_grad(output, [a, b], create_graph=True)
    assert flat_grad(grad[0], [b]).tolist() == [2]
    assert flat_grad([2 * b, b**2], [b], [th.tensor([3.0]), th.tensor([0.5])]).tolist() == (6 + b).tolist()


def spd(rng, n, condition=30.0):
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return th.as_tensor(Q * np.geomspace(1, condition, n) @ Q.T)


def test_conjugate_gradients_solve_several_systems_at_once():
    rng = np.random.default_rng(0)
    H, rhs = spd(rng, 12), th.as_tensor(rng.normal(size=(4, 12)))
    solutions, residuals = conjugate_gradient(lambda vectors: vectors @ H, rhs, max_steps=60, residual_tol=1e-24)
    th.testing.assert_close(solutions, th.linalg.solve(H, rhs.T).T)
    assert (residuals < 1e-20).all()


def test_conjugate_gradients_of_wildly_scaled_and_zero_systems():
    rng = np.random.default_rng(1)
    H = spd(rng, 12)
    rhs = th.as_tensor(rng.normal(size=(5, 12)) * np.array([1e-12, 1, 1e9, 0, 1e-30])[:, None])
    solutions, residuals = conjugate_gradient(lambda vectors: vectors @ H, rhs, max_steps=60, residual_tol=1e-24)
    expected = th.linalg.solve(H, rhs.T).T
    assert ((solutions - expected).norm(dim=1) <= 1e-8 * expected.norm(dim=1)).all()
    assert not solutions[3].any()
    assert residuals[3] == 0


def test_conjugate_gradients_do_not_ask_for_products_of_rows_that_are_done():
    rng = np.random.default_rng(2)
    H, counts = spd(rng, 6), []
    eigenvector = th.linalg.eigh(H)[1][:, 0]
    rhs = th.stack([eigenvector, th.zeros(6), th.as_tensor(rng.normal(size=6))])

    def product(vectors):
        counts.append(len(vectors))
        return vectors @ H

    conjugate_gradient(product, rhs, max_steps=6)
    assert counts[:2] == [2, 1]


def test_residuals_are_the_true_ones_when_the_steps_run_out():
    rng = np.random.default_rng(3)
    H, rhs = spd(rng, 30, 1e4), th.as_tensor(rng.normal(size=(2, 30)))
    solutions, residuals = conjugate_gradient(lambda vectors: vectors @ H, rhs, max_steps=5)
    true = ((rhs - solutions @ H).norm(dim=1) / rhs.norm(dim=1)) ** 2
    assert true.min() > 1e-8
    th.testing.assert_close(residuals, true, rtol=1e-6, atol=0.0)


def test_a_system_without_curvature_is_not_called_solved():
    H = th.diag(th.tensor([1.0, 0.0]))
    solutions, residuals = conjugate_gradient(lambda vectors: vectors @ H, th.tensor([[3.0, 0.0], [0.0, 2.0]]))
    th.testing.assert_close(solutions, th.tensor([[3.0, 0.0], [0.0, 0.0]]))
    th.testing.assert_close(residuals, th.tensor([0.0, 1.0]))


# -- Line search: one parameter x, from 0, of which everything is a known function


def search(step, objective, kl, costs=(), violation=(), **kwargs):
    """Line search of a parameter that begins at 0.1; functions take its change."""
    x = th.nn.Parameter(th.tensor([[0.1]]))

    def evaluate():
        change = x.detach().double().squeeze() - np.float32(0.1)
        values = [th.as_tensor(float(f(change.item())), dtype=th.float64) for f in (objective, *costs, kl)]
        return Surrogates(values[0], th.stack(values[1:-1]) if costs else th.zeros(0, dtype=th.float64), values[-1])

    found = line_search([x], th.tensor([step]), evaluate, evaluate(), np.array(violation, dtype=float), 0.01, **kwargs)
    return found, x.item() - np.float32(0.1), x


def up(change):
    return change


def no_kl(change):
    return 0.0


def test_full_step_is_kept_when_nothing_speaks_against_it():
    found, change, _ = search(1.0, up, no_kl)
    assert found.step_size == 1
    np.testing.assert_allclose(change, 1.0, rtol=1e-6)
    assert found.surrogates.objective == pytest.approx(1.0)
    assert not any(found.rejections.values())


def test_step_shrinks_until_the_divergence_fits():
    # kl(0.8^2) = 0.0064 fits, kl(0.8) = 0.0128 does not
    found, change, _ = search(1.0, up, lambda change: 0.016 * abs(change))
    assert found.step_size == pytest.approx(0.8**3)
    assert change == pytest.approx(0.8**3, rel=1e-6)
    assert found.rejections == {"objective": 0, "kl": 3, "cost": 0, "not_finite": 0}


def test_a_divergence_of_exactly_the_target_is_inside():
    assert search(1.0, up, lambda change: 0.01 if change else 0.0)[0].step_size == 1
    assert search(1.0, up, lambda change: 0.0100001 if change else 0.0)[0].step_size == 0


def test_objective_must_rise_strictly_while_no_limit_is_violated():
    assert search(1.0, lambda change: 0.0, no_kl)[0].rejections["objective"] == 15
    found = search(1.0, lambda change: change if change < 0.5 else -change, no_kl)[0]
    assert found.step_size == pytest.approx(0.8**4)
    assert found.rejections["objective"] == 4
    # a violation of exactly 0 is none
    assert search(1.0, lambda change: -change, no_kl, [no_kl], [0.0])[0].step_size == 0


def test_objective_is_not_tested_where_a_limit_is_violated():
    found = search(1.0, lambda change: -change, no_kl, [lambda change: -change], [0.1])[0]
    assert found.step_size == 1
    # nor where only one of two is
    found = search(1.0, lambda change: -change, no_kl, [lambda change: -change, no_kl], [0.1, -5.0])[0]
    assert found.step_size == 1


def test_a_cost_below_its_limit_may_rise_by_its_room():
    found = search(1.0, up, no_kl, [up], [-0.6])[0]
    assert found.step_size == pytest.approx(0.8**3)  # 0.64 > 0.6 > 0.512
    assert found.rejections["cost"] == 3
    assert search(1.0, up, no_kl, [up], [-1.1])[0].step_size == 1


def test_a_violated_cost_may_not_rise_at_all():
    assert search(1.0, up, no_kl, [up], [0.6])[0].rejections["cost"] == 15
    assert search(1.0, up, no_kl, [lambda change: -change], [0.6])[0].step_size == 1
    # each cost has its own room
    assert search(1.0, up, no_kl, [lambda change: -change, up], [0.6, -0.3])[0].step_size == pytest.approx(0.8**6)


def test_number_of_trials_and_shrinking_factor():
    found = search(1.0, up, lambda change: abs(change) / 60, max_iter=3)[0]
    assert found.step_size == pytest.approx(0.8**3) or found.step_size == 0
    assert search(1.0, up, lambda change: abs(change), shrinking_factor=0.5, max_iter=10)[0].step_size == 0.5**7
    assert search(1.0, up, lambda change: abs(change), shrinking_factor=0.5, max_iter=7)[0].step_size == 0


@pytest.mark.parametrize("what", ["objective", "kl", "cost"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_are_restored_bit_for_bit_where_anything_is_not_finite(what, value):
    def broken(change):
        return value if change else 0.0

    functions = {"objective": up, "kl": no_kl, "cost": no_kl} | {what: broken}
    found, _, x = search(1.0, functions["objective"], functions["kl"], [functions["cost"]], [-1.0])
    assert found.step_size == 0
    assert found.rejections["not_finite"] == 15
    assert x.item() == np.float32(0.1)
    assert found.surrogates.objective == 0


def test_parameters_of_any_shape_are_restored_bit_for_bit():
    rng = np.random.default_rng(0)
    params = [th.nn.Parameter(th.as_tensor(rng.normal(size=shape), dtype=th.float32)) for shape in [(3, 2), (5,), ()]]
    before = [param.detach().clone() for param in params]

    def refused():
        return Surrogates(th.tensor(0.0), th.zeros(0), th.tensor(1.0))

    found = line_search(params, th.as_tensor(rng.normal(size=12), dtype=th.float32), refused, refused(), np.zeros(0), 0.01)
    assert found.step_size == 0
    assert all(th.equal(param, old) for param, old in zip(params, before, strict=True))


def test_set_flat_params_writes_in_order():
    params = [th.nn.Parameter(th.zeros(2, 2)), th.nn.Parameter(th.zeros(1))]
    set_flat_params(params, th.arange(5.0))
    assert params[0].tolist() == [[0, 1], [2, 3]]
    assert params[1].tolist() == [4]


# -- The whole step, on problems that scipy can solve as well


class SoftmaxProblem:
    """A table of logits; objective and costs are expectations over the actions of random numbers."""

    def __init__(self, rng, n_costs, n_states=3, n_actions=4):
        self.old = rng.normal(size=(n_states, n_actions))
        self.A = th.as_tensor(rng.normal(size=(n_states, n_actions)))
        self.C = th.as_tensor(rng.normal(size=(n_costs, n_states, n_actions)))
        self.logits = th.nn.Parameter(th.tensor(self.old))
        self.old_probs = th.softmax(th.as_tensor(self.old), 1)

    def surrogates(self, logits):
        probs = th.softmax(logits, 1)
        kl = (self.old_probs * (self.old_probs / probs).log()).sum(1).mean()
        return Surrogates((probs * self.A).sum(1).mean(), (probs * self.C).sum(2).mean(1), kl)

    def change(self, logits):
        with th.no_grad():
            old, new = self.surrogates(th.as_tensor(self.old)), self.surrogates(th.as_tensor(logits))
        return (new.objective - old.objective).item(), (new.costs - old.costs).numpy(), new.kl_div.item()

    def step(self, violation, target_kl, **kwargs):
        kwargs = {"cg_damping": 1e-6, "cg_max_steps": 50, **kwargs}
        return trust_region_step([self.logits], lambda: self.surrogates(self.logits), violation, target_kl, **kwargs)

    def best(self, violation, target_kl):
        """The true problem, no linearisation, by SLSQP in units of the trust region."""
        old, scale = self.surrogates(th.tensor(self.old)), np.sqrt(target_kl)

        def values(x):
            new = self.surrogates(th.tensor(self.old) + scale * x.reshape(self.old.shape))
            rises = th.cat([(new.objective - old.objective).reshape(1), new.costs - old.costs]) / scale
            return th.cat([rises, (new.kl_div / target_kl).reshape(1)])

        def at(x):
            with th.no_grad():
                return values(th.as_tensor(x)).numpy()

        def gradients(x):
            return th.autograd.functional.jacobian(values, th.as_tensor(x)).numpy()

        def room(x):
            return np.append(-violation / scale - at(x)[1:-1], 1 - at(x)[-1])

        constraints = {"type": "ineq", "fun": room, "jac": lambda x: -gradients(x)[1:]}
        start = 0.3 * np.random.default_rng(0).normal(size=self.old.size)
        options = {"maxiter": 500, "ftol": 1e-10}
        found = minimize(
            lambda x: -at(x)[0],
            start,
            jac=lambda x: -gradients(x)[0],
            constraints=constraints,
            options=options,
            method="SLSQP",
        )
        assert found.success, found.message
        assert room(found.x).min() > -1e-6
        return at(found.x)[0] * scale


@pytest.mark.parametrize("n_costs", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_step_is_the_solution_of_the_true_problem_in_a_small_trust_region(n_costs, seed):
    target_kl, problem = 1e-6, SoftmaxProblem(np.random.default_rng(seed), n_costs)
    # Between the cost of the unconstrained step and the least possible cost, so that the limits bind
    fine = {"shrinking_factor": 0.999, "line_search_max_iter": 100}
    probe = SoftmaxProblem(np.random.default_rng(seed), n_costs).step(np.full(n_costs, -1e9), target_kl, **fine)
    violation = -probe.cost_surrogate_change + 0.3 * probe.reachable_cost_change
    step = problem.step(violation, target_kl, **fine)
    objective, costs, kl = problem.change(problem.logits.detach().numpy())
    assert step.is_feasible
    assert step.step_size > 0.95
    assert kl <= target_kl
    radius = np.sqrt(target_kl)
    assert np.all(violation + costs < 0.01 * radius)
    best = problem.best(violation, target_kl)
    assert abs(objective - best) < 0.01 * abs(probe.objective_change)
    if n_costs:
        assert probe.objective_change > 1.01 * objective
        assert step.nu.max() > 0
    np.testing.assert_allclose(step.objective_change, objective, atol=1e-12)
    np.testing.assert_allclose(step.cost_surrogate_change, costs, atol=1e-12)
    np.testing.assert_allclose(step.linear_cost_change * step.step_size, costs, atol=0.01 * radius)


@pytest.mark.parametrize("n_costs", [1, 2])
@pytest.mark.parametrize("damping", [1e-6, 0.1])
def test_recovery_step_stays_in_the_trust_region_and_lowers_every_violated_cost(n_costs, damping):
    for seed in range(5):
        problem = SoftmaxProblem(np.random.default_rng(seed), n_costs)
        step = problem.step(np.full(n_costs, 1e3), 1e-3, cg_damping=damping)
        assert not step.is_feasible
        _, costs, kl = problem.change(problem.logits.detach().numpy())
        assert 0 < kl <= 1e-3
        assert np.all(costs < 0)
        assert np.all(step.cost_surrogate_change < 0)
        assert (step.lam, *step.nu) == (0, *[0] * n_costs)


def test_recovery_step_of_one_constraint_is_steepest_descent_in_the_geometry_of_the_policy():
    problem = SoftmaxProblem(np.random.default_rng(0), 1)
    H = hessian(lambda logits: problem.surrogates(logits).kl_div)(problem.logits.detach()).reshape(12, 12) + 0.1 * th.eye(12)
    b = th.autograd.grad(problem.surrogates(problem.logits).costs[0], problem.logits)[0].flatten()
    Hb = th.linalg.solve(H, b)
    expected = -th.sqrt(2 * 1e-3 / (b @ Hb)) * Hb
    step = problem.step(np.array([100.0]), 1e-3, cg_damping=0.1)
    change = (problem.logits.detach() - th.as_tensor(problem.old)).flatten()
    assert step.step_size == 1
    th.testing.assert_close(change, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(step.reachable_cost_change, th.sqrt(2 * 1e-3 * (b @ Hb)), rtol=1e-4)


def test_step_of_the_specification_s_vector():
    """H = [[2, .5], [.5, 1]], g = (1, -.3), b = (.8, .6), c = .03, D = .02, by hand."""
    x = th.nn.Parameter(th.zeros(2, dtype=th.float64))
    H = th.tensor([[2, 0.5], [0.5, 1]], dtype=th.float64)
    g, b = th.tensor([1, -0.3], dtype=th.float64), th.tensor([[0.8, 0.6]], dtype=th.float64)
    step = trust_region_step(
        [x], lambda: Surrogates(g @ x, b @ x, x @ H @ x / 2), np.array([0.03]), 0.01 + 1e-12, cg_damping=0.0
    )
    np.testing.assert_allclose(x.detach(), [0.069266, -0.142354], atol=1e-6)
    np.testing.assert_allclose([step.lam, *step.nu], [6.635601, 0.691328], atol=1e-5)
    np.testing.assert_allclose(step.linear_cost_change, [-0.03], atol=1e-9)
    assert step.step_size == 1


def test_step_stays_in_the_trust_region_when_conjugate_gradients_stop_early():
    """The solver sees inner products with inexact solutions; the step's length is checked against the matrix itself."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        H, g, B = spd(rng, 40, 1e6), th.as_tensor(rng.normal(size=40)), th.as_tensor(rng.normal(size=(2, 40)))
        for share in ([-9, -9], [0.5, -0.5], [-0.1, 0.3], [9, 9]):
            x, kls = th.nn.Parameter(th.zeros(40, dtype=th.float64)), []

            def evaluate(x=x, kls=kls, H=H, g=g, B=B):
                kls.append(float(x.detach() @ H @ x.detach() / 2))
                return Surrogates(g @ x, B @ x, x @ H @ x / 2)

            reachable = th.sqrt(0.02 * (B * th.linalg.solve(H, B.T).T).sum(1)).numpy()
            step = trust_region_step([x], evaluate, np.array(share) * reachable, 0.01, cg_damping=0.0, cg_max_steps=3)
            assert step.cg_residual > 1e-3
            assert max(kls) <= 0.01 * (1 + 1e-9)


def test_a_cost_that_nothing_changes_is_reported_and_does_no_harm():
    problem = SoftmaxProblem(np.random.default_rng(0), 2)
    problem.C[1] = 3.0  # whatever the action
    step = problem.step(np.array([-1.0, -1.0]), 1e-3)
    assert step.is_vanishing.tolist() == [False, True]
    assert step.is_feasible
    assert step.objective_change > 0
    problem = SoftmaxProblem(np.random.default_rng(0), 2)
    problem.C[1] = 3.0
    step = problem.step(np.array([1.0, 1.0]), 1e-3)
    assert step.is_vanishing.tolist() == [False, True]
    assert not step.is_feasible
    assert step.cost_surrogate_change[0] < 0


def test_a_step_that_can_lower_nothing_is_no_step():
    problem = SoftmaxProblem(np.random.default_rng(0), 1)
    problem.C[0] = 3.0  # whatever the action, and over its limit
    step = problem.step(np.array([1.0]), 1e-3)
    assert step.step_size == 0
    assert not any(step.rejections.values())
    assert problem.logits.detach().numpy().tolist() == problem.old.tolist()


def test_nothing_moves_where_there_is_nothing_to_gain():
    problem = SoftmaxProblem(np.random.default_rng(0), 0)
    problem.A[:] = 1.0
    step = problem.step(np.zeros(0), 1e-3)
    assert step.step_size == 0 or abs(step.objective_change) < 1e-12
    assert np.abs(problem.logits.detach().numpy() - problem.old).max() < 1e-6


def test_curvature_can_come_from_fewer_states():
    """Half the Fisher matrix: the step grows by sqrt(2) before its divergence is tested."""
    steps = []
    for share in (1.0, 0.5):
        x = th.nn.Parameter(th.zeros(3, dtype=th.float64))
        g = th.tensor([1.0, 2, 3], dtype=th.float64)
        trust_region_step(
            [x],
            lambda x=x, g=g: Surrogates(g @ x, th.zeros(0, dtype=th.float64), x @ x / 20),
            np.zeros(0),
            0.01,
            cg_damping=0.0,
            fisher_product=lambda vector, share=share: share * vector,
        )
        steps.append(x.detach().norm().item())
    np.testing.assert_allclose(steps, [np.sqrt(0.02), np.sqrt(0.04)], rtol=1e-6)


def test_objective_that_is_not_finite_leaves_the_parameters_alone():
    x = th.nn.Parameter(th.ones(3))
    with pytest.raises(ValueError, match="finite"):
        trust_region_step([x], lambda: Surrogates(x.sum() * np.nan, th.zeros(0), (x**2).sum()), np.zeros(0), 0.01)
    assert x.tolist() == [1, 1, 1]
