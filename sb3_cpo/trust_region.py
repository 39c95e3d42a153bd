"""One step of a trust-region method with constraints on a policy's parameters. Torch only: no env, no buffer, no logger."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_cpo.dual import VANISHING, Dual, is_row_vanishing, recovery_coefficients, solve_dual
from sb3_cpo.fisher import Product, flat_grad, hessian_products
from sb3_cpo.gradient_noise import bound_rows, constraint_basis, signal_share, subtract_noise

Parameters = Sequence[nn.Parameter]
Solver = Callable[[float, np.ndarray, np.ndarray, np.ndarray, float], Dual | None]
REJECTIONS = ("objective", "kl", "cost", "not_finite")


class Surrogates(NamedTuple):
    """What the trust-region problem is made of, at some parameters: scalars, but for one cost surrogate per constraint."""

    objective: th.Tensor
    """() surrogate return, to be raised"""
    costs: th.Tensor
    """(n_costs,) surrogate episode costs, in units of an episode's cost"""
    kl_div: th.Tensor
    """() mean KL divergence from the policy that collected the data"""


class NoiseProbe(NamedTuple):
    """
    The surrogates with random signs: every advantage multiplied by its episode's, the same for objective and costs.

    The Gram matrix of their gradients is what noise alone produces, see :mod:`~sb3_cpo.gradient_noise`.
    """

    objective: th.Tensor
    """(n_draws,)"""
    costs: th.Tensor
    """(n_draws, n_costs)"""
    n_episodes: int
    """Independent contributions to the gradients."""
    n_unpaired: int | None = None
    """Signs that no opposite one belongs to, where those of a draw are balanced; None: each sign is drawn on its own."""


class LineSearch(NamedTuple):
    step_size: float
    """Fraction of the step that was kept; 0 when every trial was refused."""
    surrogates: Surrogates
    rejections: dict[str, int]
    """Refused trials by the first test that they failed: ``objective``, ``kl``, ``cost``, ``not_finite``."""


class TrustRegionStep(NamedTuple):
    """The step that was taken, and why. Arrays are numpy, of shape (n_costs,)."""

    surrogates: Surrogates
    """At the parameters that were kept."""
    step_size: float
    lam: float
    nu: np.ndarray
    is_feasible: bool
    """False: no point of the trust region satisfies the linearised constraints, and the step only lowers costs."""
    linear_cost_change: np.ndarray
    """B x of the whole step, before the line search."""
    cost_surrogate_change: np.ndarray
    """L_i(theta) - L_i(theta_k) of the step that was kept."""
    predicted_cost_change: np.ndarray
    """What the step that was kept is expected to change J by."""
    objective_change: float
    is_vanishing: np.ndarray
    """Constraints whose gradient is zero: no change of the policy near this one changes their cost."""
    reachable_cost_change: np.ndarray
    """sqrt(2 target_kl b_i.H^-1 b_i): the most by which a step through the whole trust region can change each cost."""
    cg_residual: float
    """Largest relative residual of the conjugate gradients."""
    rejections: dict[str, int]
    gradient_noise: np.ndarray | None = None
    """(1 + n_costs,) share of g.H^-1 g and of each b_i.H^-1 b_i that noise alone produces; None: not measured."""


