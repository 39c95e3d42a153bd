"""All that a training is made of between two updates, and how it goes on from there."""

import io
import pickle
import random
import time
import uuid
import warnings
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_cpo.checkpoints import callbacks, environments, files, logs
from sb3_cpo.checkpoints.files import Checkpoint

# Raised when what is stored changes its form
FORMAT = 1


def capture(model: Any, callback: BaseCallback, made: dict[int, dict[str, bytes]]) -> bytes:
    """
    The content of a checkpoint's file: a model that SB3's ``load`` reads, with the statistics of ``VecNormalize``, and the
    state of the training.

    :param callback: all callbacks of this training
    :param made: see :func:`sb3_cpo.checkpoints.callbacks.as_made`
    """
    state = {
        "format": FORMAT,
        "run": identify(model),
        "num_timesteps": model.num_timesteps,
        "total_timesteps": model._total_timesteps,
        "num_timesteps_at_start": model._num_timesteps_at_start,
        "n_updates_at_start": model._n_updates_at_start,
        "seconds": (time.time_ns() - model.start_time) / 1e9,
        "attributes": _on_device(model._training_attributes(), th.device("cpu")),
        "generators": capture_generators(),
        "env": environments.capture(model.env),
        "callbacks": callbacks.capture(callback, made, shared_objects(model)),
        "logger": logs.capture_logger(model.logger),
    }
    if (problem := state["env"].problem) is not None:
        warnings.warn(f"the state of the environment cannot be stored ({problem}): a resumed training will begin with a reset")
    file = io.BytesIO()
    model.save(file)
    files.add_entries(file, {files.TRAINING_STATE: _dumps(state)})
    return file.getvalue()


def _dumps(state: dict[str, Any]) -> bytes:
    try:
        return cloudpickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        for name, value in state.items():
            try:
                cloudpickle.dumps(value)
            except Exception as reason:
                raise TypeError(f"the {name} of this training cannot be stored: {reason}") from error
        raise


def identify(model: Any) -> str:
    """The name of a run; those of one folder are of one run."""
    if model._run is None:
        model._run = uuid.uuid4().hex
    return model._run


def shared_objects(model: Any) -> dict[str, Any]:
    """What others refer to, and is restored by itself."""
    names = ("env", "policy", "rollout_buffer", "_logger", "ledger", "action_space", "observation_space")
    return {"model": model, **{name: vars(model).get(name) for name in names}}


def capture_generators() -> dict[str, Any]:
    """States of the random generators of torch, numpy and Python."""
    return {
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() and th.cuda.is_initialized() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def restore_generators(state: dict[str, Any]) -> None:
    th.set_rng_state(state["torch"])
    if state["cuda"] and th.cuda.device_count() == len(state["cuda"]):
        th.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def _on_device(value: Any, device: th.device) -> Any:
    """Tensors in lists, tuples and dictionaries."""
    if isinstance(value, th.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on_device(entry, device) for key, entry in value.items()}
    if isinstance(value, deque):
        return deque((_on_device(entry, device) for entry in value), value.maxlen)
    if isinstance(value, list):
        return [_on_device(entry, device) for entry in value]
    if isinstance(value, tuple):
        entries = [_on_device(entry, device) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def find(folder: str | Path) -> Checkpoint:
    """
    :raises FileNotFoundError: there is no checkpoint
    """
    checkpoint = files.find_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(f"there is no training checkpoint in {folder}: TrainingCheckpoint saves them")
    if checkpoint.state["format"] != FORMAT:
        raise ValueError(f"{checkpoint.path} was saved by another version of sb3-cpo: load it with `load`")
    return checkpoint


class Resumption:
    """
    What waits for the next ``learn`` of a resumed model. Environments and attributes of the model go on at once.

    :param model: as SB3's ``load`` has made it from the checkpoint
    :param checkpoint: where it goes on
    """

    def __init__(self, model: Any, checkpoint: Checkpoint):
        state = self.state = checkpoint.state
        model._run = state["run"]
        # In a new model they are the same objects
        model.action_space, model.observation_space = model.env.action_space, model.env.observation_space
        self.has_env_state = environments.restore(model.env, state["env"])
        if not self.has_env_state:
            model._last_obs = None
            if not state["env"].generators:
                # Those of other processes are not known: the same ones whenever it is resumed, and not those of the beginning
                model.env.seed(zlib.crc32(state["generators"]["torch"].numpy().tobytes()))
            warnings.warn(
                f"the state of the environment is not in the checkpoint ({state['env'].problem}): training goes on with a "
                "reset, so that it will not be exactly the one that was interrupted"
            )

    def begin_learn(self, model: Any, total_timesteps: int, reset_num_timesteps: bool) -> int:
        """
        SB3's ``_setup_learn`` follows.

        :return: steps that are left. The number that the interrupted ``learn`` was given, or what was left of it, ends where
            that would have ended; another counts from where that began, with ``reset_num_timesteps=False`` from here
        """
        before, start, total = model.num_timesteps, self.state["num_timesteps_at_start"], self.state["total_timesteps"]
        if total in (start + total_timesteps, before + total_timesteps):
            left = total - before
        else:
            left = start + total_timesteps - before if reset_num_timesteps else total_timesteps
        logs.configure_as_before(model, self.state["logger"]["folder"])
        return left

    def finish_setup(self, model: Any, has_custom_logger: bool) -> None:
        """After SB3's ``_setup_learn``: clock and log go on."""
        model._custom_logger = has_custom_logger
        model.start_time = time.time_ns() - int(self.state["seconds"] * 1e9)
        model._num_timesteps_at_start = self.state["num_timesteps_at_start"]
        model._n_updates_at_start = self.state["n_updates_at_start"]
        logs.restore_logger(model.logger, self.state["logger"])

    def begin_rollout(self, model: Any, callback: BaseCallback) -> None:
        """Before the first rollout: callbacks have begun, and whatever has drawn random numbers until now is over."""
        vars(model).update(_on_device(self.state["attributes"], model.device))
        callbacks.restore(callback, self.state["callbacks"], shared_objects(model))
        restore_generators(self.state["generators"])
