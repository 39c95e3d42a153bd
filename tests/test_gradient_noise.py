"""The Gram matrix without noise, against what every draw of signs gives and against a problem whose gradient is known."""

from itertools import product

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_cpo.cost_surrogates import random_signs
from sb3_cpo.gradient_noise import LEAST_SIGNAL, bound_rows, constraint_basis, signal_share, subtract_noise
from sb3_cpo.trust_region import NoiseProbe, Surrogates, trust_region_step


def gram_of(vectors):
    return vectors @ vectors.T


def test_all_draws_of_signs_together_are_the_products_of_different_episodes():
    """E[b_z b_z'] = sum_e b_e b_e': what is left of the Gram matrix are the products of different episodes, scaled up."""
    rng = np.random.default_rng(0)
    n_episodes = 5
    contributions = rng.normal(size=(n_episodes, 2, 7)) + 3.0  # of two signals
    gram = gram_of(contributions.sum(axis=0))
    flipped = [np.tensordot(signs, contributions, axes=1) for signs in product([-1.0, 1.0], repeat=n_episodes)]
    denoised, share = subtract_noise(gram, gram_of(np.concatenate(flipped)), n_episodes)
    different = sum(contributions[one] @ contributions[other].T for one in range(5) for other in range(5) if one != other)
    np.testing.assert_allclose(denoised, different * n_episodes / (n_episodes - 1), rtol=1e-9)
    own = sum(np.diagonal(gram_of(contribution)) for contribution in contributions)
    np.testing.assert_allclose(share, own / np.diagonal(gram))


@pytest.mark.parametrize("n_episodes", [2, 3, 5, 6])
def test_balanced_signs_measure_the_same_noise(n_episodes):
    """All draws of them together say what all draws of independent signs say; of episodes that are alike, each single one."""
    contributions = np.random.default_rng(0).normal(size=(n_episodes, 2, 7)) + 3.0
    gram = gram_of(contributions.sum(axis=0))
    draws = list(product([-1.0, 1.0], repeat=n_episodes))
    independent = gram_of(np.concatenate([np.tensordot(signs, contributions, axes=1) for signs in draws]))
    balanced = gram_of(np.concatenate([np.tensordot(signs, contributions, axes=1) for signs in draws if abs(sum(signs)) < 2]))
    expected, share = subtract_noise(gram, independent, n_episodes)
    denoised, same_share = subtract_noise(gram, balanced, n_episodes, n_unpaired=n_episodes % 2)
    np.testing.assert_allclose(denoised, expected, rtol=1e-9)
    np.testing.assert_allclose(same_share, share, rtol=1e-9)
    # In each draw, one of so many episodes that are alike is left
    alike = gram / n_episodes**2 if n_episodes % 2 else np.zeros((2, 2))
    denoised, share = subtract_noise(gram, alike, n_episodes, n_unpaired=n_episodes % 2)
    np.testing.assert_allclose(denoised, gram)
    np.testing.assert_allclose(share, 1 / n_episodes)


def test_the_estimate_is_unbiased():
    """Batches of noisy episodes: on average, what is left is the Gram matrix of the true gradients, and the raw one is not."""
    rng = np.random.default_rng(1)
    true = np.zeros((2, 40))
    true[0, :3], true[1, 1:4] = 1.0, -1.0
    n_episodes, raw, left = 10, [], []
    for _ in range(4000):
        contributions = true / n_episodes + rng.normal(size=(n_episodes, 2, 40)) * 0.05
        signs = rng.choice([-1.0, 1.0], size=n_episodes)
        gram = gram_of(contributions.sum(axis=0))
        noise = gram_of(np.tensordot(signs, contributions, axes=1))
        raw.append(gram)
        left.append((gram - noise) * n_episodes / (n_episodes - 1))
    np.testing.assert_allclose(np.mean(left, axis=0), gram_of(true), atol=0.08)
    assert np.mean(raw, axis=0)[0, 0] > 3.8


