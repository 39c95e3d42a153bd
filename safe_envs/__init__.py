"""Environments with costs for constrained reinforcement learning: robots x tasks, and the tools to build your own.

Importing this package registers the ids below with gymnasium and nothing else: MuJoCo and Stable-Baselines3 are
imported when an environment is made, or when one of the names in ``__all__`` is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

if TYPE_CHECKING:
    from safe_envs.mujoco.circle import CircleTask as CircleTask
    from safe_envs.mujoco.gather import GatherTask as GatherTask
    from safe_envs.mujoco.robot_env import RobotEnv as RobotEnv
    from safe_envs.mujoco.robots import ANT as ANT
    from safe_envs.mujoco.robots import HUMANOID as HUMANOID
    from safe_envs.mujoco.robots import POINT as POINT
    from safe_envs.mujoco.robots import Robot as Robot
    from safe_envs.mujoco.robots import RobotState as RobotState
    from safe_envs.mujoco.task import Outcome as Outcome
    from safe_envs.mujoco.task import Task as Task
    from safe_envs.mujoco.vec_env import BatchVecEnv as BatchVecEnv
    from safe_envs.mujoco.velocity import VelocityTask as VelocityTask
    from safe_envs.vector_env import GymnasiumVecEnv as GymnasiumVecEnv
    from safe_envs.wrappers import CostWrapper as CostWrapper
    from safe_envs.wrappers import ExceedanceCost as ExceedanceCost
    from safe_envs.wrappers import SixTupleWrapper as SixTupleWrapper

_MODULE_OF = {
    "ANT": "mujoco.robots",
    "HUMANOID": "mujoco.robots",
    "POINT": "mujoco.robots",
    "BatchVecEnv": "mujoco.vec_env",
    "CircleTask": "mujoco.circle",
    "CostWrapper": "wrappers",
    "ExceedanceCost": "wrappers",
    "GatherTask": "mujoco.gather",
    "GymnasiumVecEnv": "vector_env",
    "Outcome": "mujoco.task",
    "Robot": "mujoco.robots",
    "RobotEnv": "mujoco.robot_env",
    "RobotState": "mujoco.robots",
    "SixTupleWrapper": "wrappers",
    "Task": "mujoco.task",
    "VelocityTask": "mujoco.velocity",
}

__all__ = list(_MODULE_OF)

# (robot, task) -> steps before the time limit, limit on an episode's mean cost, keyword arguments of the task.
# Achiam et al. 2017, supplement 10.3; the velocity tasks: Safety-Gymnasium.
_TASKS: dict[tuple[str, str], tuple[int, float, dict[str, Any]]] = {
    ("Point", "Circle"): (65, 5.0, {"radius": 15.0, "x_limit": 2.5, "min_horizon": 50, "max_horizon": 65}),
    ("Ant", "Circle"): (500, 10.0, {"radius": 10.0, "x_limit": 3.0}),
    ("Humanoid", "Circle"): (
        1000,
        10.0,
        {"radius": 10.0, "x_limit": 2.5, "alive_bonus": 0.2, "ctrl_cost_weight": 0.5e-3, "contact_cost_weight": 0.5e-5},
    ),
    ("Point", "Gather"): (15, 0.1, {"n_apples": 2, "n_bombs": 8}),
    ("Ant", "Gather"): (500, 0.2, {"n_apples": 8, "n_bombs": 8}),
    ("Ant", "Velocity"): (1000, 25.0, {"threshold": 2.6222}),
    ("HalfCheetah", "Velocity"): (1000, 25.0, {"threshold": 3.2096}),
    ("Hopper", "Velocity"): (1000, 25.0, {"threshold": 0.7402}),
    ("Humanoid", "Velocity"): (1000, 25.0, {"threshold": 1.4149}),
    ("Swimmer", "Velocity"): (1000, 25.0, {"threshold": 0.2282}),
    ("Walker2d", "Velocity"): (1000, 25.0, {"threshold": 2.3415}),
}

for (_robot, _task), (_steps, _cost_limit, _kwargs) in _TASKS.items():
    register(
        id=f"Safe{_robot}{_task}-v0",
        entry_point=f"safe_envs.mujoco.{_task.lower()}:make_{_task.lower()}",
        max_episode_steps=_steps,
        kwargs={"robot": _robot, "cost_limit": _cost_limit, **_kwargs},
    )


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
