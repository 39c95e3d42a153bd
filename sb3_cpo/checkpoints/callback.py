"""``TrainingCheckpoint``: saves what a training needs to go on as if it had never stopped."""

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_cpo.checkpoints import callbacks, files, training

# What a shell says of a process that SIGTERM has ended
TERMINATED = 128 + signal.SIGTERM


class TrainingCheckpoint(BaseCallback):
    """
    Saves checkpoints from which ``resume`` continues a training exactly: model, optimizer, random generators, environments,
    statistics of ``VecNormalize``, callbacks and logs.

    It takes the place of SB3's ``CheckpointCallback``, which saves in the middle of a rollout. Checkpoints are taken at the
    beginning, between two updates and at the end, each in one file, ``<name_prefix>_<steps>_steps.zip``, which SB3's ``load``
    reads too. A file is written whole or not at all, and older ones are deleted only after that.

    SIGTERM, with which clusters end a job, ends training after the update that is in progress: it is saved, and the program
    exits with status 143. A second SIGTERM ends it at once.

    :param save_freq: Save at the first update after every ``save_freq`` calls of the callback (steps of the vectorised
        environment). 1: after every update
    :param save_path: Path to the folder where the checkpoints will be saved, of one run only
    :param name_prefix: Common prefix to the saved files
    :param n_kept: Number of checkpoints that are kept, the newest ones. None: all
    :param min_seconds: Save no more often than this
    :param handle_sigterm: Whether to save and exit on SIGTERM
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving a checkpoint
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | Path,
        name_prefix: str = "checkpoint",
        n_kept: int | None = 3,
        min_seconds: float = 0.0,
        handle_sigterm: bool = True,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        if save_freq < 1:
            raise ValueError(f"save_freq must be at least 1, not {save_freq}")
        if n_kept is not None and n_kept < 1:
            raise ValueError(f"n_kept must be at least 1, or None for all, not {n_kept}")
        self.save_freq = save_freq
        self.save_path = str(save_path)
        self.name_prefix = name_prefix
        self.n_kept = n_kept
        self.min_seconds = min_seconds
        self.handle_sigterm = handle_sigterm
        self.last_save = 0
        """Calls of the callback until the last checkpoint."""
        self._root: BaseCallback | None = None

    # ---------------------------------------------------------------- when

    def prepare(self, root: BaseCallback) -> None:
        """
        The algorithm calls this at the beginning of ``learn``.

        :param root: all callbacks of this training
        """
        if self._root is not root:
            self._root, self._made = root, callbacks.as_made(root)
        self._last_time = time.monotonic()
        self._n_updates = self._saved_updates = -1
        self._is_terminated = False
        self._previous_handler: Any = None
        self._check_folder()
        if self.handle_sigterm and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def release(self) -> None:
        """The algorithm calls this at the end of ``learn``, however it ends."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    def _init_callback(self) -> None:
        if not hasattr(self.model, "_training_attributes"):
            raise TypeError(
                f"TrainingCheckpoint saves the algorithms of sb3_cpo, not {type(self.model).__name__}: use CheckpointCallback"
            )

    def get_checkpoint_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this callback itself."""
        return {"n_calls": self.n_calls, "num_timesteps": self.num_timesteps, "last_save": self.last_save}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # It goes on from a file that is there
        self._saved_updates = self.model._n_updates

    def _check_folder(self) -> None:
        """
        :raises ValueError: the folder has checkpoints of another run, or newer ones, which this run would delete one by one
        """
        try:
            newest = files.find_checkpoint(self.save_path, self.name_prefix)
        except ValueError:
            newest = None  # none of them can be read
        n_steps = 0 if newest is None else newest.state["num_timesteps"]
        is_other = newest is not None and newest.state["run"] != training.identify(self.model)
        if is_other or n_steps > self.model.num_timesteps:
            raise ValueError(
                f"{self.save_path} has checkpoints of {'another' if is_other else 'this'} run up to step {n_steps}: continue "
                f"from there with {type(self.model).__name__}.resume({self.save_path!r}, env), or choose another folder"
            )
        for leftover in Path(self.save_path).glob(f"{self.name_prefix}_*{files.UNFINISHED}"):
            leftover.unlink()

    def between_updates(self) -> None:
        """
        The algorithm calls this before every rollout.

        :raises SystemExit: SIGTERM has arrived
        """
        self._n_updates = self.model._n_updates
        is_due = self.n_calls - self.last_save >= self.save_freq and time.monotonic() - self._last_time >= self.min_seconds
        # At the beginning too: a run that is killed before its first interval goes on as well, and takes back its rows
        if self.n_calls == 0 or is_due or self._is_terminated:
            self.save()
        self.exit_if_terminated()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # A rollout that a callback has stopped had no update: it is played again
        if self._root is not None and self.model._n_updates > self._n_updates >= 0:
            self.save()
            self.exit_if_terminated()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._is_terminated:
            sys.exit(TERMINATED)
        self._is_terminated = True
        print("SIGTERM: training ends after this update, with a checkpoint (again: at once)", file=sys.stderr, flush=True)

    def exit_if_terminated(self, error: Exception | None = None) -> None:
        """
        :param error: what the signal led to: it ends workers of ``SubprocVecEnv`` before the update
        :raises SystemExit: SIGTERM has arrived
        """
        if self._is_terminated:
            self._is_terminated = False
            raise SystemExit(TERMINATED) from error

    # ---------------------------------------------------------------- what

    def save(self) -> None:
        """
        Save a checkpoint. Training must be between two updates.

        :raises OSError: it could not be written; older ones are as they were
        """
        if self.model._n_updates == self._saved_updates:
            return
        assert self._root is not None
        self.last_save, self._last_time = self.n_calls, time.monotonic()
        content = training.capture(self.model, self._root, self._made)
        path = Path(self.save_path) / f"{self.name_prefix}_{self.model.num_timesteps}_steps.zip"
        files.write_atomically(path, content)
        self._saved_updates = self.model._n_updates
        names = files.list_checkpoints(self.save_path, self.name_prefix)
        if self.verbose >= 2:
            print(f"Saving checkpoint to {path}")
        # What is newer could not be read when this run was resumed
        *newer, _ = names[: names.index(path) + 1]
        older = [] if self.n_kept is None else names[names.index(path) + self.n_kept :]
        for name in [*newer, *older]:
            name.unlink(missing_ok=True)