def conjugate_gradient(
    matrix_vector_product: Callable[[th.Tensor], th.Tensor], rhs: th.Tensor, max_steps: int = 10, residual_tol: float = 1e-10
) -> tuple[th.Tensor, th.Tensor]:
    """
    Solve ``H x = b`` for several right-hand sides at once, H symmetric and positive definite.

    The right-hand sides are normalised first, so that tolerance and rounding do not depend on their units.

    :param matrix_vector_product: maps (k, n) to (k, n), row by row
    :param rhs: (k, n)
    :param max_steps: iterations
    :param residual_tol: a row is done when its squared relative residual is below
    :return: solutions (k, n), zero for a zero right-hand side, and their squared relative residuals (k,)
    """
    norms = rhs.norm(dim=1, keepdim=True)
    solutions = th.zeros_like(rhs)
    residuals = th.where(norms > 0, rhs / th.where(norms > 0, norms, th.ones_like(norms)), th.zeros_like(rhs))
    directions = residuals.clone()
    residual_norms = (residuals**2).sum(dim=1)
    has_curvature = th.ones_like(residual_norms, dtype=th.bool)
    for _ in range(max_steps):
        active = has_curvature & (residual_norms > residual_tol)
        if not active.any():
            break
        products = matrix_vector_product(directions[active])
        curvatures = (directions[active] * products).sum(dim=1)
        # No curvature, which damping would have given: such a row stops where it is
        alphas = th.where(curvatures > 0, residual_norms[active] / curvatures, th.zeros_like(curvatures)).unsqueeze(1)
        solutions[active] += alphas * directions[active]
        residuals[active] -= alphas * products
        new_norms = (residuals[active] ** 2).sum(dim=1)
        directions[active] = residuals[active] + (new_norms / residual_norms[active]).unsqueeze(1) * directions[active]
        residual_norms[active] = new_norms
        has_curvature[active] = curvatures > 0
    return solutions * norms, residual_norms


def set_flat_params(params: Parameters, values: th.Tensor) -> None:
    """Write one vector into the parameters, in their order."""
    with th.no_grad():
        for param, chunk in zip(params, values.split([param.numel() for param in params]), strict=True):
            param.copy_(chunk.view_as(param))


@th.no_grad()
def line_search(
    params: Parameters,
    step: th.Tensor,
    evaluate: Callable[[], Surrogates],
    old: Surrogates,
    violation: np.ndarray,
    target_kl: float,
    shrinking_factor: float = 0.8,
    max_iter: int = 15,
    noise_change: np.ndarray | None = None,
) -> LineSearch:
    """
    Move the parameters by the largest of ``step * shrinking_factor**j`` that keeps the constraints, or not at all.

    A trial is accepted when its KL divergence is at most ``target_kl``, no cost surrogate rises by more than the room below
    its limit (a violated one not at all) and, while no limit is violated, the objective rises.

    :param step: (n_params,)
    :param old: surrogates at the present parameters
    :param violation: (n_costs,) episode cost minus limit
    :param noise_change: (n_costs,) by how much the whole step lowers the surrogates, but not the costs
    """
    old_params = th.cat([param.detach().flatten() for param in params])
    # Of a violated cost that nothing can change, rounding may be what rises
    room = th.as_tensor(np.maximum(-violation, VANISHING * violation)).to(old.costs)
    of_noise = th.zeros_like(old.costs) if noise_change is None else th.as_tensor(noise_change).to(old.costs)
    is_violated = bool((violation > 0).any())
    rejections = dict.fromkeys(REJECTIONS, 0)
    for trial in range(max_iter):
        step_size = shrinking_factor**trial
        set_flat_params(params, old_params + step_size * step)
        new = evaluate()
        if not all(bool(th.isfinite(value).all()) for value in new):
            rejections["not_finite"] += 1
        elif new.kl_div > target_kl:
            rejections["kl"] += 1
        elif bool((new.costs - old.costs + step_size * of_noise > room).any()):
            rejections["cost"] += 1
        elif not is_violated and not new.objective > old.objective:
            rejections["objective"] += 1
        else:
            return LineSearch(step_size, new, rejections)
    set_flat_params(params, old_params)
    return LineSearch(0.0, old, rejections)


