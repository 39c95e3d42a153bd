"""Rows of monitor.csv, for every monitor here."""

from typing import Any

from stable_baselines3.common.monitor import ResultsWriter


def write_row(writer: ResultsWriter, episode: dict[str, Any]) -> None:
    """
    Write an episode into a monitor.csv; the columns that the file does not have are left out.

    :raises OSError: the disk is full, ...; the message names the file
    """
    columns = writer.logger.fieldnames
    try:
        writer.write_row({key: value for key, value in episode.items() if key in columns})
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{writer.file_handler.name} could not be written: {reason}") from error
