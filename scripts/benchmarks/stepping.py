"""Compare BatchVecEnv with other libraries' batched environments, each with the same number of threads."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measuring import Measurement, OnDemand, measure, report, step_vec_env


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n-envs", type=int, default=64, help="copies")
    parser.add_argument("--steps", type=int, default=200, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, measured in turns")
    parser.add_argument("--threads", type=int, default=0, help="of each; 0: all cores")
    # mjbatch pins another release of MuJoCo than BatchVecEnv needs
    for library in ("envpool", "mjbatch"):
        parser.add_argument(f"--{library}", metavar="PYTHON", default=sys.executable, help="an interpreter that has it")


def run(args: argparse.Namespace) -> None:
    import gymnasium

    from safe_envs import BatchVecEnv
    from sb3_cpo import make_vec_env

    n_threads = args.threads or os.cpu_count() or 1
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    for robot, model in (("Ant", "ant.xml"), ("HalfCheetah", "half_cheetah.xml")):
        kwargs = {"vec_env_cls": BatchVecEnv, "vec_env_kwargs": {"n_threads": n_threads}}
        venv = make_vec_env(f"Safe{robot}Velocity-v0", n_envs=args.n_envs, seed=0, **kwargs)
        venv.reset()
        shape = (args.steps, args.n_envs, *venv.action_space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        candidates: dict[str, Measurement] = {"BatchVecEnv": partial(step_vec_env, venv, actions)}
        others = {"envpool": (args.envpool, f"{robot}-v4"), "mjbatch": (args.mjbatch, str(assets / model))}
        processes = []
        for library, (python, what) in others.items():
            script = Path(__file__).with_name("step_others.py")
            sizes = map(str, (args.n_envs, n_threads, args.steps))
            process = OnDemand([python, str(script), library, what, *sizes])
            if process.read() == "ready":
                candidates[library if library == "envpool" else "mjbatch (physics)"] = process
            else:
                print(f"{library}: not in {python}, or it does not start (its error stands above)")
            processes.append(process)
        title = f"{robot}, {args.n_envs} copies, {n_threads} thread(s), {args.rounds} rounds of {args.steps} steps, in turns"
        report(title, measure(candidates, args.rounds), "BatchVecEnv", dict.fromkeys(candidates, 1.0))
        for process in processes:
            process.close()