def trust_region_step(
    params: Parameters,
    evaluate: Callable[[], Surrogates],
    violation: np.ndarray,
    target_kl: float,
    *,
    cg_max_steps: int = 10,
    cg_damping: float = 0.1,
    shrinking_factor: float = 0.8,
    line_search_max_iter: int = 15,
    fisher_product: Product | None = None,
    solve: Solver = solve_dual,
    probe_noise: Callable[[], NoiseProbe] | None = None,
    average: Callable[[th.Tensor], th.Tensor] = lambda tensor: tensor,
) -> TrustRegionStep:
    """
    Change the parameters by an approximate solution of ``max objective`` subject to ``violation + change of costs <= 0``
    and ``kl_div <= target_kl`` (Achiam et al., 2017, equations 10 to 14), for any number of constraints.

    :param params: the parameters that the action distribution depends on
    :param evaluate: surrogates at the present parameters; differentiable where gradients are enabled
    :param violation: (n_costs,) episode cost minus limit, in the units of the cost surrogates
    :param target_kl: size of the trust region
    :param cg_max_steps: iterations of the conjugate gradients
    :param cg_damping: added to the diagonal of the Fisher matrix
    :param shrinking_factor: of the line search
    :param line_search_max_iter: trials of the line search
    :param fisher_product: maps a vector (n_params,) to the Fisher matrix times it. None: the Hessian of the KL divergence
    :param solve: the step in the span of H^-1 g and H^-1 B, see :func:`~sb3_cpo.dual.solve_dual`; PCPO, for one, has another
    :param probe_noise: the same surrogates with random signs, differentiable: the costs are then expected to change by what
        episodes have in common only, and not by what is fitted to the noise of the batch. None: as in the paper
    :param average: mean over processes that have a part of the batch each, for whatever is a mean over the batch
    """
    # 1. Gradients of the objective (g) and of the costs (B), and the curvature (H)
    surrogates = evaluate()
    outputs = [surrogates.objective, *surrogates.costs]
    n_signals = len(outputs)
    probe = probe_noise() if probe_noise is not None and n_signals > 1 else None
    if probe is not None:
        for objective, costs in zip(probe.objective, probe.costs, strict=True):
            outputs += [objective, *costs]
    gradients = average(th.stack([flat_grad(output, params) for output in outputs]))
    multiply = hessian_products(surrogates.kl_div, params) if fisher_product is None else fisher_product
    old = _average_surrogates(surrogates, average)

    def hessian_vector_products(vectors: th.Tensor) -> th.Tensor:
        return average(th.stack([multiply(vector) for vector in vectors])) + cg_damping * vectors

    # 2. H^-1 g and H^-1 B, and how much of their products is noise
    solutions, residuals = conjugate_gradient(hessian_vector_products, gradients, cg_max_steps)
    products = (gradients.double() @ solutions.double().T).cpu().numpy()
    gram = products[:n_signals, :n_signals]
    denoised, gradient_noise = gram, None
    if probe is not None:
        gram, denoised, gradient_noise = _denoise(gram, products[n_signals:, n_signals:], probe, violation, target_kl)
    solutions, gradients = solutions[:n_signals], gradients[:n_signals]

    # 3. The trust-region problem, in these n_costs + 1 directions
    solution = solve_in_span(gram, denoised, violation, target_kl, solve)
    coefficients = solution.coefficients
    # In double precision: nearly parallel gradients have large coefficients, of which most cancels
    step = (th.as_tensor(coefficients, dtype=th.float64, device=solutions.device) @ solutions.double()).to(solutions.dtype)
    # Conjugate gradients that stopped early leave r and S inexact; the size of the step is checked against H itself
    curvature = float(step @ hessian_vector_products(step.unsqueeze(0))[0])
    if curvature > 2 * target_kl:
        shortening = np.sqrt(2 * target_kl / curvature)
        step, coefficients = step * shortening, coefficients * shortening
    noise_change = ((denoised - gram) @ coefficients)[1:]

    # 4. Move, unless nothing local helps
    search = LineSearch(0.0, old, dict.fromkeys(REJECTIONS, 0))
    if step.any():
        search = line_search(
            params,
            step,
            lambda: _average_surrogates(evaluate(), average),
            old,
            violation,
            target_kl,
            shrinking_factor=shrinking_factor,
            max_iter=line_search_max_iter,
            noise_change=None if probe is None else noise_change,
        )
    cost_surrogate_change = (search.surrogates.costs - old.costs).cpu().numpy().astype(np.float64)
    return TrustRegionStep(
        surrogates=search.surrogates,
        step_size=search.step_size,
        lam=solution.lam,
        nu=solution.nu,
        is_feasible=solution.is_feasible,
        linear_cost_change=(gradients[1:] @ step).cpu().numpy().astype(np.float64),
        cost_surrogate_change=cost_surrogate_change,
        predicted_cost_change=cost_surrogate_change if probe is None else search.step_size * (denoised @ coefficients)[1:],
        objective_change=float(search.surrogates.objective - old.objective),
        is_vanishing=is_row_vanishing(solution.S, violation, target_kl),
        reachable_cost_change=np.sqrt(2 * target_kl * np.maximum(np.diagonal(solution.S), 0.0)),
        cg_residual=float(residuals.max().sqrt()),
        rejections=search.rejections,
        gradient_noise=gradient_noise,
    )


