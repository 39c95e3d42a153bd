"""
How much of a step is noise: the Gram matrix of the gradients without what the noise of the batch adds to it. Numpy only.

A batch is E independent episodes, so every gradient is a sum over episodes, b = sum_e b_e, and

    E[b.H^-1 b] = (true b).H^-1 (true b) + tr(H^-1 Cov(b)).

With many parameters and few episodes, the second term is the larger one. A solver that sees b.H^-1 b believes that moving
along -H^-1 b lowers the cost by as much, of which that part exists on this batch alone. With one random sign per episode,
E[b_z b_z'] = sum_e b_e b_e': the Gram matrix of sign-flipped gradients is what noise produces, and can be subtracted.
"""

import numpy as np

# A signal's own product keeps at least this share: a draw of signs may say that there is more noise than there is anything
LEAST_SIGNAL = 0.05
# Combinations of the signals that are shorter than this share of the longest one are rounding errors
RELATIVE_RANK = 1e-10


def subtract_noise(
    gram: np.ndarray, noise_products: np.ndarray, n_episodes: int, n_unpaired: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The Gram matrix of the gradients without what the noise of the batch adds to it.

    :param gram: (k, k) of the gradients of k signals
    :param noise_products: (n_draws k, n_draws k) of their gradients under random signs, draw by draw
    :param n_episodes: independent contributions to each gradient
    :param n_unpaired: None: each sign was drawn on its own. Else a draw has as many positive as negative signs in each group
        of episodes (a rollout of a process), but for one sign in each group with an odd number of them, and this is the number
        of such groups. What all episodes have in common cancels then, and the estimate has less variance. It is unbiased where
        no group is odd, and where all are odd and of the same size
    :return: an unbiased estimate of the Gram matrix of the true gradients, but for bounds that keep its diagonal positive and
        its entries below their Cauchy-Schwarz limits; and the share of noise in each signal's own product, (k,)
    """
    k = len(gram)
    draws = [noise_products[start : start + k, start : start + k] for start in range(0, len(noise_products), k)]
    noise = np.mean(draws, axis=0)
    if n_unpaired is not None and n_episodes > 1:
        # As the mean over all draws of independent signs would be
        noise = noise + (gram - noise) * (n_episodes - n_unpaired) / (n_episodes**2 - n_unpaired)
    diagonal = np.diagonal(gram)
    share = np.divide(np.diagonal(noise), diagonal, out=np.zeros(k), where=diagonal > 0)
    if n_episodes < 2:
        # What single episodes have in common cannot be seen in one of them
        return gram, share
    denoised = (gram - noise) * n_episodes / (n_episodes - 1)
    own = np.clip(np.diagonal(denoised), LEAST_SIGNAL * diagonal, diagonal)
    bound = np.sqrt(np.outer(own, own))
    denoised = np.clip((denoised + denoised.T) / 2, -bound, bound)
    np.fill_diagonal(denoised, own)
    return denoised, share


def bound_rows(gram: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    """
    Take out of the denoised rows what no gradient can do.

    A step x = sum_j a_j H^-1 g_j has the squared length a.gram a and changes signal i by (denoised a)_i: whatever the a, by no
    more than a gradient of its squared length, honest_ii, can: honest_i.gram^-1 honest_i <= honest_ii. Where two signals are
    nearly parallel, their difference is a step of no length, and what draws of signs say of it is an error, which the solver
    would take for a way to lower the cost at no price. (The bound limits such errors; where much of a gradient is noise, it is
    wide.) Of honest_i = s gram_i + rest, where s is the share of the signal's own product that is left, the rest is shortened
    until the row is within its bound. All other rows stay as they are.
    """
    if denoised is gram:
        return denoised
    scale, cosines = _cosines(gram)
    lengths, axes = np.linalg.eigh(cosines)
    is_long = lengths > RELATIVE_RANK * lengths[-1]
    lengths, axes = lengths[is_long], axes[:, is_long]
    # Along what has no length there is no step, and nothing to be said
    rows = denoised.copy() if is_long.all() else denoised / scale @ axes @ axes.T * scale
    own = np.divide(np.diagonal(rows), np.diagonal(gram), out=np.zeros(len(gram)), where=np.diagonal(gram) > 0)
    own = np.clip(own, 0.0, 1.0)
    for index, share in enumerate(own):
        along = (rows[index] - share * gram[index]) / scale @ axes
        squared, bound = np.sum(along**2 / lengths), share * (1 - share) * gram[index, index]
        if squared > bound + 1e-9 * gram[index, index]:
            rest = np.sqrt(bound / squared) * along @ axes.T * scale
            rows[index] = share * gram[index] + rest
    return rows


def _cosines(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the signals' gradients, (k,), and the cosines between them, (k, k)."""
    scale = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(float).tiny))
    return scale, gram / scale / scale[:, None]


def constraint_basis(gram: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    """
    B M^-1: the combinations of the signals' natural gradients along which each cost changes most, for the length that they
    have. (n_costs, 1 + n_costs); the rows of the identity where there is no noise.
    """
    if denoised is gram:
        return np.eye(len(gram))[1:]
    scale, cosines = _cosines(gram)
    return denoised[1:] / scale @ np.linalg.pinv(cosines, rcond=RELATIVE_RANK, hermitian=True) / scale


def signal_share(gram: np.ndarray, denoised: np.ndarray, coefficients: np.ndarray, violation: np.ndarray) -> float:
    """
    Which part of the decrease that a step has on its batch is no noise, between 0 and 1, over the violated constraints.

    :param coefficients: (1 + n_costs,) of the signals' natural gradients in the step
    :param violation: (n_costs,) episode cost minus limit; 0 for constraints whose gradient vanishes: they say nothing
    """
    is_violated = violation > 0
    weights = np.divide(violation, np.diagonal(gram)[1:], out=np.zeros(len(violation)), where=is_violated)
    on_batch, believed = (-weights @ (products @ coefficients)[1:] for products in (gram, denoised))
    return float(np.clip(believed / on_batch, 0.0, 1.0)) if on_batch > 0 else 1.0
