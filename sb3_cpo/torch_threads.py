"""How many threads torch takes, beside environments that step on threads of their own and beside other trainings."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch as th
from torch import nn

from sb3_cpo.env_facts import innermost

# Parameters times samples of a minibatch up to which a second thread makes nothing faster (64 units; with 128 it is a tenth)
SMALL_MINIBATCH = 15_000_000


@contextmanager
def one_thread(is_enough: bool = True) -> Iterator[None]:
    """
    Within it, torch takes one thread.

    :param is_enough: False: as many as ever
    """
    n_threads = th.get_num_threads()
    if n_threads == 1 or not is_enough:
        yield
        return
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)


def leave_cores_to(env: Any) -> AbstractContextManager[None]:
    """
    Within it, torch takes one thread where the environments step on several, as those of ``BatchVecEnv`` do. Of the small
    networks that choose actions it makes nothing faster, and threads of torch that wait for work take cores from the physics.
    """
    # Not by `getattr`: adapters of other simulators answer it with anything, or without end
    return one_thread(vars(innermost(env)).get("n_threads", 1) != 1)


def is_small(policy: nn.Module, batch_size: int) -> bool:
    """
    Whether a minibatch is worth one thread only. Where other programs use the cores (a second training), each operation
    on several threads waits for the one that has no core, and there are thousands of operations in an epoch.
    """
    return batch_size * sum(parameter.numel() for parameter in policy.parameters()) <= SMALL_MINIBATCH
