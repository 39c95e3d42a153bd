"""
Kill a training at random moments, resume it, and compare its end with that of one that nobody disturbed.

    python scripts/kill_test.py --kills 50

Each kill is a ``SIGKILL``, half of them while a checkpoint is being written. The training is resumed until it is through; then
parameters, optimizer, the rows of progress.csv and monitor.csv and TensorBoard's steps must be the same to the last bit. After
each kill, the newest checkpoint must be one that can be read, and at most one interval must be lost.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

N_STEPS, N_ENVS, N_ROLLOUTS, SAVE_EVERY = 20, 2, 40, 2
ROLLOUT = N_STEPS * N_ENVS
# What no two runs have in common
CLOCKS = ("time/fps", "time/time_elapsed", "t")


def train(folder: Path) -> None:
    """Train, from the newest checkpoint if there is one: what is started and killed."""
    import torch as th
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_cpo import CPO, CostEvalCallback, TrainingCheckpoint, find_checkpoint, make_vec_env

    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, horizon = "SafePointCircle-v0", {"max_episode_steps": 30}
    env = VecNormalize(make_vec_env(task, n_envs=N_ENVS, seed=1, monitor_dir=str(folder / "monitor"), env_kwargs=horizon))
    eval_env = VecNormalize(make_vec_env(task, seed=2, env_kwargs=horizon), training=False, norm_reward=False)
    evaluate = CostEvalCallback(
        eval_env, eval_freq=5 * N_STEPS, n_eval_episodes=1, best_model_save_path=str(folder / "best"), verbose=0
    )
    checkpoints = folder / "checkpoints"
    if find_checkpoint(checkpoints) is None:
        kwargs: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 20, "n_critic_updates": 1, "seed": 0, "device": "cpu"}
        model = CPO("MlpPolicy", env, 5.0, policy_kwargs={"net_arch": [8]}, **kwargs)
    else:
        model = CPO.resume(checkpoints, env, device="cpu")
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    model.learn(N_ROLLOUTS * ROLLOUT, callback=[TrainingCheckpoint(SAVE_EVERY * N_STEPS, checkpoints), evaluate])
    model.save(folder / "last")


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return [
            {key: value for key, value in row.items() if key not in CLOCKS}
            for row in csv.DictReader(line for line in file if not line.startswith("#"))
        ]


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in all of TensorBoard's files, those that are there twice too."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in CLOCKS:
                    scalars.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return scalars


def compare(folder: Path, undisturbed: Path) -> list[str]:
    """What is not the same."""
    import torch as th

    from sb3_cpo import CPO

    different = []
    for name in ("last", "best/best_model"):
        model, other = (CPO.load(path / name, device="cpu").get_parameters() for path in (folder, undisturbed))
        weights, moments = model["policy"], model["policy.optimizer"]["state"]
        others = other["policy.optimizer"]["state"]
        different += [f"{name} {key}" for key in weights if not th.equal(weights[key], other["policy"][key])]
        different += [
            f"{name} {i} {key}" for i in moments for key in moments[i] if not th.equal(moments[i][key], others[i][key])
        ]
    for name in ("progress.csv", *(f"monitor/{rank}.monitor.csv" for rank in range(N_ENVS))):
        if read_rows(folder / name) != read_rows(undisturbed / name):
            different.append(name)
    scalars, others = read_scalars(folder), read_scalars(undisturbed)
    for tag in sorted(scalars.keys() | others.keys()):
        # As text, which is exact: NaN is unequal to itself
        if str(scalars.get(tag)) != str(others.get(tag)):
            different.append(f"TensorBoard's {tag}: {scalars.get(tag)} and not {others.get(tag)}")
    return different


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--train", str(folder)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def steps_of(folder: Path) -> int:
    """Steps of the newest checkpoint that can be read; those of a torn one under a checkpoint's name are an error."""
    from sb3_cpo.checkpoints import list_checkpoints
    from sb3_cpo.checkpoints.files import read_checkpoint

    steps = [read_checkpoint(path).state["num_timesteps"] for path in list_checkpoints(folder / "checkpoints")]
    return max(steps, default=0)


class Kill(NamedTuple):
    is_killed: bool
    """Before its end."""
    is_writing: bool
    """While a checkpoint was being written."""
    n_steps: int
    """That it had logged."""


def kill(folder: Path, is_writing: bool, rng: random.Random) -> Kill:
    """
    Let a training go on for a while and kill it.

    :param is_writing: wait until a checkpoint is being written
    """
    began = time.time()
    process = start(folder)
    checkpoints, progress = folder / "checkpoints", folder / "progress.csv"
    before = steps_of(folder)
    # Its own beginning takes seconds: count from the first row that it adds
    while process.poll() is None and not (is_newer(progress, began) and logged_steps(progress) > before):
        time.sleep(0.002)
    end = time.monotonic() + rng.uniform(0.0, 0.7)
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    while is_writing and process.poll() is None and not any(checkpoints.glob("*.unfinished")):
        pass
    is_killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    if not is_killed and status != 0:
        raise SystemExit(f"the training failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    has_torn = any(is_newer(path, began) for path in checkpoints.glob("*.unfinished"))
    return Kill(is_killed, has_torn, logged_steps(progress))


def is_newer(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime > moment
    except OSError:
        return False


def logged_steps(progress: Path) -> int:
    try:
        return max((int(row["time/total_timesteps"]) for row in read_rows(progress)), default=0)
    except (OSError, KeyError, ValueError, TypeError):
        # Not there yet, or half a row
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="only train (what is killed)")
    args = parser.parse_args()
    if args.train is not None:
        train(args.train)
        return
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "undisturbed").mkdir()
        if start(root / "undisturbed").wait() != 0:
            raise SystemExit(f"the training failed:\n{(root / 'undisturbed.log').read_text()[-3000:]}")
        n_kills, n_writing, n_trainings, most_lost = 0, 0, 0, 0
        while n_kills < args.kills:
            folder = root / f"killed{n_trainings}"
            folder.mkdir()
            n_trainings += 1
            is_killed = True
            while is_killed:
                is_writing = n_kills % 2 == 1
                if n_kills < args.kills:
                    is_killed, has_torn, reached = kill(folder, is_writing, rng)
                else:
                    is_killed, has_torn, reached = start(folder).wait() != 0, False, N_ROLLOUTS * ROLLOUT
                if is_killed:
                    n_kills += 1
                    n_writing += has_torn
                    most_lost = max(most_lost, reached - steps_of(folder))
                    print(f"kill {n_kills}: {reached} steps{', while a checkpoint was written' * has_torn}", flush=True)
                    if n_kills > args.kills:
                        raise SystemExit(f"a resumed training failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")
            if different := compare(folder, root / "undisturbed"):
                raise SystemExit(f"not the same after {n_kills} kills: {', '.join(different)}")
    # A row is logged before its update, which the checkpoint holds
    if most_lost > (SAVE_EVERY + 1) * ROLLOUT:
        raise SystemExit(f"{most_lost} steps were lost, more than the interval of {SAVE_EVERY * ROLLOUT}")
    print(
        f"{n_kills} kills in {n_trainings} trainings, {n_writing} of them while a checkpoint was written: all resumed, none "
        f"from a torn file, at most {most_lost} steps played again (interval {SAVE_EVERY * ROLLOUT}), and every end is "
        "bitwise that of the undisturbed training"
    )


if __name__ == "__main__":
    main()
