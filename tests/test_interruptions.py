"""A training that is ended by a signal, by Ctrl-C or by a full disk."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from resuming import KWARGS, N_STEPS, ROLLOUT, assert_same_model, risky
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from toy_envs import RiskyEnv

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, PDO, CostEvalCallback, TrainingCheckpoint, critics, make_vec_env
from sb3_cpo.checkpoints import find_checkpoint, list_checkpoints


class Send(BaseCallback):
    """Send this process a signal at some steps."""

    def __init__(self, number, *steps):
        super().__init__()
        self.number, self.steps = number, steps

    def _on_step(self):
        if self.num_timesteps in self.steps:
            os.kill(os.getpid(), self.number)
        return True


# ---------------------------------------------------------------- signals


def test_sigterm_saves_after_the_update_and_exits_with_143(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    checkpoint = TrainingCheckpoint(10_000, tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        model.learn(5 * ROLLOUT, callback=[checkpoint, Send(signal.SIGTERM, 2 * ROLLOUT + 4)])
    assert exit_info.value.code == 143
    assert "SIGTERM: training ends after this update" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        f"checkpoint_{3 * ROLLOUT}_steps.zip",
        "checkpoint_0_steps.zip",
    ]
    assert signal.getsignal(signal.SIGTERM) == before
    whole = CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(5 * ROLLOUT)
    assert_same_model(CPO.resume(tmp_path, risky()).learn(5 * ROLLOUT), whole)


def test_a_second_sigterm_ends_it_at_once(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    send = Send(signal.SIGTERM, ROLLOUT + 4, ROLLOUT + 8)
    with pytest.raises(SystemExit) as exit_info:
        model.learn(5 * ROLLOUT, callback=[TrainingCheckpoint(10_000, tmp_path), send])
    assert exit_info.value.code == 143
    assert model.num_timesteps == ROLLOUT + 8
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint_0_steps.zip"]


def test_sigterm_in_the_last_update_and_workers_that_it_ended(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    with pytest.raises(SystemExit) as exit_info:
        model.learn(ROLLOUT, callback=[TrainingCheckpoint(10_000, tmp_path / "a"), Send(signal.SIGTERM, ROLLOUT)])
    assert exit_info.value.code == 143
    assert find_checkpoint(tmp_path / "a").state["num_timesteps"] == ROLLOUT

    class Worker(Send):
        def _on_step(self):
            super()._on_step()
            raise EOFError

    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    with pytest.raises(SystemExit) as exit_info:
        model.learn(ROLLOUT, callback=[TrainingCheckpoint(10_000, tmp_path / "b"), Worker(signal.SIGTERM, 2)])
    assert exit_info.value.code == 143


def test_the_handler_of_a_program_stays_where_it_is_wanted(tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
        checkpoint = TrainingCheckpoint(10_000, tmp_path, handle_sigterm=False)
        model.learn(ROLLOUT, callback=[checkpoint, Send(signal.SIGTERM, 4)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


# ---------------------------------------------------------------- Ctrl-C


def state_of(model):
    names = {name: vars(model)[name] for name in model.changed_by_update if name not in ("margin", "_watchdog", "_recent")}
    return {
        **{name: value.clone() for name, value in model.policy.state_dict().items()},
        **{f"moment {i} {key}": value.clone() for i, entry in model.policy.optimizer.state_dict()["state"].items()
           for key, value in entry.items()},
        **{name: np.concatenate([np.ravel(part) for part in value]) for name, value in names.items() if value is not None},
        **({"margin": model.margin.value.copy(), "recent": len(model._recent)} if isinstance(model, CPO) else {}),
    }  # fmt: skip


PLACES = [
    (critics, "actor_parameters"),
    (critics, "fit_critics"),
    (CPO, "_fit_critics"),
    (CPO, "_watch"),
    (CPO, "_describe"),
    (PDO, "_fit_critics"),
    (th.optim.Adam, "step"),
]


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
def test_an_update_that_ctrl_c_interrupts_has_not_happened(place, is_before, monkeypatch):
    algorithm = place[0] if place[0] in (CPO, PDO) else CPO
    kwargs = {"cost_margin_lr": 0.5, "n_cost_rollouts": 3} if algorithm is CPO else {"penalty_lr": 0.5}
    model = algorithm("MlpPolicy", risky(), 0.1, **kwargs, **KWARGS).learn(2 * ROLLOUT)
    before, n_updates = state_of(model), model._n_updates
    function = getattr(*place)

    def interrupted(*args, **kwargs):
        if not is_before:
            function(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(ROLLOUT, reset_num_timesteps=False)
    after = state_of(model)
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    assert model._n_updates == n_updates
    monkeypatch.undo()
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)
    assert model._n_updates == n_updates + 2


SUBPROC = """
import signal
import sys
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv
from resuming import KWARGS, ROLLOUT
from toy_envs import RiskyEnv
from sb3_cpo import CPO, TrainingCheckpoint, make_vec_env

