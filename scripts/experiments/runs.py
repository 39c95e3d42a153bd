"""
An experiment is data, a table of runs; this is how it is carried out.

Several runs at a time, each in a process of its own. A run that is done is skipped; one that was stopped (by Ctrl-C, kill -9,
a crash of the machine) goes on from its last checkpoint, and so does one that is to be longer. Each leaves

    <name>.csv           one row per rollout; there only when the run is done
    <name>.json          what was run, and how far; other settings under the same name are refused
    <name>.checkpoints/  from which it goes on

A run that goes on is the one that was not stopped, to the last bit, where the environment can say its state.
"""

import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch as th
from stable_baselines3.common.logger import KVWriter, Logger, filter_excluded_keys

from sb3_cpo import TrainingCheckpoint
from sb3_cpo.checkpoints import find_checkpoint, list_checkpoints
from sb3_cpo.checkpoints.files import write_atomically

Row = dict[str, Any]


class Run(NamedTuple):
    """Everything that decides what a run is."""

    task: str
    seed: int
    steps: int
    settings: dict[str, Any]
    """Arguments that differ from the algorithm's defaults."""
    algorithm: str = "CPO"

    def describe(self) -> dict[str, Any]:
        """As it is written into the file beside the results: without what is as always."""
        return {key: value for key, value in self._asdict().items() if value != self._field_defaults.get(key)}


def plan(
    tasks: Iterable[str],
    names: Iterable[str],
    seeds: Iterable[int],
    steps: float,
    settings_of: Callable[[str, str], dict[str, Any]],
    path_of: Callable[[str, str, int], Path],
) -> dict[Path, Run]:
    """
    CSV file -> run, of every task, algorithm and seed; seed by seed, so that an experiment that is stopped has compared
    everything on fewer seeds.

    :param names: of the algorithms
    :param settings_of: task, algorithm -> arguments that differ from its defaults
    :param path_of: task, algorithm, seed -> CSV file
    """
    return {
        path_of(task, name, seed): Run(task, seed, int(steps), settings_of(task, name), name)
        for seed, task, name in product(seeds, tasks, names)
    }


MakeModel = Callable[[Run], Any]
MakeRow = Callable[[Row], Row]


class _Rows(KVWriter):
    """Keeps what SB3's logger dumps."""

    def __init__(self, rows: list[Row], make_row: MakeRow):
        self.rows, self.make_row = rows, make_row

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append(self.make_row(filter_excluded_keys(key_values, key_excluded, "csv")))

    def close(self) -> None:
        pass

    def get_checkpoint_state(self) -> list[Row]:
        return list(self.rows)

    def set_checkpoint_state(self, state: list[Row]) -> None:
        self.rows[:] = state


def is_done(path: Path, run: Run) -> bool:
    """
    :raises ValueError: what is there is a run with other settings, or a longer one
    """
    description = path.with_suffix(".json")
    if not description.exists():
        if path.exists():
            raise ValueError(f"{path} does not say what was run ({description.name} is missing): choose another folder")
        return False
    found, wanted = json.loads(description.read_text()), json.loads(json.dumps(run.describe()))
    if {**found, "steps": 0} != {**wanted, "steps": 0} or found["steps"] > run.steps:
        raise ValueError(f"{path} is of {json.dumps(found)}, not of {json.dumps(wanted)}: choose another folder")
    return found["steps"] == run.steps and path.exists()


def train(path: Path, run: Run, make_model: MakeModel, make_row: MakeRow = dict, save_every: float = 120.0) -> None:
    """
    One run, from its last checkpoint or from the beginning, to ``path``.

    :param make_model: a new model for a run
    :param make_row: a row of the CSV file from one of SB3's log
    :param save_every: seconds between checkpoints
    """
    if is_done(path, run):
        return
    # Networks this small run fastest on one thread
    th.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    description = path.with_suffix(".json")
    if not description.exists():
        write_atomically(description, json.dumps(run._replace(steps=0).describe()).encode())
    folder = path.with_suffix(".checkpoints")
    rows: list[Row] = []
    model = make_model(run)
    if list_checkpoints(folder):
        if (asked := find_checkpoint(folder).state["total_timesteps"]) > run.steps:
            raise ValueError(f"{path} is on its way to {asked:,} steps, {run.steps:,} are fewer: choose another folder")
        model = type(model).resume(folder, model.get_env(), model.device)
    elif path.exists():
        raise ValueError(f"{path} has no checkpoint in {folder.name} to go on from: choose another folder")
    model.set_logger(Logger(None, [_Rows(rows, make_row)]))
    print(f"{path}: from step {model.num_timesteps:,} to {run.steps:,}", file=sys.stderr, flush=True)
    model.learn(run.steps, callback=TrainingCheckpoint(1, folder, n_kept=2, min_seconds=save_every))
    # The rows of a shorter run first: nobody finds them beside a longer description
    path.unlink(missing_ok=True)
    write_atomically(description, json.dumps(run.describe()).encode())
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())


def run_all(
    runs: Mapping[Path, Run], make_model: MakeModel, make_row: MakeRow = dict, jobs: int = 1, save_every: float = 120.0
) -> None:
    """
    Carry out what is not done yet.

    :param runs: CSV file -> run
    :param jobs: how many at a time
    :raises SystemExit: some failed, after all others are through
    """
    left = {path: run for path, run in runs.items() if not is_done(path, run)}
    for path in runs.keys() - left.keys():
        print(f"{path}: there already", flush=True)
    failed = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(train, path, run, make_model, make_row, save_every): path for path, run in left.items()}
        for future in as_completed(futures):
            path, error = futures[future], future.exception()
            if error is None:
                print(f"{path}: done", flush=True)
            else:
                traceback.print_exception(error)
                failed.append(str(path))
    if failed:
        sys.exit(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def load_logs(runs: Mapping[Path, Run], task: str) -> dict[str, list[pd.DataFrame]]:
    """What the runs of a task have left: algorithm -> its logs, in the order of the runs."""
    logs: dict[str, list[pd.DataFrame]] = {}
    for path, run in runs.items():
        if run.task == task:
            logs.setdefault(run.algorithm, []).append(pd.read_csv(path))
    return logs
