"""What the zoo finds of earlier runs: the last one that left a model, the statistics of ``VecNormalize``, the environment."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3.utils
import yaml
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_cpo.checkpoints import list_checkpoints, load_vec_normalize
from sb3_cpo.zoo.costs import add_cost_of_run, import_here

CHECKPOINT = re.compile(r"(.*)_(\d+)_steps")
# What a resumed run takes from the command line, and not from its args.yml
OF_THIS_COMMAND = ("resume", "log_folder", "device", "num_threads", "verbose", "progress", "n_jobs")
RESUME: dict[str, Any] = {
    "nargs": "?",
    "const": "latest",
    "default": None,
    "metavar": "FOLDER",
    "help": "go on with an interrupted run, exactly: its folder; none: the last run of --algo and --env. It has its arguments "
    "from its args.yml; -n can extend it",
}


def latest_run_id(log_path: str, env_name: str) -> int:
    """
    Number of the last run that left a model; 0: none did.

    rl_zoo3's takes the last folder, which may be that of a hyperparameter optimisation, or of a run that was killed early.
    """
    folders = Path(log_path).glob(f"{env_name}_[0-9]*")
    # That of the beginning is there before anything is learned
    models = (path for folder in folders for path in folder.glob("*.zip") if path.name != "rl_model_0_steps.zip")
    numbers = (path.parent.name.removeprefix(f"{env_name}_") for path in models)
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def register_envs(packages: Sequence[str], run_folders: Path, env_id: str) -> None:
    """
    Import the packages that register environments: those of ``--gym-packages``, else those of the latest run.

    :param run_folders: where the runs of the algorithm are
    :raises ValueError: there is no such package
    """
    if not packages and env_id not in gym.registry:
        args_files = sorted(run_folders.glob(f"{env_id}_[0-9]*/{env_id}/args.yml"), key=lambda path: path.stat().st_mtime)
        for path in args_files[-1:]:
            packages = yaml.load(path.read_text(), Loader=yaml.UnsafeLoader).get("gym_packages") or ()
    for package in packages:
        import_here(package, f"--gym-packages names {package}")
    if env_id not in gym.registry:
        gym.spec(env_id)


def checkpoint_folder(run_folder: str | Path, save_freq: int) -> Path:
    """Where a run has its training checkpoints: with ``--save-freq`` beside its models, where all are kept."""
    return Path(run_folder) if save_freq > 0 else Path(run_folder) / "checkpoints"


def _has_checkpoint(run_folder: Path) -> bool:
    return any(list_checkpoints(checkpoint_folder(run_folder, save_freq)) for save_freq in (0, 1))


def take_over(options: argparse.Namespace) -> None:
    """
    ``--resume``: the options of the run that goes on.

    :raises ValueError: there is no such run, or it has no checkpoint
    """
    if options.resume == "latest":
        runs = Path(options.log_folder, options.algo).glob(f"{options.env}_[0-9]*")
        numbers = [int(number) for run in runs if (number := run.name.rpartition("_")[2]).isdigit() and _has_checkpoint(run)]
        if not numbers:
            raise ValueError(f"--resume: no run of {options.algo} in {options.env} has a checkpoint in {options.log_folder}")
        folder = Path(options.log_folder, options.algo, f"{options.env}_{max(numbers)}")
    else:
        folder = Path(options.resume)
    args_file = next(folder.glob("*/args.yml"), None)
    if args_file is None or not _has_checkpoint(folder):
        missing = "checkpoint" if args_file else "args.yml of a run"
        raise ValueError(f"--resume: there is no {missing} in {folder}")
    saved = yaml.load(args_file.read_text(), Loader=yaml.UnsafeLoader)
    if options.n_timesteps > 0:
        del saved["n_timesteps"]
    vars(options).update({key: value for key, value in saved.items() if key not in OF_THIS_COMMAND})
    options.resume, options.trained_agent = str(folder), ""


def load_statistics(model_path: str, env_name: str, venv: VecEnv) -> VecNormalize | None:
    """The statistics of ``VecNormalize`` in a model's file or beside it, around an environment; None: there are none."""
    env, path = load_vec_normalize(model_path, venv), Path(model_path)
    if env is None:
        beside = statistics_of(model_path, env_name)
        if beside is None:
            return None
        env, path = VecNormalize.load(str(beside), venv), beside
    print(f"Loading running average: {path}")
    return env


def statistics_of(model_path: str, env_name: str) -> Path | None:
    """
    The statistics of ``VecNormalize`` that lie beside a model; None: there are none.

    :param model_path: zip file of the zoo, a checkpoint, or one of a user's own with ``vecnormalize.pkl`` beside it
    """
    path = Path(model_path)
    candidates = [path.parent / env_name / "vecnormalize.pkl", path.parent / "vecnormalize.pkl"]
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
        normalized = load_statistics(model_path, Path(stats_path or "").name, env)
        if normalized is None:
            raise ValueError(f"no statistics of VecNormalize lie in {model_path}, or beside it")
        env = normalized
        env.training = env.norm_reward = False
    return VecFrameStack(env, n_stack) if n_stack else env
