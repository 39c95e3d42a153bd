"""Compare BatchVecEnv with bare mujoco.batch, with DummyVecEnv and with SubprocVecEnv."""

import argparse
import os
import statistics
import time
from functools import partial

import numpy as np

from benchmarks.measuring import CLOCKS, measure, report, step_vec_env


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n-envs", type=int, default=64, help="copies of the ant")
    parser.add_argument("--steps", type=int, default=100, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=15, help="rounds, measured in turns")
    parser.add_argument("--threads", type=int, default=0, help="threads for the physics, 0 for all cores")


def step_batch(batch, controls: np.ndarray, states: np.ndarray, stage: int) -> float:
    """Bare mujoco.batch with random controls, from the states in which the task's robots are: as many contacts."""
    batch.state[:] = states
    ctrl = batch.ctrl
    start = time.perf_counter()
    for control in controls:
        ctrl[:] = control
        batch.step(stage=stage)
    return len(controls) * batch.nsim / (time.perf_counter() - start)


def run(args: argparse.Namespace) -> None:
    import mujoco
    from mujoco.batch import Batch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from safe_envs import BatchVecEnv

    rng = np.random.default_rng(0)
    n_threads = args.threads or os.cpu_count() or 1
    env_id, n_envs, n_steps = "SafeAntCircle-v0", args.n_envs, args.steps

    def make(vec_env_cls=None, n_copies=n_envs, name=env_id, **vec_env_kwargs):
        # With the module, so that worker processes find the id
        venv = make_vec_env(
            f"safe_envs:{name}", n_envs=n_copies, seed=0, vec_env_cls=vec_env_cls, vec_env_kwargs=vec_env_kwargs
        )
        venv.reset()
        return venv

    def draw(venv, steps):
        return rng.uniform(-1.0, 1.0, (steps, venv.num_envs, *venv.action_space.shape)).astype(np.float32)

    venv = make(BatchVecEnv, n_threads=n_threads)
    model = venv.get_attr("model", indices=0)[0]
    batch = Batch(model, n_envs, n_threads)
    states = venv.simulation.batch.state  # live
    controls = rng.uniform(-150.0, 150.0, (n_steps, n_envs, model.nu))
    task_stage = venv.simulation.stage
    candidates = {
        "BatchVecEnv": partial(step_vec_env, venv, draw(venv, n_steps)),
        "Batch.step()": partial(step_batch, batch, controls, states, mujoco.mjtStage.mjSTAGE_NONE.value),
        f"Batch.step(stage={task_stage})": partial(step_batch, batch, controls, states, task_stage),
    }
    title = f"{env_id}, {n_envs} copies, {n_threads} thread(s), {args.rounds} rounds of {n_steps} steps, in turns"
    results = measure(candidates, args.rounds)
    report(title, results, "BatchVecEnv", {"Batch.step()": 0.75, f"Batch.step(stage={task_stage})": 0.90})

    others = {
        "BatchVecEnv": candidates["BatchVecEnv"],
        "DummyVecEnv of 8": partial(step_vec_env, dummy := make(n_copies=8), draw(dummy, n_steps)),
        "SubprocVecEnv of 2": partial(step_vec_env, subproc := make(SubprocVecEnv, 2), draw(subproc, n_steps)),
    }
    report(f"{env_id}, {n_envs} copies, against SB3's", measure(others, args.rounds), "BatchVecEnv", {})
    subproc.close()

    point = make(BatchVecEnv, 256, "SafePointCircle-v0")
    actions = draw(point, 10 * n_steps)
    speeds = measure({name: partial(step_vec_env, point, actions, clock) for name, clock in CLOCKS.items()}, args.rounds)
    print("\nSafePointCircle-v0, 256 copies, one core")
    for clock, values in speeds.items():
        print(f"  {statistics.median(values):>12,.0f} steps/s by {clock} time, best {max(values):,.0f}   (goal 1,000,000)")
