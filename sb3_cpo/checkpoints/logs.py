"""
What was logged until a checkpoint: rows after it, which a killed run may have written, are taken back.

Files that SB3 opens anew (progress.csv, monitor.csv, ...) travel inside of the checkpoint, since opening has emptied them.
TensorBoard's are cut where they were.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


def capture_logger(logger: Logger) -> dict[str, Any]:
    """What is recorded and not dumped yet, and what the outputs have written."""
    return {
        "folder": logger.dir,
        "values": dict(logger.name_to_value),
        "counts": dict(logger.name_to_count),
        "excluded": dict(logger.name_to_excluded),
        "outputs": [(_name(output), _capture_output(output)) for output in logger.output_formats],
    }


def restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    logger.name_to_value.update(state["values"])
    logger.name_to_count.update(state["counts"])
    logger.name_to_excluded.update(state["excluded"])
    outputs = list(logger.output_formats)
    for name, content in state["outputs"]:
        # Another logger may have other outputs
        output = next((output for output in outputs if _name(output) == name), None)
        if output is not None:
            outputs.remove(output)
            _restore_output(output, content)


def configure_as_before(model: OnPolicyAlgorithm, folder: str | None) -> None:
    """Where SB3 would look for the last folder of TensorBoard, continue the one of the checkpoint."""
    if model._custom_logger or model.tensorboard_log is None or folder is None:
        return
    if Path(folder).resolve().parent == Path(model.tensorboard_log).resolve():
        model._logger = configure(folder, ["stdout", "tensorboard"] if model.verbose >= 1 else ["tensorboard"])
        # For the time of SB3's _setup_learn
        model._custom_logger = True


def _name(output: KVWriter) -> str:
    file = _file(output)
    return type(output).__name__ if file is None else f"{type(output).__name__} {Path(file.name).name}"


def _file(output: KVWriter) -> TextIO | None:
    """The file of progress.csv, progress.json, log.txt; None: it writes none, or to the screen."""
    file: Any = getattr(output, "file", None)
    is_own = getattr(output, "own_file", True)
    return file if is_own and isinstance(getattr(file, "name", None), str) and os.path.isfile(file.name) else None


def _capture_output(output: KVWriter) -> Any:
    if hasattr(output, "get_checkpoint_state"):
        return output.get_checkpoint_state()
    if isinstance(output, TensorBoardOutputFormat):
        output.writer.flush()
        return str(Path(output.writer.log_dir).resolve()), _event_files(output.writer.log_dir)
    file = _file(output)
    return None if file is None else (_read(file), getattr(output, "keys", None))


def _restore_output(output: Any, content: Any) -> None:
    if content is None:
        return
    if hasattr(output, "set_checkpoint_state"):
        output.set_checkpoint_state(content)
    elif isinstance(output, TensorBoardOutputFormat):
        folder, sizes = content
        if str(Path(output.writer.log_dir).resolve()) == folder:
            _cut_event_files(output, sizes)
    else:
        text, keys = content
        file = _file(output)
        assert file is not None
        _rewrite(file, text)
        if keys is not None:
            output.keys = list(keys)


def _event_files(folder: str) -> dict[str, int]:
    """Size of each of TensorBoard's files in a folder."""
    return {path.name: path.stat().st_size for path in Path(folder).glob("events.out.tfevents.*")}


def _cut_event_files(output: TensorBoardOutputFormat, sizes: dict[str, int]) -> None:
    assert output.writer.file_writer is not None
    own = Path(output.writer.file_writer.event_writer._file_name).name
    for name in _event_files(output.writer.log_dir):
        path = Path(output.writer.log_dir) / name
        if name in sizes:
            os.truncate(path, min(sizes[name], path.stat().st_size))
        elif name != own:
            # Of a run that went on from the same checkpoint, or an earlier one, and was killed
            path.unlink()


def capture_results(writer: ResultsWriter) -> tuple[str, Sequence[str]]:
    """Of a monitor.csv: its text, and its columns."""
    return _read(writer.file_handler), tuple(writer.logger.fieldnames)


def restore_results(writer: ResultsWriter, content: tuple[str, Sequence[str]]) -> None:
    text, columns = content
    _rewrite(writer.file_handler, text)
    writer.logger.fieldnames = columns


def _read(file: Any) -> str:
    if not file.closed:
        file.flush()
    return Path(file.name).read_bytes().decode()


def _rewrite(file: Any, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def cut_file(path: Path, n_lines: int) -> bool:
    """Take back the lines that were written after a checkpoint; False: the file has lost some that were written before."""
    if not path.is_file():
        return False
    with open(path, "rb+") as file:
        lines = [line for _, line in zip(range(n_lines), file, strict=False) if line.endswith(b"\n")]
        file.truncate(sum(map(len, lines)))
    return len(lines) == n_lines
