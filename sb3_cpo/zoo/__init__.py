"""
rl_zoo3 with costs: its scripts, options and log layout, for our algorithms and for SB3's.

Importing this package imports rl_zoo3, which patches gymnasium's TimeLimit, and makes rl_zoo3 use what knows of costs: our
algorithms (``trpo`` is ours from then on), ``CostMonitor``, ``CostEvalCallback`` and the progress bar with costs. Nothing
else in ``sb3_cpo`` imports it.
"""

try:
    import rl_zoo3
    import rl_zoo3.exp_manager
    import rl_zoo3.utils
except ImportError as error:
    raise ImportError(
        f"The zoo needs packages that are not installed ({error}): in a clone of the repository, pip install -e '.[zoo]'"
    ) from error

from functools import partial

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_cpo import CPO, FPO, PDO, TRPO, make_vec_env
from sb3_cpo.callbacks import CostEvalCallback, CostProgressBarCallback
from sb3_cpo.zoo.experiment_manager import ConstrainedExperimentManager
from sb3_cpo.zoo.hyperparams_opt import (
    ConstrainedTrialEvalCallback,
    convert_params,
    sample_cpo_params,
    sample_fpo_params,
    sample_pdo_params,
    sample_trpo_params,
)
from sb3_cpo.zoo.runs import latest_run_id

rl_zoo3.ALGOS.update(cpo=CPO, pdo=PDO, fpo=FPO, trpo=TRPO)
HYPERPARAMS_SAMPLER.update(cpo=sample_cpo_params, pdo=sample_pdo_params, fpo=sample_fpo_params, trpo=sample_trpo_params)
HYPERPARAMS_CONVERTER.update(dict.fromkeys(("cpo", "pdo", "fpo", "trpo"), convert_params))

# The names under which rl_zoo3's own functions look these up
rl_zoo3.utils.make_vec_env = make_vec_env
rl_zoo3.exp_manager.make_vec_env = make_vec_env
rl_zoo3.exp_manager.EvalCallback = CostEvalCallback  # type: ignore[misc]
rl_zoo3.exp_manager.ProgressBarCallback = CostProgressBarCallback  # type: ignore[misc]
# Of SB3's algorithms; ours have training checkpoints. One can be continued only with its statistics
rl_zoo3.exp_manager.CheckpointCallback = partial(CheckpointCallback, save_vecnormalize=True)  # type: ignore[misc,assignment]
# For enjoy and videos; the experiment manager, which numbers new runs, has its own
rl_zoo3.utils.get_latest_run_id = latest_run_id
rl_zoo3.exp_manager.TrialEvalCallback = ConstrainedTrialEvalCallback  # type: ignore[assignment,misc]

__all__ = ["ConstrainedExperimentManager"]
