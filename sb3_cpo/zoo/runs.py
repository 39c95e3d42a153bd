"""What the zoo finds of earlier runs: the last one that left a model, the statistics of ``VecNormalize``, the environment."""

import re
from pathlib import Path
from typing import Any

import rl_zoo3.utils
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_cpo.zoo.costs import add_cost_of_run

BEST_STATISTICS = "best_model_vecnormalize.pkl"
CHECKPOINT = re.compile(r"(.*)_(\d+)_steps")


class SaveBestStatistics(SaveVecNormalizeCallback):
    """rl_zoo3's, which keeps one file that the end of training overwrites; the best model keeps its own beside it."""

    def _on_step(self) -> bool:
        env = self.model.get_vec_normalize_env()
        if env is not None:
            env.save(str(Path(self.save_path).parent / BEST_STATISTICS))
        return super()._on_step()


def latest_run_id(log_path: str, env_name: str) -> int:
    """
    Number of the last run that left a model; 0: none did.

    rl_zoo3's takes the last folder, which may be that of a hyperparameter optimisation, or of a run that was killed early.
    """
    folders = Path(log_path).glob(f"{env_name}_[0-9]*")
    numbers = (folder.name.removeprefix(f"{env_name}_") for folder in folders if any(folder.glob("*.zip")))
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def statistics_of(model_path: str, env_name: str) -> Path | None:
    """
    The statistics of ``VecNormalize`` that lie beside a model; None: there are none.

    :param model_path: zip file of the zoo, a checkpoint, or one of a user's own with ``vecnormalize.pkl`` beside it
    """
    path = Path(model_path)
    candidates = [path.parent / env_name / "vecnormalize.pkl", path.parent / "vecnormalize.pkl"]
    if path.stem == "best_model":
        candidates.insert(0, path.with_name(BEST_STATISTICS))
    checkpoint = CHECKPOINT.fullmatch(path.stem)
    if checkpoint is not None:
        # As SB3's CheckpointCallback names them
        prefix, n_steps = checkpoint.groups()
        candidates.insert(0, path.with_name(f"{prefix}_vecnormalize_{n_steps}_steps.pkl"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def create_test_env(
    env_id: str, model_path: str, stats_path: str | None, hyperparams: dict[str, Any], **kwargs: Any
) -> VecEnv:
    """
    rl_zoo3's, with the cost of ``--cost`` and with the statistics of the model that is played, where rl_zoo3's has those of
    the end of training.

    :param stats_path: folder with the hyperparameters of the run
    :raises ValueError: the run has used ``VecNormalize``, and its statistics are gone
    """
    add_cost_of_run(env_id, stats_path)
    is_normalized, n_stack = hyperparams.get("normalize"), hyperparams.get("frame_stack", 0)
    env = rl_zoo3.utils.create_test_env(env_id, stats_path=None, hyperparams=hyperparams, **kwargs)
    if is_normalized:
        path = statistics_of(model_path, Path(stats_path or "").name)
        if path is None:
            raise ValueError(f"no statistics of VecNormalize lie beside {model_path}")
        print(f"Loading running average: {path}")
        env = VecNormalize.load(str(path), env)
        env.training = env.norm_reward = False
    return VecFrameStack(env, n_stack) if n_stack else env