def test_what_is_left_is_bounded_where_a_draw_says_more_noise_than_there_is_anything():
    gram = np.array([[2.0, -1.0], [-1.0, 1.0]])
    noise = np.array([[1.0, 0.5], [0.5, 3.0]])
    denoised, share = subtract_noise(gram, noise, 20)
    np.testing.assert_allclose(np.diagonal(denoised), [20 / 19, LEAST_SIGNAL])
    assert abs(denoised[0, 1]) <= np.sqrt(denoised[0, 0] * denoised[1, 1]) + 1e-12
    np.testing.assert_allclose(share, [0.5, 3.0])
    # From one episode nothing can be said
    np.testing.assert_array_equal(subtract_noise(gram, noise, 1)[0], gram)


def random_problem(seed, closeness):
    """A Gram matrix of three signals, of which two are parallel but for ``closeness``, and what draws of signs say of it."""
    rng = np.random.default_rng(seed)
    vectors, noise = rng.normal(size=(3, 6)) * [[1.0], [30.0], [1e-3]], rng.normal(size=(3, 6)) * [[0.5], [15.0], [5e-4]]
    vectors[1] = -30 * vectors[0] + closeness * vectors[1]
    return gram_of(vectors), gram_of(noise)


@pytest.mark.parametrize("closeness", [1e-4, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_step_changes_a_signal_by_more_than_a_gradient_can(seed, closeness):
    """Where two gradients are nearly parallel, their difference is a step of no length, whatever the signs say of it."""
    gram, noise = random_problem(seed, closeness)
    denoised, _ = subtract_noise(gram, noise, 20)
    rows = bound_rows(gram, denoised)
    # The steps that change a signal most, and others
    steps = [*np.linalg.solve(gram, rows.T).T, *np.random.default_rng(seed).normal(size=(50, 3))]
    for step in steps:
        assert np.all((rows @ step) ** 2 <= np.diagonal(denoised) * (step @ gram @ step) * (1 + 1e-6))
    # As much as it may, where it was too much; a signal's own product stays
    np.testing.assert_allclose(np.diagonal(rows), np.diagonal(denoised))
    changes = [row @ np.linalg.solve(gram, row) for row in denoised], [row @ np.linalg.solve(gram, row) for row in rows]
    for before, after, own in zip(*changes, np.diagonal(denoised), strict=True):
        np.testing.assert_allclose(after, min(before, own), rtol=1e-6)


def test_rows_that_a_gradient_can_have_are_left_as_they_are():
    gram, noise = random_problem(0, 1.0)
    denoised, _ = subtract_noise(gram, noise * 1e-2, 10**6)
    np.testing.assert_array_equal(bound_rows(gram, denoised), denoised)
    assert bound_rows(gram, gram) is gram


def test_where_gradients_are_parallel_there_is_one_step_only():
    """What is said of their difference, which is no step, is left out, and r and S belong to gradients."""
    gram = np.array([[1.0, 2.0], [2.0, 4.0]])
    rows = bound_rows(gram, np.array([[0.9, 0.42], [0.42, 0.2]]))
    np.testing.assert_allclose(rows[:, 1], 2 * rows[:, 0])
    assert rows[1, 0] ** 2 <= gram[0, 0] * (rows[1] @ np.linalg.pinv(gram) @ rows[1]) * (1 + 1e-9)


@pytest.mark.filterwarnings("error")
def test_a_cost_that_no_parameter_changes_has_no_noise():
    gram, noise = np.diag([2.0, 0.0]), np.diag([0.5, 0.0])
    denoised, share = subtract_noise(gram, noise, 4)
    np.testing.assert_array_equal(share, [0.25, 0.0])
    np.testing.assert_allclose(denoised, np.diag([1.5 * 4 / 3, 0.0]))
    np.testing.assert_array_equal(constraint_basis(gram, denoised), [[0.0, 0.0]])


def test_without_noise_the_basis_is_that_of_the_paper():
    gram = np.array([[2.0, -1.0, 0.3], [-1.0, 1.5, 0.2], [0.3, 0.2, 0.7]])
    np.testing.assert_array_equal(constraint_basis(gram, gram), np.eye(3)[1:])
    np.testing.assert_allclose(constraint_basis(gram, gram.copy()), np.eye(3)[1:], atol=1e-12)


class Problem:
    """
    Surrogates that are linear in twelve parameters, a KL divergence that is half their squared norm. The cost falls along the
    first parameter for every episode; along the others it is the noise of single episodes.
    """

    def __init__(self, noise, unit=1.0, n_episodes=8):
        rng = np.random.default_rng(3)
        self.params = [nn.Parameter(th.zeros(12, dtype=th.float64))]
        common = np.zeros((n_episodes, 12))
        common[:, 0] = 1.0 / n_episodes
        odd = rng.normal(size=(n_episodes, 12)) * noise
        odd[:, :2] = 0.0
        self.costs = th.as_tensor(unit * (common + odd))
        self.objective = th.as_tensor(np.tile([0.0, 1.0, *[0.0] * 10], (n_episodes, 1)) / n_episodes)
        self.n_episodes = n_episodes

    def evaluate(self):
        x = self.params[0]
        return Surrogates((self.objective @ x).sum(), (self.costs @ x).sum().reshape(1), (x @ x) / 2)

    def probe(self):
        signs = th.as_tensor(list(product([-1.0, 1.0], repeat=self.n_episodes)), dtype=th.float64)
        x = self.params[0]
        return NoiseProbe(signs @ (self.objective @ x), (signs @ (self.costs @ x)).unsqueeze(1), self.n_episodes)

    def true_change(self, unit=1.0):
        return unit * float(self.params[0][0])

    def step(self, violation, corrected, **kwargs):
        with th.no_grad():
            self.params[0].zero_()
        probe = self.probe if corrected else None
        return trust_region_step(
            self.params, self.evaluate, np.array([violation]), 0.02, cg_damping=0.0, probe_noise=probe, **kwargs
        )


def test_a_corrected_step_lowers_the_cost_that_a_plain_one_lowers_on_its_batch_only():
    problem = Problem(noise=0.1)
    plain = problem.step(0.05, corrected=False)
    plain_change = problem.true_change()
    corrected = problem.step(0.05, corrected=True)
    # On the batch, the cost falls by what it must; three fifths of that come true
    np.testing.assert_allclose(plain.cost_surrogate_change, -0.05, rtol=1e-6)
    np.testing.assert_allclose(plain_change, -0.03, atol=0.003)
    # The corrected step asks for more on this batch, and its prediction comes true up to a fifth
    np.testing.assert_allclose(corrected.predicted_cost_change, -0.05, rtol=1e-6)
    np.testing.assert_allclose(problem.true_change(), -0.05, rtol=0.2)
    assert corrected.cost_surrogate_change < -0.09
    assert 0.5 < corrected.gradient_noise[1] < 0.6


@pytest.mark.parametrize("seed", range(10))
def test_where_one_decision_makes_both_return_and_cost_no_price_is_found_at_which_the_cost_falls(seed):
    """Both gradients are parallel but for a little noise: less cost is less return, whatever the signs say of the rest."""
    rng = np.random.default_rng(seed)
    n_episodes, params = 20, [nn.Parameter(th.zeros(5, dtype=th.float64))]
    costs = np.zeros((n_episodes, 5))
    costs[:, 0] = (1 + 0.2 * rng.normal(size=n_episodes)) / n_episodes
    objective = 0.1 * costs * (1 + 0.5 * rng.normal(size=(n_episodes, 1))) + 1e-5 * rng.normal(size=(n_episodes, 5))
    signs = random_signs(th.arange(n_episodes), 2, th.Generator().manual_seed(seed)).double()
    objective, costs = th.as_tensor(objective), th.as_tensor(costs)

    def evaluate():
        x = params[0]
        return Surrogates((objective @ x).sum(), (costs @ x).sum().reshape(1), (x @ x) / 2)

    def probe():
        x = params[0]
        return NoiseProbe(signs @ (objective @ x), (signs @ (costs @ x)).unsqueeze(1), n_episodes, n_unpaired=0)

    step = trust_region_step(params, evaluate, np.array([0.05]), 0.02, cg_damping=0.0, probe_noise=probe)
    change = float(costs.sum(dim=0) @ params[0].detach())
    assert step.step_size > 0
    assert step.gradient_noise[1] < 0.1
    np.testing.assert_allclose(step.predicted_cost_change, -0.05, rtol=0.25)
    assert -0.06 < change < -0.03


def test_a_step_that_the_line_search_shortens_is_expected_to_change_the_cost_by_so_much_less():
    class Curved(Problem):
        def evaluate(self):
            surrogates = super().evaluate()
            # Grows faster than its curvature at the old policy says
            return surrogates._replace(kl_div=surrogates.kl_div * (1 + 100 * surrogates.kl_div))

    whole = Problem(noise=0.1).step(0.05, corrected=True)
    shortened = Curved(noise=0.1).step(0.05, corrected=True)
    assert whole.step_size == 1
    assert 0 < shortened.step_size < 0.9
    np.testing.assert_allclose(shortened.predicted_cost_change, shortened.step_size * whole.predicted_cost_change, rtol=1e-6)


def test_without_noise_the_corrected_step_is_the_papers():
    """Every episode contributes the same: only the factor E / (E - 1) is left to undo."""
    problem = Problem(noise=0.0)
    plain = problem.step(0.05, corrected=False)
    x = problem.params[0].detach().clone()
    corrected = problem.step(0.05, corrected=True)
    th.testing.assert_close(problem.params[0].detach(), x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(corrected.predicted_cost_change, plain.cost_surrogate_change, rtol=1e-6)


def test_where_no_constraint_is_active_the_step_is_trpos():
    problem = Problem(noise=0.1)
    problem.step(-100.0, corrected=False)
    x = problem.params[0].detach().clone()
    corrected = problem.step(-100.0, corrected=True)
    assert th.equal(problem.params[0].detach(), x)
    assert corrected.nu == 0


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e4])
@pytest.mark.parametrize("violation", [-0.02, 0.05, 5.0])
def test_the_unit_of_the_cost_does_not_matter(unit, violation):
    one, other = Problem(noise=0.15), Problem(noise=0.15, unit=unit)
    step_one = one.step(violation, corrected=True)
    step_other = other.step(violation * unit, corrected=True)
    th.testing.assert_close(one.params[0].detach(), other.params[0].detach(), rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(step_other.predicted_cost_change, unit * step_one.predicted_cost_change, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_a_recovery_goes_as_far_as_it_can_be_believed(noise):
    problem = Problem(noise=noise)
    step = problem.step(5.0, corrected=True)
    assert not step.is_feasible
    x = problem.params[0].detach()
    share = 1 - step.gradient_noise[1]
    # Half of the squared length is the KL divergence
    np.testing.assert_allclose(float(x @ x) / 2, 0.02 * share * 8 / 7, rtol=1e-6)
    # Along the gradient of the batch, half of which no other episode has
    np.testing.assert_allclose(step.predicted_cost_change / step.cost_surrogate_change, share * 8 / 7, rtol=1e-6)
    # The paper's goes to the end of the trust region, whatever there is to believe in
    problem.step(5.0, corrected=False)
    np.testing.assert_allclose(float(problem.params[0].detach() @ problem.params[0].detach()) / 2, 0.02, rtol=1e-6)


def test_what_a_recovery_believes_is_that_of_the_violated_constraints():
    gram, denoised = np.diag([1.0, 4.0, 9.0]), np.diag([1.0, 1.0, 9.0])
    both = np.array([0.0, -1.0, -1.0])
    assert signal_share(gram, denoised, both, np.array([5.0, -1.0])) == 0.25
    assert signal_share(gram, denoised, both, np.array([-1.0, 5.0])) == 1.0
    # Violations count in units of what each constraint can be changed by
    assert signal_share(gram, denoised, both, np.array([4.0, 9.0])) == (1.0 + 9.0) / (4.0 + 9.0)
    # What one signal's gradient does to another's cost counts, too
    gram, denoised = (np.array([[1.0, 0.5, x], [0.5, y, 0.2], [x, 0.2, 9.0]]) for x, y in ((0.3, 4.0), (0.1, 1.0)))
    skewed = np.array([-1.0, -1.0, -2.0])
    assert signal_share(gram, denoised, skewed, np.array([5.0, -1.0])) == pytest.approx((0.5 + 1.0 + 0.4) / (0.5 + 4.0 + 0.4))
    # A share is between nothing and all
    assert signal_share(denoised, gram, skewed, np.array([5.0, -1.0])) == 1.0
    assert signal_share(gram, -denoised, skewed, np.array([5.0, -1.0])) == 0.0


class TwoCosts(Problem):
    """The first cost is that of the problem, the second one has a gradient of rounding errors, or none."""

    def __init__(self, scale, seed):
        super().__init__(noise=0.1)
        self.others = th.as_tensor(scale * np.random.default_rng(seed).normal(size=(8, 12)))

    def evaluate(self):
        surrogates = super().evaluate()
        return surrogates._replace(costs=th.cat([surrogates.costs, (self.others @ self.params[0]).sum().reshape(1)]))

    def probe(self):
        probe = super().probe()
        signs = th.as_tensor(list(product([-1.0, 1.0], repeat=8)), dtype=th.float64)
        return probe._replace(costs=th.cat([probe.costs, (signs @ (self.others @ self.params[0])).unsqueeze(1)], dim=1))

    def step(self, violation):
        with th.no_grad():
            self.params[0].zero_()
        return trust_region_step(self.params, self.evaluate, np.array(violation), 0.02, cg_damping=0.0, probe_noise=self.probe)


@pytest.mark.parametrize("seed", range(6))
def test_a_cost_that_nothing_can_change_does_not_decide_how_far_a_recovery_goes(seed):
    without, rounding = TwoCosts(0.0, seed), TwoCosts(1e-14, seed)
    step, other = without.step([5.0, 5.0]), rounding.step([5.0, 5.0])
    assert not step.is_feasible
    assert not other.is_feasible
    assert step.predicted_cost_change[0] < 0
    th.testing.assert_close(rounding.params[0].detach(), without.params[0].detach(), rtol=1e-6, atol=1e-9)


def test_a_recovery_that_ends_within_what_can_be_believed_is_not_shortened():
    """The second cost can never be lowered, the first one by what it must."""
    step = TwoCosts(0.0, 0).step([0.05, 5.0])
    assert not step.is_feasible
    np.testing.assert_allclose(step.predicted_cost_change[0], -0.05, rtol=1e-6)


def test_the_line_search_does_not_take_noise_for_a_lower_cost():
    """
    Of a violated constraint, the surrogate falls on every trial, and what is expected of the cost does not: the linear part of
    the surrogate falls by more than the noise of the batch lets one hope for, and what the curved part adds is no noise.
    """

    class Curved(Problem):
        def evaluate(self):
            surrogates = super().evaluate()
            return surrogates._replace(costs=surrogates.costs + 1.5 * self.params[0] @ self.params[0])

    straight = Problem(noise=0.1)
    whole = straight.step(0.05, corrected=True)
    rise = 1.5 * float(straight.params[0].detach() @ straight.params[0].detach())
    assert whole.step_size == 1
    assert whole.cost_surrogate_change + rise < 0 < whole.predicted_cost_change + rise

    step = Curved(noise=0.1).step(0.05, corrected=True)
    # -0.05 s + rise s^2 <= 0 for the s that is kept, and not for the one before
    assert step.step_size <= 0.05 / rise < step.step_size / 0.8
    assert step.rejections["cost"] > 0


def test_conjugate_gradients_stop_where_there_is_no_curvature():
    from sb3_cpo.trust_region import conjugate_gradient

    matrix = th.diag(th.tensor([1.0, -1.0, 0.0]))
    solutions, _ = conjugate_gradient(lambda v: v @ matrix, th.eye(3), max_steps=10)
    assert th.isfinite(solutions).all()
    th.testing.assert_close(solutions[0], th.tensor([1.0, 0, 0]))
    assert not solutions[1:].any()
