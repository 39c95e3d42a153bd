"""
Constrained decision problems that are small enough to be solved exactly: the yardstick for the algorithms and for the theory.

A policy is an array (n_states, n_actions) of probabilities. A "signal" is the reward or one of the costs, an array
(n_states, n_actions). Everything here is exact linear algebra; only ``TabularEnv`` draws random numbers.
``TabularVecEnv``, which needs Stable-Baselines3, is in :mod:`safe_envs.tabular.vec_env`.
"""

from safe_envs.tabular.bounds import PerformanceBound, mean_kl_divergence, mean_tv_distance, performance_bound
from safe_envs.tabular.cmdp import (
    PolicyEvaluation,
    TabularCMDP,
    discount_as_termination,
    discounted_visits,
    evaluate,
    q_values,
    unroll,
)
from safe_envs.tabular.env import TabularEnv, cost_info
from safe_envs.tabular.optimum import Optimum, policy_iteration, random_cmdp, solve_cmdp, trust_region_update

__all__ = [
    "Optimum",
    "PerformanceBound",
    "PolicyEvaluation",
    "TabularCMDP",
    "TabularEnv",
    "cost_info",
    "discount_as_termination",
    "discounted_visits",
    "evaluate",
    "mean_kl_divergence",
    "mean_tv_distance",
    "performance_bound",
    "policy_iteration",
    "q_values",
    "random_cmdp",
    "solve_cmdp",
    "trust_region_update",
    "unroll",
]
