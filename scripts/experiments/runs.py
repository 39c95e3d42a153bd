"""
An experiment is data, a table of runs; this is how it is carried out.

Several runs at a time, each in a process of its own. A run that is done is skipped, one that was stopped (by Ctrl-C, kill -9,
a crash of the machine) goes on from its last checkpoint, and each leaves one CSV file:

    <name>.csv          one row per rollout; there only when the run is done
    <name>.json         what was run; other settings under the same name are refused
    <name>.unfinished/  checkpoints, until then

A checkpoint is taken between two updates. What it does not hold is the state of the environments and of the random numbers: a
continued run begins with a reset, and with random numbers of its own.
"""

import json
import multiprocessing
import os
import pickle
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, filter_excluded_keys

Row = dict[str, Any]
# Kept, so that one that cannot be read is not the end
N_CHECKPOINTS = 2


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


class _Checkpoints(BaseCallback):
    """
    Saves model and rows together, between two updates.

    :param every: seconds
    """

    def __init__(self, folder: Path, rows: list[Row], every: float):
        super().__init__()
        self.folder, self.rows, self.every = folder, rows, every
        self.last_time = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.rows and time.monotonic() - self.last_time >= self.every:
            self.save()
            self.last_time = time.monotonic()

    def save(self) -> None:
        target = self.folder / f"{self.num_timesteps:012d}"
        if target.exists():
            return
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        self.model.save(unfinished / "model.zip")
        logger = self.model.logger
        with open(unfinished / "rows.pkl", "wb") as file:
            # The update has logged already what the next rollout's row will show
            pickle.dump((self.rows, dict(logger.name_to_value), dict(logger.name_to_excluded)), file)
        for path in unfinished.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        unfinished.rename(target)
        for old in sorted(self.folder.glob("[0-9]*"))[:-N_CHECKPOINTS]:
            shutil.rmtree(old)


def _continue(model: Any, run: Run, folder: Path, rows: list[Row]) -> Any:
    """The newest checkpoint that can be read, and its rows; the new model where there is none."""
    for checkpoint in sorted(folder.glob("[0-9]*"), reverse=True):
        try:
            with open(checkpoint / "rows.pkl", "rb") as file:
                known, values, excluded = pickle.load(file)
            continued = type(model).load(checkpoint / "model.zip", env=model.get_env(), device=model.device)
        except Exception as error:  # what a torn file raises is anybody's guess
            print(f"{checkpoint} cannot be read, trying the one before ({error!r})", file=sys.stderr)
            continue
        # Those of the beginning again would be the same episodes again
        continued.set_random_seed(run.seed + continued.num_timesteps)
        rows.extend(known)
        continued.set_logger(model.logger)
        model.logger.name_to_value.update(values)
        model.logger.name_to_excluded.update(excluded)
        return continued
    return model


def is_done(path: Path, run: Run) -> bool:
    """
    :raises ValueError: what is there is a run with other settings
    """
    description = path.with_suffix(".json")
    if description.exists() and json.loads(description.read_text()) != json.loads(json.dumps(run.describe())):
        raise ValueError(f"{path} is of {description.read_text()}, not of {json.dumps(run.describe())}: choose another folder")
    if path.exists() and not description.exists():
        raise ValueError(f"{path} does not say what was run ({description.name} is missing): choose another folder")
    return path.exists()


def _replace(path: Path, text: str) -> None:
    """All of the text or what was there before, whenever this is interrupted."""
    new = path.with_name(f"{path.name}.new")
    with open(new, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


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
    _replace(path.with_suffix(".json"), json.dumps(run.describe()))
    folder = path.with_suffix(".unfinished")
    rows: list[Row] = []
    model = make_model(run)
    model.set_logger(Logger(None, [_Rows(rows, make_row)]))
    model = _continue(model, run, folder, rows)
    print(f"{path}: from step {model.num_timesteps:,} to {run.steps:,}", file=sys.stderr, flush=True)
    checkpoints = _Checkpoints(folder, rows, save_every)
    if model.num_timesteps < run.steps:
        model.learn(run.steps - model.num_timesteps, callback=checkpoints, reset_num_timesteps=model.num_timesteps == 0)
    _replace(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    shutil.rmtree(folder, ignore_errors=True)


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
