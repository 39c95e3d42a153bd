"""The critics of reward and costs: cost values and advantages of a rollout, and fitting both critics."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.nn import functional as F

from sb3_cpo import distributed
from sb3_cpo.buffers import CostRolloutBuffer, CostRolloutBufferSamples, slice_observations, stack_observations
from sb3_cpo.policies import CostActorCriticPolicy
from sb3_cpo.standardized_head import StandardizedLinear

# Observations for which values are predicted at once
PREDICTION_CHUNK = 8192


class CriticLosses(NamedTuple):
    """One entry per minibatch; no cost losses where there is no cost critic."""

    value: list[float]
    cost_value: list[float]


class CriticBatch(NamedTuple):
    """What a cost critic is fitted to."""

    observations: PyTorchObs
    returns: th.Tensor
    """(n, n_costs) targets"""


def has_cost_critic(policy: nn.Module) -> bool:
    return getattr(policy, "n_costs", 0) > 0


def actor_parameters(policy: ActorCriticPolicy, samples: CostRolloutBufferSamples) -> list[nn.Parameter]:
    """The parameters that the action distribution depends on, whatever modules a custom policy keeps them in."""
    params = [param for param in policy.parameters() if param.requires_grad]
    few = samples.thinned(max(len(samples.actions) // 8, 1))
    log_prob = policy.get_distribution(few.observations).log_prob(few.actions)
    grads = th.autograd.grad(log_prob.sum(), params, allow_unused=True)
    return [param for param, grad in zip(params, grads, strict=True) if grad is not None]


def train_critics_only(policy: ActorCriticPolicy, actor_params: Sequence[nn.Parameter]) -> None:
    """
    Training mode, but for modules that the actor uses: batch normalisation there would move statistics that actions depend on,
    unseen by the trust region.
    """
    policy.set_training_mode(True)
    _act_as_before(policy, {id(param) for param in actor_params})


def _act_as_before(module: nn.Module, actor_params: set[int]) -> None:
    for child in module.children():
        trained = {id(param) for param in child.parameters() if param.requires_grad}
        if trained <= actor_params:
            child.eval()
        elif trained & actor_params:
            _act_as_before(child, actor_params)


@th.no_grad()
def predict_cost_values(policy: ActorCriticPolicy, obs: PyTorchObs) -> np.ndarray:
    """(n, n_costs) float64, in units of the costs."""
    policy.set_training_mode(False)
    return policy.predict_cost_values(obs).cpu().numpy().astype(np.float64)  # type: ignore[operator]


def value_costs(policy: ActorCriticPolicy, buffer: CostRolloutBuffer, last_obs: Any, device: th.device) -> np.ndarray:
    """
    Fill the buffer's ``cost_values``, ``cost_advantages`` and ``cost_returns``.

    :param last_obs: observations after the last step
    :return: (n_envs, n_costs) cost still to come at the end of the rollout, in the next episode where one ended there
    """
    obs = buffer.flat_observations()
    n_steps = buffer.buffer_size * buffer.n_envs
    chunks = [slice(start, start + PREDICTION_CHUNK) for start in range(0, n_steps, PREDICTION_CHUNK)]
    # As SB3 stores them: a discrete observation has a second dimension there
    values = [predict_cost_values(policy, obs_as_tensor(slice_observations(obs, chunk), device)) for chunk in chunks]
    buffer.cost_values = np.concatenate(values).reshape(buffer.costs.shape)
    last_values = predict_cost_values(policy, obs_as_tensor(last_obs, device))
    next_values = np.concatenate([buffer.cost_values[1:], last_values[None]])
    next_values[buffer.episode_ends] = 0.0
    if buffer.cut_at_time_limit:
        steps, envs, terminal_obs = zip(*buffer.cut_at_time_limit, strict=True)
        next_values[steps, envs] = predict_cost_values(policy, policy.obs_to_tensor(stack_observations(terminal_obs))[0])
    buffer.compute_cost_returns_and_advantages(next_values)
    return last_values


def fit_critics(
    policy: ActorCriticPolicy,
    buffer: CostRolloutBuffer,
    actor_params: Sequence[nn.Parameter],
    batch_size: int,
    n_epochs: int,
    recent: Sequence[CriticBatch] = (),
    recent_seed: int = 0,
) -> CriticLosses:
    """
    Fit reward and cost critic in one loop over minibatches.

    :param actor_params: parameters that stay as they are
    :param recent: rollouts that the cost critic is fitted to; empty: the buffer's
    :param recent_seed: which of their samples, in which order; the same in all processes
    """
    value_head = policy.value_net if isinstance(policy.value_net, StandardizedLinear) else None
    has_costs = has_cost_critic(policy)
    observations, returns, cost_returns = buffer.critic_targets()
    if value_head is not None:
        value_head.update(returns.unsqueeze(1))
    if has_costs:
        policy.update_cost_statistics(cost_returns)  # type: ignore[operator]
    predict_values: Any = policy.predict_values
    predict_costs: Any = getattr(policy, "predict_standardised_cost_values", None)
    if (features := _critic_features(policy, observations)) is not None:
        # A tenth less time than to standardise each minibatch anew
        observations, predict_values = features, lambda batch: policy.value_net(policy.mlp_extractor.forward_critic(batch))
        if not recent:
            predict_costs = policy.predict_standardised_from_features
    # Not SB3's generator: the minibatches of the reward critic, and the actions to come, are as without costs.
    # Processes choose the same rollout, however many samples each of them has
    choose, draw = np.random.default_rng(recent_seed).spawn(2)
    value_losses, cost_losses = [], []
    for _ in range(n_epochs):
        # From the generator that SB3 seeds, and draws its minibatches with
        order = th.as_tensor(np.random.permutation(len(returns)), device=returns.device)  # noqa: NPY002
        for indices in order.split(batch_size):
            batch = CriticBatch(slice_observations(observations, indices), cost_returns.index_select(0, indices))
            loss = F.mse_loss(returns.index_select(0, indices), predict_values(batch.observations).flatten())
            value_losses.append(loss.detach())
            if value_head is not None:
                # In units of the standard deviation, as if the head were fitted to standardised returns
                loss = loss / value_head.std[0] ** 2
            if has_costs:
                batch = _minibatch(recent[int(choose.integers(len(recent)))], len(indices), draw) if recent else batch
                cost_values_pred = predict_costs(batch.observations)
                targets = policy.standardise_costs(batch.returns)  # type: ignore[operator]
                # Mean over samples, sum over constraints: one constraint learns no slower for the presence of another
                cost_value_loss = ((targets - cost_values_pred) ** 2).mean(dim=0).sum()
                cost_losses.append(cost_value_loss.detach() / targets.shape[1])
                loss = loss + cost_value_loss
            policy.optimizer.zero_grad()
            loss.backward()
            # Removing gradients of parameters shared with the actor
            # otherwise it defeats the purposes of the KL constraint
            for param in actor_params:
                param.grad = None
            distributed.average_gradients(policy.parameters())
            policy.optimizer.step()
    return CriticLosses(
        *(distributed.mean(th.stack(losses)).tolist() if losses else [] for losses in (value_losses, cost_losses))
    )


@th.no_grad()
def _critic_features(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor | None:
    """
    What both critics see of the observations, if nothing that is learned stands between, and no subclass predicts values in a
    way of its own; else None.
    """
    names = ("predict_values", "predict_standardised_cost_values", "extract_features", "extract_cost_features")
    if any(getattr(type(policy), name, None) is not getattr(CostActorCriticPolicy, name) for name in names):
        return None
    extractors = [module for name, module in policy.named_children() if name.endswith("features_extractor")]
    if {type(extractor) for extractor in extractors} != {FlattenExtractor} or set(names) & set(vars(policy)):
        return None
    if isinstance(observations, dict) or not observations.is_floating_point():
        # Of images and discrete observations, features take more memory
        return None
    chunks = observations.split(PREDICTION_CHUNK)
    return th.cat([BaseModel.extract_features(policy, chunk, policy.vf_features_extractor) for chunk in chunks])


def _minibatch(batch: CriticBatch, size: int, generator: np.random.Generator) -> CriticBatch:
    """So many samples of a rollout, or all of them."""
    n_samples = len(batch.returns)
    drawn = generator.choice(n_samples, size=min(size, n_samples), replace=False)
    indices = th.as_tensor(drawn, device=batch.returns.device)
    return CriticBatch(slice_observations(batch.observations, indices), batch.returns.index_select(0, indices))


@th.no_grad()
def snapshot(policy: ActorCriticPolicy) -> Callable[[], None]:
    """A function that puts parameters, statistics and optimizer of the policy back as they are now."""
    tensors = {name: value.clone() for name, value in policy.state_dict().items()}
    state = policy.optimizer.state_dict()
    moments = {
        index: {key: value.clone() if isinstance(value, th.Tensor) else value for key, value in entry.items()}
        for index, entry in state["state"].items()
    }

    def restore() -> None:
        policy.load_state_dict(tensors)
        policy.optimizer.load_state_dict({**state, "state": moments})

    return restore
