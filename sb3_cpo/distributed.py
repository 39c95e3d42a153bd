"""
Training on several processes: sums over all of them, so that every process takes the same step.

Processes are those of ``torch.distributed``, which ``torchrun`` starts and ``init_process_group()`` connects. Each steps its
own copies of the environment, as many as every other one. Without a process group, everything here leaves its argument as it
is.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

T = TypeVar("T")

n_bytes_sent, n_messages = 0, 0
"""What this process has given to sums since it began."""


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0. Process 0 logs, evaluates and saves."""
    return dist.get_rank() if world_size() > 1 else 0


def add_up(tensor: th.Tensor) -> th.Tensor:
    """
    Sum over all processes, of the same shape; every process gets the same bytes.

    :raises RuntimeError: another process has ended
    """
    global n_bytes_sent, n_messages
    if world_size() == 1:
        return tensor
    total = tensor.detach().contiguous().clone()
    n_bytes_sent, n_messages = n_bytes_sent + total.numel() * total.element_size(), n_messages + 1
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise _lost_process(error) from error
    return total


def mean(tensor: th.Tensor) -> th.Tensor:
    """Mean over all processes of what each has from as many samples."""
    return add_up(tensor) / world_size() if world_size() > 1 else tensor


def moments(samples: th.Tensor) -> tuple[th.Tensor, th.Tensor, int]:
    """
    Mean and variance (with n) of the samples of all processes, and their number. In double precision over processes.

    :param samples: (n, ...)
    """
    n = len(samples)
    own_mean, own_variance = samples.mean(dim=0), samples.var(dim=0, unbiased=False)
    if world_size() == 1:
        return own_mean, own_variance, n
    total_mean = mean(own_mean.double())
    total_variance = mean(own_variance.double() + (own_mean.double() - total_mean) ** 2)
    return total_mean.to(own_mean.dtype), total_variance.to(own_mean.dtype), n * world_size()


def average_gradients(params: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their means over all processes, in one message."""
    if world_size() == 1:
        return
    grads = [param.grad for param in params if param.grad is not None]
    averaged = mean(th.cat([grad.flatten() for grad in grads])).split([grad.numel() for grad in grads])
    for grad, new in zip(grads, averaged, strict=True):
        grad.copy_(new.view_as(grad))


def gather(value: T) -> list[T]:
    """What each process has, in their order. For small things: it is pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise _lost_process(error) from error
    return values


def concatenate(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, one after the other on the first axis."""
    return np.concatenate(gather(array)) if world_size() > 1 else array


@th.no_grad()
def copy_from_first(module: nn.Module) -> None:
    """Parameters and buffers of a module become those of process 0."""
    if world_size() == 1:
        return
    try:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
    except RuntimeError as error:
        raise _lost_process(error) from error


def join(model: Any) -> dict[str, RunningMeanStd]:
    """
    All processes begin ``learn`` with the same parameters, and only the first one logs.

    :param model: of this process
    :return: the statistics of its ``VecNormalize``, by name; see :func:`merge_statistics`
    :raises ValueError: the processes differ in the size of their rollouts, or in their seed
    """
    if world_size() > 1:
        sizes, seeds = zip(*gather(((model.env.num_envs, model.n_steps, model.batch_size), model.seed)), strict=True)
        if len(set(sizes)) > 1:
            raise ValueError(f"processes differ in (number of environments, n_steps, batch_size): {list(sizes)}")
        if len(set(seeds)) > 1:
            raise ValueError(f"processes differ in their seed: {list(seeds)}. Pass the same one: each makes its own of it")
        if model.batch_size % world_size():
            raise ValueError(f"batch_size={model.batch_size} cannot be divided among {world_size()} processes")
        copy_from_first(model.policy)
        model.policy.optimizer.load_state_dict(gather(model.policy.optimizer.state_dict())[0])
        if model.cost_shaping is not None:
            model.cost_shaping.copy_from_first()
        if rank() > 0:
            model.verbose, model.tensorboard_log = 0, None
    return _statistics(model.get_vec_normalize_env())


def merge_statistics(vec_normalize: VecNormalize | None, before: dict[str, RunningMeanStd]) -> dict[str, RunningMeanStd]:
    """
    The running moments of ``VecNormalize``, which every process has continued with its own samples, become those of all.

    :param before: what all processes had when they last agreed
    :return: what they have now
    """
    if world_size() == 1:
        return before
    for name, now in _statistics(vec_normalize, copy=False).items():
        merged = before[name].copy()
        for mean_, variance, count in gather(_difference(now, merged)):
            if count > 0:
                merged.update_from_moments(mean_, variance, count)
        now.mean, now.var, now.count = merged.mean, merged.var, merged.count
    return _statistics(vec_normalize)


def _statistics(vec_normalize: VecNormalize | None, copy: bool = True) -> dict[str, RunningMeanStd]:
    if vec_normalize is None or world_size() == 1:
        return {}
    statistics = {"returns": vec_normalize.ret_rms}
    if vec_normalize.norm_obs:
        obs = vec_normalize.obs_rms
        statistics |= {f"observations {key}": rms for key, rms in (obs if isinstance(obs, dict) else {"": obs}).items()}
    return {name: rms.copy() if copy else rms for name, rms in statistics.items()}


def _difference(now: RunningMeanStd, before: RunningMeanStd) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, variance and number of the samples that have come since, (Chan et al., 1983) backwards."""
    count = now.count - before.count
    if count <= 0:
        return now.mean, np.zeros_like(now.var), 0.0
    mean_ = before.mean + (now.mean - before.mean) * now.count / count
    squares = now.var * now.count - before.var * before.count - (mean_ - before.mean) ** 2 * before.count * count / now.count
    return mean_, np.maximum(squares / count, 0.0), count


def _lost_process(error: RuntimeError) -> RuntimeError:
    return RuntimeError(
        f"process {rank()} of {world_size()} has lost another process of this training, which has ended or hangs: training "
        f"ends. Begin again from the last checkpoint ({error})"
    )
