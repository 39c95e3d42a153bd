"""
CPO as in the paper ("plain CPO"), for comparison: ``--algo cpo --conf-file sb3_cpo.zoo.hyperparams.paper``.

Achiam et al. 2017, supplement 10.3: networks, discounts, batches, trust region; batches are trusted as they are.
"""

from typing import Any

from sb3_cpo.zoo.hyperparams import entries

_PLAIN: dict[str, Any] = {
    "n_noise_draws": 0,
    "n_cost_rollouts": 1,
    "target_kl": 0.01,
    "cg_damping": 1e-5,
    "fisher_sub_sampling_factor": 5,
    "gamma": 0.995,
    "bootstrap_time_limits": False,
    "policy_kwargs": {
        "net_arch": [64, 32],
        "log_std_init": 0.0,
        "normalize_observations": False,
        "standardize_returns": False,
    },
    "batch_size": 500,
    "learning_rate": 3e-3,
    "n_critic_updates": 3,
}

hyperparams = entries(
    _PLAIN,
    SafePointCircle={"n_steps": 500, "cost_gae_lambda": 1.0},
    SafePointGather={"n_steps": 495, "cost_gae_lambda": 1.0},
    SafeAntCircle={"n_envs": 100, "n_steps": 1000, "cost_gae_lambda": 0.5},
    SafeAntGather={"n_envs": 100, "n_steps": 1000, "cost_gae_lambda": 0.5},
    SafeHumanoidCircle={"n_envs": 50, "n_steps": 1000, "cost_gae_lambda": 0.5},
)
