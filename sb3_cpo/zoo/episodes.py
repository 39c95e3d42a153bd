"""One monitor file per run, however many copies of the environment it has."""

import time
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

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

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):
            if "episode" in info:
                self._write(info["episode"])
        return True

    def _write(self, episode: dict[str, Any]) -> None:
        if self.writer is None:
            header: dict[str, float | str] = {"t_start": self.start_time, "env_id": self.env_id}
            self.writer = GrowingResultsWriter(self.folder, header, [key for key in episode if key not in ("r", "l", "t")])
        elif any(key not in self.writer.logger.fieldnames for key in episode):
            # A cost that occurs for the first time was 0 before
            self.writer.set_columns([key for key in episode if key not in ("r", "l", "t")], 0.0)
        # The monitors have begun at different times
        self.writer.write_row({**episode, "t": round(time.time() - self.start_time, 6)})

    def _on_training_end(self) -> None:
        if self.writer is not None:
            self.writer.close()
