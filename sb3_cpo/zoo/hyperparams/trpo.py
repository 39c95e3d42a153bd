"""TRPO: costs are compared with the limit of the task, and nothing is done about them."""

import gymnasium as gym

import safe_envs  # noqa: F401  (registers the tasks)
from sb3_cpo.zoo.hyperparams import TASKS, entries

hyperparams = entries(
    **{task.removesuffix("-v0"): {"cost_limit": gym.spec(task).kwargs["cost_limit"]} for task in TASKS if task != "default"}
)
