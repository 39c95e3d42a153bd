"""One monitor file per run, however many copies of the environment it has."""

import os
import time
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from safe_envs.monitor_rows import write_row
from sb3_cpo.checkpoints.logs import cut_file
from sb3_cpo.growing_results import GrowingResultsWriter


class EpisodeWriter(BaseCallback):
    """
    Writes every episode of training into ``monitor.csv``, in the order in which they end, as ``load_results`` reads it.

    (SB3's ``Monitor`` writes a file per copy: a hundred files, which the operating system keeps open.)

    :param folder: of the run
    :param env_id: for the header
    """

    def __init__(self, folder: str, env_id: str):
        super().__init__()
        self.folder, self.env_id = folder, env_id
        self.start_time = time.time()
        self.writer: GrowingResultsWriter | None = None
        self.n_episodes = 0

    @property
    def path(self) -> Path:
        """The file that is written."""
        return Path(self.folder) / Monitor.EXT

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):
            if "episode" in info:
                self._write(info["episode"])
        return True

    def _write(self, episode: dict[str, Any]) -> None:
        keys = [key for key in episode if key not in ("r", "l", "t")]
        if self.writer is None:
            header: dict[str, float | str] = {"t_start": self.start_time, "env_id": self.env_id}
            self.writer = GrowingResultsWriter(self.folder, header, keys)
        elif not set(keys) <= set(self.writer.logger.fieldnames):
            # A cost that occurs for the first time was 0 before
            self.writer.set_columns(keys, 0.0)
        self.n_episodes += 1
        # The monitors have begun at different times
        write_row(self.writer, {**episode, "t": round(time.time() - self.start_time, 6)})

    def _on_training_end(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def get_checkpoint_state(self) -> dict[str, Any]:
        """How far the file is."""
        state = {name: vars(self)[name] for name in ("n_calls", "num_timesteps", "start_time", "n_episodes")}
        if self.writer is None:
            return {"attributes": state, "n_lines": None, "columns": ()}
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        # Two of a header
        return {"attributes": state, "n_lines": 2 + self.n_episodes, "columns": tuple(self.writer.logger.fieldnames)}

    def set_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Go on there; what was written since is taken back."""
        vars(self).update(state["attributes"])
        if state["n_lines"] is None:
            return
        if not cut_file(self.path, state["n_lines"]):
            warnings.warn(f"{self.path} has lost episodes that were played before the checkpoint")
        # The first three are SB3's own
        is_new = not self.path.exists()
        header: dict[str, float | str] = {"t_start": self.start_time, "env_id": self.env_id}
        self.writer = GrowingResultsWriter(self.folder, header, state["columns"][3:], override_existing=is_new)
