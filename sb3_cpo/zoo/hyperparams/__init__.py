"""
Hyperparameters of the zoo: facts of each task, and what an algorithm has beside them.

The algorithms choose what depends on the task (steps of a rollout, sizes of batches and of the trust region, the limit that
the task carries). What is left is how long to train and in how many copies.
"""

from copy import deepcopy
from typing import Any

_BATCH: dict[str, Any] = {"vec_env": "batch", "policy": "MlpPolicy"}

TASKS: dict[str, dict[str, Any]] = {
    # For environments that have no entry, whose limit is said with -params cost_limit:10 where they carry none
    "default": {"n_envs": 8, "n_timesteps": 1e6, "policy": "MlpPolicy"},
    "SafePointCircle-v0": {**_BATCH, "n_envs": 100, "n_timesteps": 2e6},
    "SafePointGather-v0": {**_BATCH, "n_envs": 100, "n_timesteps": 2e6},
    "SafeAntCircle-v0": {**_BATCH, "n_envs": 40, "n_timesteps": 1e7},
    "SafeAntGather-v0": {**_BATCH, "n_envs": 40, "n_timesteps": 1e7},
    "SafeHumanoidCircle-v0": {**_BATCH, "n_envs": 20, "n_timesteps": 1e7},
    **{
        f"Safe{robot}Velocity-v0": {**_BATCH, "n_envs": 20, "n_timesteps": 1e7}
        for robot in ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")
    },
}


class Hyperparams(dict[str, dict[str, Any]]):
    """Entries by task; rl_zoo3 changes those that it is given, so each reader gets a copy."""

    def __getitem__(self, task: str) -> dict[str, Any]:
        return deepcopy(super().__getitem__(task))


def entries(common: dict[str, Any] | None = None, **by_task: dict[str, Any]) -> Hyperparams:
    """
    An entry for each task: its facts, what the algorithm has in common for all, and what it has for this one.

    :param by_task: by the task's name without the version, ``SafeAntCircle={...}``
    """
    return Hyperparams(
        {task: {**facts, **(common or {}), **by_task.get(task.removesuffix("-v0"), {})} for task, facts in TASKS.items()}
    )
