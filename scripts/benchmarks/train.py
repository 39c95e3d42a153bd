"""
Compare training with CPO on BatchVecEnv to sb3-contrib's TRPO on SB3's DummyVecEnv, to bare stepping, and to the code of
another commit. Torch has as many threads as it chooses by itself.
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measuring import CLOCKS, Measurement, OnDemand, learn, measure, report, step_vec_env

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
TRAINING = {"batch_size": 1000, "n_critic_updates": 3, "policy_kwargs": {"net_arch": [64, 32]}, "device": "cpu"}


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", help="all if not given")
    parser.add_argument("--steps", type=int, help="per update; 20,000 of the Point and 50,000 of the ant")
    parser.add_argument("--noise-draws", type=int, default=2, help="CPO's n_noise_draws")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_worker_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds, measured in turns")
    parser.add_argument("--against", metavar="COMMIT", help="train with the code of this commit in turns with this code")
    parser.add_argument("--without-trpo", action="store_true", help="do not measure sb3-contrib's TRPO")


def make_circle_env(args: argparse.Namespace):
    from safe_envs import BatchVecEnv
    from sb3_cpo import make_vec_env

    # Time of the processor is that of one thread
    n_threads = 1 if args.clock == "cpu" else 0
    return make_vec_env(args.env, n_envs=100, vec_env_cls=BatchVecEnv, seed=0, vec_env_kwargs={"n_threads": n_threads})


def make_cpo(args: argparse.Namespace):
    from sb3_cpo import CPO

    kwargs = {"n_steps": args.steps // 100, "fisher_sub_sampling_factor": 5, "n_noise_draws": args.noise_draws, "seed": 0}
    return CPO("MlpPolicy", make_circle_env(args), 10.0, **kwargs, **TRAINING)


def train_on_demand(args: argparse.Namespace) -> None:
    """Train one update for every line that comes in, and print its steps per second."""
    import torch as th

    if args.clock == "cpu":
        th.set_num_threads(1)
    model = make_cpo(args)
    for _ in sys.stdin:
        print(learn(model, CLOCKS[args.clock]), flush=True)


class OtherCode(OnDemand):
    """
    Training by the code of a commit.

    :param commit: None: the code beside the scripts
    """

    def __init__(self, commit: str | None, args: argparse.Namespace):
        self.folder = tempfile.TemporaryDirectory()
        root = Path(__file__).resolve().parents[2]
        if commit is not None:
            archive = subprocess.run(["git", "archive", commit], cwd=root, stdout=subprocess.PIPE, check=True).stdout
            subprocess.run(["tar", "x", "-C", self.folder.name], input=archive, check=True)
            root = Path(self.folder.name)
        options = ["--env", args.env, "--steps", args.steps, "--noise-draws", args.noise_draws, "--clock", args.clock]
        super().__init__([sys.executable, str(BENCHMARK), "worker", *map(str, options)], {"PYTHONPATH": str(root)})

    def close(self) -> None:
        super().close()
        self.folder.cleanup()


def run(args: argparse.Namespace) -> None:
    import torch as th
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env

    if args.clock == "cpu":
        th.set_num_threads(1)
    sizes = {"SafePointCircle-v0": 20_000, "SafeAntCircle-v0": 50_000}
    for env_id, size in sizes.items() if args.env is None else [(args.env, sizes.get(args.env, 20_000))]:
        case = argparse.Namespace(**{**vars(args), "env": env_id, "steps": args.steps or size})
        stepped = make_circle_env(case)
        stepped.reset()
        shape = (case.steps // 100, 100, *stepped.action_space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        codes = {"CPO, BatchVecEnv": OtherCode(None, case)}
        if args.against is not None:
            codes[f"CPO of {args.against}"] = OtherCode(args.against, case)
        candidates: dict[str, Measurement] = {
            **codes,
            "stepping alone": partial(step_vec_env, stepped, actions, CLOCKS[args.clock]),
        }
        if not args.without_trpo:
            trpo = TRPO("MlpPolicy", sb3_make_vec_env(env_id, n_envs=8, seed=0), n_steps=case.steps // 8, **TRAINING)
            candidates["contrib TRPO, Dummy"] = partial(learn, trpo, CLOCKS[args.clock])
        title = f"{env_id}, {case.steps:,} steps per update, {args.rounds} rounds in turns, {args.clock} time, noise draws: "
        report(title + str(args.noise_draws), measure(candidates, args.rounds), "CPO, BatchVecEnv", {})
        for code in codes.values():
            code.close()
