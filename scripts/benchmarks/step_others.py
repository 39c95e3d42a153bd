"""
Steps per second of other libraries' batched environments, a number for every line that comes in. `benchmark.py stepping` runs
it, in an interpreter that has the library: it needs nothing of this package.

    python scripts/benchmarks/step_others.py envpool Ant-v4 64 2 200
    python scripts/benchmarks/step_others.py mjbatch path/to/ant.xml 64 2 200
"""

import sys
import time
from collections.abc import Callable

import numpy as np

# Of Ant and HalfCheetah
FRAME_SKIP = 5


def envpool_stepper(env_id: str, n_envs: int, n_threads: int) -> tuple[Callable, Callable, int]:
    """Whole environments: physics, observations, rewards, resets."""
    import envpool

    venv = envpool.make_gymnasium(env_id, num_envs=n_envs, batch_size=n_envs, num_threads=n_threads, seed=0)
    return venv.step, venv.reset, venv.action_space.shape[0]


def mjbatch_stepper(model_path: str, n_envs: int, n_threads: int) -> tuple[Callable, Callable, int]:
    """Physics alone."""
    import mjbatch
    import mujoco

    model = mujoco.MjModel.from_xml_path(model_path)
    batch = mjbatch.Batch(model, n_envs, n_threads)
    controls = batch.bind("ctrl")

    def step(actions: np.ndarray) -> None:
        controls[:] = actions
        batch.step(nstep=FRAME_SKIP)

    return step, batch.reset, model.nu


def main() -> None:
    library, what, *numbers = sys.argv[1:]
    n_envs, n_threads, n_steps = map(int, numbers)
    step, reset, size = {"envpool": envpool_stepper, "mjbatch": mjbatch_stepper}[library](what, n_envs, n_threads)
    actions = np.random.default_rng(0).uniform(-1, 1, (n_steps, n_envs, size))
    print("ready", flush=True)
    for _ in sys.stdin:
        reset()
        start = time.perf_counter()
        for action in actions:
            step(action)
        print(n_steps * n_envs / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
