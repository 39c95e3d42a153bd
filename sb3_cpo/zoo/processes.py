"""``torchrun -m sb3_cpo.zoo.train``: several processes of one training, of which the first one logs, evaluates and saves."""

import argparse
import atexit
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
import torch.distributed as dist

from sb3_cpo import distributed

# Options of process 0 only
SILENT = {"tensorboard_log": "", "eval_freq": -1, "save_freq": -1, "verbose": 0, "progress": False, "track": False}


@contextmanager
def connected() -> Iterator[None]:
    """Within it, the processes that ``torchrun`` has started are connected, if it has; each has a GPU of its own, if any."""
    is_one_of_several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if is_one_of_several:
        if th.cuda.is_available():
            th.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # gloo for what is on the CPU, nccl for what is on GPUs
        dist.init_process_group()
    try:
        yield
    finally:
        if is_one_of_several:
            dist.destroy_process_group()


def share(options: argparse.Namespace) -> None:
    """
    The options of this process.

    :raises ValueError: what these options ask for is for one process
    """
    if distributed.world_size() == 1:
        return
    if options.optimize_hyperparameters:
        raise ValueError("-optimize under torchrun: start it several times instead, with the same --storage and --study-name")
    if options.resume is not None:
        raise ValueError("--resume goes on exactly, in one process; several can continue a checkpoint: -i checkpoint.zip")
    # rl_zoo3 draws one where none is given
    seed = options.seed if options.seed >= 0 else int(np.random.default_rng().integers(2**31))
    options.seed = distributed.gather(seed)[0]
    if distributed.rank() > 0:
        scratch = tempfile.TemporaryDirectory()
        atexit.register(scratch.cleanup)
        vars(options).update(SILENT, log_folder=scratch.name)


def share_of(n_envs: int) -> int:
    """
    Copies of the environment that this process steps.

    :raises ValueError: there is none, or they cannot be divided
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, not {n_envs}")
    if n_envs % distributed.world_size():
        raise ValueError(f"n_envs={n_envs} cannot be divided among {distributed.world_size()} processes")
    return n_envs // distributed.world_size()
