"""Products with the Fisher matrix, the curvature of the KL divergence at the policy itself, without ever making the matrix."""

from collections.abc import Callable, Sequence

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn

Product = Callable[[th.Tensor], th.Tensor]
"""Maps (n_params,) or what belongs to a distribution to the same shape, linearly."""


def fisher_products(distribution: Distribution, params: Sequence[nn.Parameter]) -> Product | None:
    """
    ``F v = J' M J v / n_states``: J is the Jacobian of the distribution's parameters (a mean, logits) with respect to the
    policy's, and M the curvature of the KL divergence with respect to the distribution's, which has a closed form.

    The same as the Hessian of the mean KL divergence at the old policy, without its second derivatives of the network, which
    are multiplied by zero there.

    :param distribution: of the actions in n_states states, with its graph
    :param params: what the products are with respect to
    :return: the product with a vector (n_params,); None for distributions whose curvature is not known here
    """
    parts = distribution.distribution if isinstance(distribution.distribution, list) else [distribution.distribution]
    outputs: list[th.Tensor] = []
    curvatures: list[Product] = []
    for part in parts:
        if isinstance(part, th.distributions.Normal):
            outputs += [part.loc, part.scale]
            curvatures += [_scaled(1 / part.scale.detach() ** 2), _scaled(2 / part.scale.detach() ** 2)]
        elif isinstance(part, th.distributions.Categorical):
            outputs.append(part.logits)
            curvatures.append(_categorical(part.probs.detach()))
        elif isinstance(part, th.distributions.Bernoulli):
            probs = part.probs.detach()
            outputs.append(part.logits)
            curvatures.append(_scaled(probs * (1 - probs)))
        else:
            return None
    n_states = len(outputs[0])
    kept = [index for index, output in enumerate(outputs) if output.requires_grad]
    outputs, curvatures = [outputs[index] for index in kept], [curvatures[index] for index in kept]

    # J'u is linear in u, and its derivative with respect to u in the direction of v is J v
    seeds = [th.zeros_like(output, requires_grad=True) for output in outputs]
    transposed = flat_grad(outputs, params, seeds, create_graph=True)

    def product(vector: th.Tensor) -> th.Tensor:
        changes = th.autograd.grad(transposed, seeds, grad_outputs=vector, retain_graph=True)
        forces = [curvature(change) / n_states for curvature, change in zip(curvatures, changes, strict=True)]
        return flat_grad(outputs, params, forces)

    return product


def hessian_products(scalar: th.Tensor, params: Sequence[nn.Parameter]) -> Product:
    """
    Products with the Hessian of any scalar with respect to the parameters.

    :param scalar: () with its graph
    """
    gradient = flat_grad(scalar, params, create_graph=True)
    return lambda vector: flat_grad(gradient, params, vector)


def _scaled(factor: th.Tensor) -> Product:
    return lambda change: factor * change


def _categorical(probs: th.Tensor) -> Product:
    return lambda change: probs * (change - (probs * change).sum(dim=-1, keepdim=True))


def flat_grad(
    outputs: th.Tensor | Sequence[th.Tensor],
    params: Sequence[nn.Parameter],
    weights: th.Tensor | Sequence[th.Tensor] | None = None,
    create_graph: bool = False,
) -> th.Tensor:
    """
    Gradient of a scalar, or of the sum of ``weights * outputs``, as one vector, zeros where a parameter has no influence.

    :return: (n_params,)
    """
    grads = th.autograd.grad(
        outputs, params, grad_outputs=weights, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return th.cat(
        [th.zeros_like(param).flatten() if grad is None else grad.flatten() for grad, param in zip(grads, params, strict=True)]
    )
