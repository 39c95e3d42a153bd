"""Files of checkpoints: whole or not there, whenever writing is interrupted; and the newest that can be read."""

import contextlib
import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

# What a training checkpoint has beside SB3's entries, and every model that was trained with VecNormalize
TRAINING_STATE, VEC_NORMALIZE = "training_state.pkl", "vecnormalize.pkl"
# SB3's own, without which there is no model
MODEL_ENTRIES = ("data", "policy.pth")
# Named as SB3's CheckpointCallback names its files
NAME = re.compile(r"(?P<prefix>.*)_(?P<n_steps>\d+)_steps\.zip")
UNFINISHED = ".unfinished"


def write_atomically(path: str | Path, content: bytes) -> None:
    """
    Write a file: all of it, or none, whenever this is interrupted. What was there before stays until the new file is on disk.

    :raises OSError: the disk is full, the folder is read-only, ...; the message names the file
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = "the file from before is as it was" if path.exists() else "no file is left"
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}; {kept}") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the new name to disk, too. Some file systems cannot, and need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def add_entries(model_file: io.BytesIO, entries: Mapping[str, bytes]) -> None:
    """Put more into the zip file that SB3 has made of a model; SB3's ``load`` does not look at it."""
    with zipfile.ZipFile(model_file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def save_model(
    save: Callable[[io.BytesIO], None], vec_normalize: VecNormalize | None, path: str | Path | io.BufferedIOBase
) -> None:
    """
    Save a model and the statistics of ``VecNormalize`` in one file, whole or not at all.

    :param save: SB3's method of the model
    :param path: the ending is ``.zip`` where there is none; an open file is written to
    :raises OSError: the file could not be written; the one from before is as it was
    """
    model_file = io.BytesIO()
    save(model_file)
    with zipfile.ZipFile(model_file) as archive:
        has_statistics = VEC_NORMALIZE in archive.namelist()
    if vec_normalize is not None and not has_statistics:
        add_entries(model_file, {VEC_NORMALIZE: pickle.dumps(vec_normalize)})
    if isinstance(path, str | Path):
        write_atomically(path if Path(path).suffix else f"{path}.zip", model_file.getvalue())
    else:
        path.write(model_file.getvalue())


class Checkpoint(NamedTuple):
    """A training checkpoint that could be read."""

    path: Path
    state: dict[str, Any]
    """What ``training.capture`` has made."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """
    Read a checkpoint, all of it: what is torn is an error here and not later. It is unpickled: only read what you trust.

    :raises ValueError: it is torn, or no training checkpoint
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if missing := [name for name in MODEL_ENTRIES if name not in names]:
                raise ValueError(f"it is torn: {', '.join(missing)} is missing")
            if TRAINING_STATE not in names:
                raise ValueError("it is a model and no training checkpoint: load it with `load`")
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"it is torn: the checksum of {broken} is wrong")
            state = cloudpickle.loads(archive.read(TRAINING_STATE))
        data, _, _ = load_from_zip_file(io.BytesIO(content), device="cpu")
    except Exception as error:  # what a torn file raises is anybody's guess
        raise ValueError(f"{path} cannot be read: {error or repr(error)}") from error
    if data is None or "policy_class" not in data:
        raise ValueError(f"{path} cannot be read: it says nothing of its policy")
    return Checkpoint(path, state)


def list_checkpoints(folder: str | Path, name_prefix: str | None = None) -> list[Path]:
    """
    The files in a folder that are named like checkpoints, the newest (the one of most steps) first.

    :param name_prefix: only those whose name begins with it
    """
    matches = [(NAME.fullmatch(path.name), path) for path in Path(folder).glob("*_steps.zip")]
    found = [
        (int(match["n_steps"]), path.name, path)
        for match, path in matches
        if match is not None and name_prefix in (None, match["prefix"])
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


def find_checkpoint(folder: str | Path, name_prefix: str | None = None) -> Checkpoint | None:
    """
    The newest checkpoint that really can be read; a warning names those that cannot. It is unpickled: only read what you
    trust.

    :param folder: of the checkpoints, or the file of one
    :param name_prefix: only those whose name begins with it
    :return: None: there is none
    :raises ValueError: there are some, and none of them can be read
    """
    if Path(folder).is_file():
        return read_checkpoint(folder)
    errors: list[ValueError] = []
    for path in list_checkpoints(folder, name_prefix):
        try:
            checkpoint = read_checkpoint(path)
        except (ValueError, FileNotFoundError) as error:
            errors.append(ValueError(str(error)))
            continue
        for unreadable in errors:
            warnings.warn(f"{unreadable}. Going on from the one before, {path.name}")
        return checkpoint
    if errors:
        raise errors[0]
    return None


def load_vec_normalize(path: str | Path, venv: VecEnv) -> VecNormalize | None:
    """
    The statistics of ``VecNormalize`` that were saved with a model (``model.save``, the best model, checkpoints), around an
    environment. They are unpickled: only read what you trust.

    :return: None: the model was trained without
    """
    path = Path(path if Path(path).suffix else f"{path}.zip")
    with zipfile.ZipFile(path) as archive:
        if VEC_NORMALIZE not in archive.namelist():
            return None
        vec_normalize = pickle.loads(archive.read(VEC_NORMALIZE))
    vec_normalize.set_venv(venv)
    return vec_normalize
