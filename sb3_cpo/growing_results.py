"""A monitor.csv whose columns can become more: some costs are mentioned only when they occur."""

import csv
import os
from collections.abc import Iterable
from typing import Any

from stable_baselines3.common.monitor import Monitor, ResultsWriter


class GrowingResultsWriter(ResultsWriter):
    """
    SB3's ``ResultsWriter``, whose columns can become more. A file that is appended to keeps the columns that it has.

    :param filename: as SB3's, ``monitor.csv`` is appended to it
    :param header: of a new file
    :param extra_keys: columns beside return, length and time
    :param override_existing: whether an existing file is overridden; appending to none begins a new one
    """

    def __init__(self, filename: str, header: dict[str, Any], extra_keys: Iterable[str] = (), override_existing: bool = True):
        self.path, self.header = _results_path(filename), header
        # SB3's begins a new file; rows that are to stay are read before
        content = None if override_existing else _read(self.path)
        if content is None:
            super().__init__(self.path, header, tuple(dict.fromkeys(extra_keys)))
        else:
            super().__init__(self.path, header, tuple(content[1][3:]), override_existing=False)
            self.set_columns(extra_keys)

    def set_columns(self, extra_keys: Iterable[str], earlier: float | str = "") -> None:
        """
        These columns, and in a file that has rows, those that it has.

        :param earlier: what a new column has in the rows that are there
        """
        extra_keys = tuple(dict.fromkeys(extra_keys))
        content = _read(self.path)
        if content is None:
            self.close()
            super().__init__(self.path, self.header, extra_keys)
            return
        first_line, columns, rows = content
        new = [key for key in extra_keys if key not in columns]
        if not new:
            return
        self.close()
        unfinished = f"{self.path}.new"
        with open(unfinished, "w", newline="\n") as file:
            file.write(first_line)
            writer = csv.DictWriter(file, [*columns, *new])
            writer.writeheader()
            writer.writerows({**dict.fromkeys(new, earlier), **row} for row in rows)
        os.replace(unfinished, self.path)
        super().__init__(self.path, self.header, (*columns[3:], *new), override_existing=False)


def _results_path(filename: str) -> str:
    """The name that SB3's ``ResultsWriter`` gives the file."""
    if not filename.endswith(Monitor.EXT):
        filename = os.path.join(filename, Monitor.EXT) if os.path.isdir(filename) else f"{filename}.{Monitor.EXT}"
    return os.path.realpath(filename)


def _read(path: str) -> tuple[str, list[str], list[dict[str, Any]]] | None:
    """First line, columns and rows; None where there are no rows."""
    if not os.path.exists(path):
        return None
    with open(path, newline="") as file:
        first_line, reader = file.readline(), csv.DictReader(file)
        rows = list(reader)
    return (first_line, list(reader.fieldnames or ()), rows) if rows else None
