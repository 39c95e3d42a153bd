"""Constrained reinforcement learning for Stable-Baselines3."""

import safe_envs  # noqa: F401  (registers the environments)
from sb3_cpo.callbacks import (
    CostEvalCallback,
    CostProgressBarCallback,
    StopTrainingOnViolation,
)
from sb3_cpo.check_cost_env import check_cost_env
from sb3_cpo.checkpoints import TrainingCheckpoint, find_checkpoint
from sb3_cpo.cost_shaping import FailurePredictor
from sb3_cpo.cpo import CPO
from sb3_cpo.evaluation import evaluate_policy
from sb3_cpo.fpo import FPO
from sb3_cpo.monitor import CostMonitor, make_vec_env
from sb3_cpo.pdo import PDO
from sb3_cpo.safety_report import replay_episode, safety_report
from sb3_cpo.trpo import TRPO
from sb3_cpo.videos import VideoRecorderCallback

__version__ = "0.1.0"

__all__ = [
    "CPO",
    "FPO",
    "PDO",
    "TRPO",
    "CostEvalCallback",
    "CostMonitor",
    "CostProgressBarCallback",
    "FailurePredictor",
    "StopTrainingOnViolation",
    "TrainingCheckpoint",
    "VideoRecorderCallback",
    "check_cost_env",
    "evaluate_policy",
    "find_checkpoint",
    "make_vec_env",
    "replay_episode",
    "safety_report",
]