class SpanSolution(NamedTuple):
    """The step in the span of H^-1 g and H^-1 B, and the multipliers that lead to it."""

    coefficients: np.ndarray
    """(1 + n_costs,) of H^-1 g and of each H^-1 b_i"""
    lam: float
    nu: np.ndarray
    """(n_costs,)"""
    is_feasible: bool
    """False: no point of the trust region satisfies the linearised constraints"""
    S: np.ndarray
    """(n_costs, n_costs) how the costs change along the directions in which each changes most"""


def solve_in_span(
    gram: np.ndarray, denoised: np.ndarray, violation: np.ndarray, target_kl: float, solve: Solver = solve_dual
) -> SpanSolution:
    """
    The trust-region problem where a step ``x = sum_j a_j H^-1 g_j`` of the signals g, b_1, b_2, ... has the squared length
    ``a.gram a`` and changes cost i by ``(denoised a)_i``. Numpy only.

    :param gram: (1 + n_costs, 1 + n_costs) products ``g_i.H^-1 g_j`` on the batch
    :param denoised: the same without noise; ``gram`` itself: none was measured
    :param violation: (n_costs,) episode cost minus limit
    """
    basis = constraint_basis(gram, denoised)
    q, r, S = float(gram[0, 0]), denoised[1:, 0], denoised[1:] @ basis.T
    dual = solve(q, r, S, violation, target_kl)
    if dual is not None:
        coefficients = -dual.b_coef @ basis
        coefficients[0] += dual.g_coef
        return SpanSolution(coefficients, dual.lam, dual.nu, True, S)
    coefficients = -recovery_coefficients(S, violation, target_kl) @ basis
    # Along noise, a policy only gets worse: of the trust region, a recovery uses the share that is none
    excess = np.where(is_row_vanishing(S, violation, target_kl), 0.0, violation)
    allowed = 2 * target_kl * signal_share(gram, denoised, coefficients, excess)
    if (squared_length := coefficients @ gram @ coefficients) > allowed:
        coefficients = coefficients * np.sqrt(allowed / squared_length)
    return SpanSolution(coefficients, 0.0, np.zeros(len(violation)), False, S)


def _denoise(
    gram: np.ndarray, noise_products: np.ndarray, probe: NoiseProbe, violation: np.ndarray, target_kl: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Gram matrix, the same without noise, and the share of noise in each signal's own product."""
    denoised, gradient_noise = subtract_noise(gram, noise_products, probe.n_episodes, probe.n_unpaired)
    # The direction of a gradient that is rounding errors is as arbitrary
    is_vanishing = np.append(False, is_row_vanishing(gram[1:, 1:], violation, target_kl))
    if is_vanishing.any():
        gram, denoised = (np.where(is_vanishing | is_vanishing[:, None], 0.0, matrix) for matrix in (gram, denoised))
    return gram, bound_rows(gram, denoised), gradient_noise


def _average_surrogates(surrogates: Surrogates, average: Callable[[th.Tensor], th.Tensor]) -> Surrogates:
    values = average(th.cat([surrogates.objective.reshape(1), surrogates.costs, surrogates.kl_div.reshape(1)]).detach())
    return Surrogates(values[0], values[1:-1], values[-1])
