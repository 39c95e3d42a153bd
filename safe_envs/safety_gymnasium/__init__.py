"""
Safety-Gymnasium's navigation tasks beside a current gymnasium and MuJoCo.

Importing this package registers the ids ``Safety<Robot><Task><Level>-v0``, for instance ``SafetyPointGoal1-v0``. It needs::

    pip install --no-deps safety-gymnasium==1.0.0
    pip install xmltodict pyyaml
"""

from gymnasium.envs.registration import register

from safe_envs.safety_gymnasium._compatibility import check_installation
from safe_envs.safety_gymnasium.task_env import SafetyTaskEnv

check_installation()

ROBOTS = ("Point", "Car", "Racecar", "Doggo", "Ant")
# Task -> its levels, and steps before the time limit
TASKS = {
    "Goal": (3, 1000),
    "Button": (3, 1000),
    "Push": (3, 1000),
    "Circle": (3, 500),
    "Run": (1, 500),
}

for _robot in ROBOTS:
    for _task, (_n_levels, _steps) in TASKS.items():
        for _level in range(_n_levels):
            register(
                id=f"Safety{_robot}{_task}{_level}-v0",
                entry_point="safe_envs.safety_gymnasium.task_env:SafetyTaskEnv",
                max_episode_steps=_steps,
                kwargs={"robot": _robot, "task": f"{_task}{_level}", "cost_limit": 25.0},
            )

__all__ = ["SafetyTaskEnv"]