class Say(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == ROLLOUT + 4:
            print("training", flush=True)
        return True

if __name__ == "__main__":
    # Whoever is started in the background inherits that SIGINT is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    env = make_vec_env(RiskyEnv, n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    callbacks = [TrainingCheckpoint(1, sys.argv[1]), Say()]
    CPO("MlpPolicy", env, 1.0, **KWARGS).learn(1_000_000, callback=callbacks)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_none_of_them(number, tmp_path):
    """As a terminal and a cluster send them: to the workers as well."""
    (tmp_path / "script.py").write_text(SUBPROC)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(tmp_path / "parts")]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "training\n"
        os.killpg(process.pid, number)
        try:
            _, error = process.communicate(timeout=120)
        finally:
            process.kill()
    if number == signal.SIGTERM:
        assert process.returncode == 143
    else:
        assert error.strip().endswith("KeyboardInterrupt")
    # A group without processes
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert find_checkpoint(tmp_path / "parts").state["num_timesteps"] >= ROLLOUT


def test_ctrl_c_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    model, fsync, calls = CPO("MlpPolicy", risky(), 1.0, **KWARGS), os.fsync, []

    def interrupted(descriptor):
        calls.append(descriptor)
        if len(calls) == 5:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(5 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    monkeypatch.undo()
    # Each file takes two, that of its folder included
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_0_steps.zip", f"checkpoint_{ROLLOUT}_steps.zip"]
    whole = CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(5 * ROLLOUT)
    assert_same_model(CPO.resume(tmp_path, risky()).learn(5 * ROLLOUT), whole)


# ---------------------------------------------------------------- disks

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def fail(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize(("function", "error"), [("fsync", NO_SPACE), ("replace", NO_SPACE), ("replace", READ_ONLY)])
def test_a_checkpoint_that_cannot_be_written_is_an_error_and_nothing_is_lost(function, error, tmp_path, monkeypatch):
    class Full(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 3 * ROLLOUT:
                monkeypatch.setattr(os, function, fail(error))
            return True

    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    message = f"checkpoint_{3 * ROLLOUT}_steps.zip could not be written: {error.strerror}; no file is left"
    with pytest.raises(OSError, match=message) as error_info:
        model.learn(5 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path), Full()])
    assert error_info.value.errno == error.errno
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint_{i * ROLLOUT}_steps.zip" for i in (0, 1, 2)]
    assert find_checkpoint(tmp_path).state["num_timesteps"] == 2 * ROLLOUT
    # What was trained is still there
    assert model._n_updates == 3
    model.learn(2 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path), reset_num_timesteps=False)
    whole = CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(5 * ROLLOUT)
    assert_same_model(model, whole)
    # From the beginning of the second call
    assert_same_model(CPO.resume(list_checkpoints(tmp_path)[-1], risky()).learn(2 * ROLLOUT), whole)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    with pytest.raises(OSError, match=r"file/parts/checkpoint_0_steps\.zip could not be written: Not a directory"):
        model.learn(ROLLOUT, callback=TrainingCheckpoint(1, tmp_path / "file" / "parts"))


def test_a_full_disk_leaves_the_best_model(tmp_path, monkeypatch):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(ROLLOUT)
    model.save(tmp_path / "best_model")
    before = (tmp_path / "best_model.zip").read_bytes()
    monkeypatch.setattr(os, "fsync", fail(NO_SPACE))
    message = "best_model.zip could not be written: No space left on device; the file from before is as it was"
    with pytest.raises(OSError, match=message):
        model.save(tmp_path / "best_model")
    eval_env = make_vec_env(lambda: RiskyEnv(length=7))
    callback = CostEvalCallback(eval_env, eval_freq=N_STEPS, best_model_save_path=str(tmp_path), verbose=0)
    with pytest.raises(OSError, match=message):
        model.learn(ROLLOUT, callback=callback)
    assert [path.name for path in tmp_path.iterdir()] == ["best_model.zip"]
    assert (tmp_path / "best_model.zip").read_bytes() == before


class FullLog(KVWriter):
    def write(self, key_values, key_excluded, step=0):
        if step == 2 * ROLLOUT:
            raise NO_SPACE

    def close(self):
        pass


def test_a_log_that_cannot_be_written_is_an_error_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    model.set_logger(Logger(None, [FullLog()]))
    with pytest.raises(OSError, match=f"the log could not be written at step {2 * ROLLOUT}: No space left on device"):
        model.learn(4 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    assert model._n_updates == 1
    resumed = CPO.resume(tmp_path, risky()).learn(4 * ROLLOUT)
    assert_same_model(resumed, CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(4 * ROLLOUT))
    # This one has lost a rollout, and can go on
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)


def test_the_monitor_file_of_a_batch_is_named_once(tmp_path, monkeypatch):
    env = make_vec_env("SafePointGather-v0", n_envs=2, vec_env_cls=BatchVecEnv, monitor_dir=str(tmp_path))
    env.reset()
    monkeypatch.setattr(env.envs[1].results_writer.logger, "writerow", fail(NO_SPACE))

    def play():
        for _ in range(15):
            env.step(np.zeros((2, *env.action_space.shape), dtype=np.float32))

    with pytest.raises(OSError, match=r"1\.monitor\.csv could not be written: No space left on device$") as raised:
        play()
    assert str(raised.value).count("could not be written") == 1


def test_a_monitor_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    env = make_vec_env(lambda: RiskyEnv(length=7), n_envs=2, monitor_dir=str(tmp_path))
    model = CPO("MlpPolicy", env, 1.0, **KWARGS)
    monkeypatch.setattr(env.envs[1].results_writer.logger, "writerow", fail(NO_SPACE))
    with pytest.raises(OSError, match=r"1\.monitor\.csv could not be written: No space left on device"):
        model.learn(ROLLOUT, callback=TrainingCheckpoint(1, Path(tmp_path) / "parts"))
