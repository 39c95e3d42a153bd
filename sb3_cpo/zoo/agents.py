"""Trained agents on the command line: one of the zoo's runs, or a file that ``model.save`` wrote."""

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import yaml
from rl_zoo3.utils import ALGOS, get_model_path, get_saved_hyperparams
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo import make_vec_env
from sb3_cpo.zoo.arguments import StoreValues
from sb3_cpo.zoo.costs import OPTION, add_cost
from sb3_cpo.zoo.experiment_manager import HYPERPARAMS
from sb3_cpo.zoo.runs import create_test_env, load_statistics, register_envs


class Agent(NamedTuple):
    """What an agent is, and where."""

    model_path: str
    env: VecEnv
    """One copy, normalised as in training."""
    folder: Path
    """Of the run."""
    name: str
    """For files about it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which agent is meant."""
    parser.add_argument("--algo", default="cpo", choices=list(ALGOS), help="algorithm (default: cpo)")
    parser.add_argument("--env", default="SafePointCircle-v0", help="environment ID (default: SafePointCircle-v0)")
    parser.add_argument("--model", help="a model file that is not in a folder of the zoo")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the zoo (default: logs)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: 0, the latest)")
    parser.add_argument("--load-best", action="store_true", help="the best feasible model instead of the last one")
    parser.add_argument("--load-checkpoint", type=int, help="the checkpoint of this number of steps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    parser.add_argument("--cost", **{**OPTION, "help": f"{OPTION['help']} (a run of the zoo knows its own)"})
    parser.add_argument("--env-kwargs", nargs="+", action=StoreValues, help="keyword arguments of the environment, key:value")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], help="packages that register environments (a run of the zoo knows its own)"
    )


def open_agent(options: argparse.Namespace, seed: int = 0, **env_kwargs: Any) -> Agent:
    """
    :param env_kwargs: beside those of the run and of the command line
    :raises AssertionError, ValueError: what rl_zoo3 raises where there is no such run
    :raises gymnasium.error.Error: there is no such environment
    """
    register_envs(options.gym_packages, Path(options.folder, options.algo), options.env)
    if options.cost is not None:
        add_cost(options.env, options.cost)
    if options.model:
        # SB3 adds the ending where there is none
        file = Path(options.model if Path(options.model).suffix else f"{options.model}.zip")
        if not file.is_file():
            raise ValueError(f"--model is {options.model!r}: there is no file {file}")
        if not is_zipfile(file):
            raise ValueError(f"--model is {options.model!r}: expected a file that model.save wrote, and it is no zip file")
    return _open_file(options, seed, env_kwargs) if options.model else _open_run(options, seed, env_kwargs)


def load_model(options: argparse.Namespace, agent: Agent) -> Any:
    """
    :raises ValueError: the file is that of another algorithm, or of another environment
    """
    model = ALGOS[options.algo].load(agent.model_path, device="cpu")
    try:
        check_for_correct_spaces(agent.env, model.observation_space, model.action_space)
    except ValueError as error:
        raise ValueError(f"{agent.model_path} was trained in another environment than {options.env}: {error}") from error
    return model


def is_chosen_by_stochastic_policy(options: argparse.Namespace) -> bool:
    """The best model of our algorithms was."""
    return options.load_best and options.algo in HYPERPARAMS


def _open_run(options: argparse.Namespace, seed: int, env_kwargs: dict[str, Any]) -> Agent:
    prefix, model_path, log_path = get_model_path(
        options.exp_id,
        options.folder,
        options.algo,
        options.env,
        options.load_best,
        options.load_checkpoint,
        options.load_last_checkpoint,
    )
    stats_path = os.path.join(log_path, options.env)
    hyperparams, maybe_stats_path = get_saved_hyperparams(stats_path, test_mode=True)
    kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    args_file = Path(stats_path) / "args.yml"
    if args_file.is_file():
        kwargs.update(yaml.load(args_file.read_text(), Loader=yaml.UnsafeLoader).get("env_kwargs") or {})
    kwargs.update(options.env_kwargs or {}, **env_kwargs)
    env = create_test_env(
        options.env, model_path, maybe_stats_path, hyperparams, seed=seed, env_kwargs=kwargs, should_render=False
    )
    return Agent(model_path, env, Path(log_path), prefix)


def _open_file(options: argparse.Namespace, seed: int, env_kwargs: dict[str, Any]) -> Agent:
    path = Path(options.model)
    env = make_vec_env(options.env, seed=seed, env_kwargs={**(options.env_kwargs or {}), **env_kwargs})
    normalized = load_statistics(options.model, options.env, env)
    if normalized is not None:
        env, normalized.training, normalized.norm_reward = normalized, False, False
    return Agent(str(path), env, path.parent, path.stem)
