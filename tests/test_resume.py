"""A resumed training is the one that was never interrupted, bit for bit."""

import csv
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize
from toy_envs import KnapsackEnv, RiskyEnv, vec_env

from safe_envs import BatchVecEnv, CostWrapper
from safe_envs.tabular import TabularEnv, random_cmdp
from safe_envs.tabular.vec_env import TabularVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, CostEvalCallback, CostMonitor, FailurePredictor, TrainingCheckpoint, make_vec_env
from sb3_cpo.checkpoints import find_checkpoint, list_checkpoints, load_vec_normalize

N_STEPS, N_ENVS = 16, 2
ROLLOUT = N_STEPS * N_ENVS
KWARGS = {
    "n_steps": N_STEPS,
    "batch_size": 16,
    "n_critic_updates": 1,
    "policy_kwargs": {"net_arch": [4]},
    "device": "cpu",
    "seed": 3,
}
# What no two runs have in common
CLOCKS = ("time/fps", "time/time_elapsed")


class Killed(Exception):
    pass


class Kill(BaseCallback):
    """Ends training as a kill would: in the middle of a rollout, and nothing is tidied up."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps >= self.at:
            raise Killed
        return True


class Rows(KVWriter):
    """Keeps the rows of the log."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append({"step": step, **{key: value for key, value in key_values.items() if key not in CLOCKS}})

    def get_checkpoint_state(self):
        return list(self.rows)

    def set_checkpoint_state(self, state):
        self.rows[:] = state


def with_rows(model):
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    return rows.rows


def assert_same_model(model, other):
    state, other_state = model.policy.state_dict(), other.policy.state_dict()
    assert state.keys() == other_state.keys()
    assert [key for key in state if not th.equal(state[key], other_state[key])] == []
    moments, others = (m.policy.optimizer.state_dict()["state"] for m in (model, other))
    assert moments.keys() == others.keys()
    assert all(th.equal(moments[i][key], others[i][key]) for i in moments for key in moments[i])
    assert model.num_timesteps == other.num_timesteps
    assert model._n_updates == other._n_updates
    np.testing.assert_array_equal(model._last_obs, other._last_obs)
    np.testing.assert_array_equal(model.safety.cumulative_cost, other.safety.cumulative_cost)


def assert_same_rows(rows, others):
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            np.testing.assert_array_equal(row[key], other[key], err_msg=f"{key} at {row['step']}")


def check_resume(make_model, folder, n_rollouts=6, kill_at=3.5, make_callbacks=list, save_freq=1, **learn_kwargs):
    """Train without a break; then again, interrupted and resumed. Return both models."""
    total = n_rollouts * ROLLOUT
    whole = make_model()
    rows = with_rows(whole)
    whole.learn(total, callback=make_callbacks(), **learn_kwargs)

    broken = make_model()
    with_rows(broken)
    callbacks = [TrainingCheckpoint(save_freq, folder), *make_callbacks(), Kill(int(kill_at * ROLLOUT))]
    with pytest.raises(Killed):
        broken.learn(total, callback=callbacks, **learn_kwargs)

    env = make_model().env
    # Whatever the program that resumes has drawn before
    th.manual_seed(100)
    np.random.seed(100)  # noqa: NPY002
    resumed = type(whole).resume(folder, env)
    assert 0 < resumed.num_timesteps < total
    resumed_rows = with_rows(resumed)
    resumed.learn(total, callback=[TrainingCheckpoint(save_freq, folder), *make_callbacks()], **learn_kwargs)
    assert_same_model(resumed, whole)
    assert_same_rows(resumed_rows, rows)
    for model in (whole, broken, resumed):
        model.env.close()
    return whole, resumed


def risky(n_envs=N_ENVS, **kwargs):
    return make_vec_env(lambda: RiskyEnv(length=7, **kwargs), n_envs=n_envs, seed=5)


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_each_algorithm(algorithm, tmp_path):
    check_resume(lambda: algorithm("MlpPolicy", risky(), cost_limit=1.0, **KWARGS), tmp_path)


SETTINGS = {
    "a limit that falls, and a falling learning rate": {"cost_limit": lambda p: 1 + p, "learning_rate": lambda p: 1e-3 * p},
    "two constraints, several rollouts": {"cost_limit": [1.0, 3.0], "n_cost_rollouts": 3},
    "a margin, discounted costs": {"cost_limit": 1.0, "cost_margin_lr": 0.3, "cost_gamma": 0.9},
    "state-dependent exploration": {"cost_limit": 1.0, "use_sde": True, "sde_sample_freq": 5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, tmp_path):
    n_costs = 2 if "two" in name else 1
    check_resume(lambda: CPO("MlpPolicy", risky(n_costs=n_costs), **SETTINGS[name], **KWARGS), tmp_path)


def test_cost_shaping(tmp_path):
    check_resume(lambda: CPO("MlpPolicy", risky(), 1.0, cost_shaping=FailurePredictor(n_updates=2), **KWARGS), tmp_path)


def make_pendulum():
    return CostWrapper(gym.make("Pendulum-v1"), lambda next_obs: float(abs(next_obs[2]) > 1))


def cmdp():
    return random_cmdp(np.random.default_rng(0))


ENVS = {
    "wrappers of SB3": lambda: VecFrameStack(VecNormalize(VecMonitor(vec_env(lambda rank: RiskyEnv(length=7), N_ENVS))), 2),
    "a lambda in the environment": lambda: make_vec_env(make_pendulum, n_envs=N_ENVS, seed=1),
    "discrete": lambda: make_vec_env(KnapsackEnv, n_envs=N_ENVS, seed=1),
    "tabular": lambda: make_vec_env(lambda: TabularEnv(cmdp()), n_envs=N_ENVS, seed=1),
    "tabular, together": lambda: TabularVecEnv(cmdp(), N_ENVS, seed=1),
    "Point, together": lambda: make_vec_env("SafePointGather-v0", n_envs=N_ENVS, seed=1, vec_env_cls=BatchVecEnv),
    "Ant, together": lambda: make_vec_env("SafeAntCircle-v0", n_envs=N_ENVS, seed=1, vec_env_cls=BatchVecEnv),
    "Humanoid, together": lambda: make_vec_env("SafeHumanoidVelocity-v0", n_envs=N_ENVS, seed=1, vec_env_cls=BatchVecEnv),
    "Point": lambda: make_vec_env("SafePointCircle-v0", n_envs=N_ENVS, seed=1),
    "Ant": lambda: make_vec_env("SafeAntGather-v0", n_envs=N_ENVS, seed=1),
    "gymnasium's Humanoid": lambda: make_vec_env("SafeHumanoidVelocity-v0", n_envs=N_ENVS, seed=1),
    "other processes": lambda: make_vec_env(lambda: RiskyEnv(length=7), n_envs=N_ENVS, seed=1, vec_env_cls=SubprocVecEnv,
                                            vec_env_kwargs={"start_method": "fork"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENVS)
def test_environments(name, tmp_path):
    check_resume(lambda: CPO("MlpPolicy", ENVS[name](), 1.0, **KWARGS), tmp_path, n_rollouts=5, kill_at=2.5)


def test_a_long_episode_goes_on_in_the_middle(tmp_path):
    """With episodes of three rollouts, sums and simulation reach over the break."""

    def env():
        return VecNormalize(make_vec_env("SafePointCircle-v0", n_envs=N_ENVS, seed=1, env_kwargs={"max_episode_steps": 40}))

    whole, _ = check_resume(lambda: CPO("MlpPolicy", env(), 1.0, **KWARGS), tmp_path)
    assert whole.raw_cost_estimate.n_episodes > 0


def test_evaluations_go_on(tmp_path):
    def callbacks(folder):
        eval_env = make_vec_env(lambda: RiskyEnv(length=7), seed=9)
        return [CostEvalCallback(eval_env, eval_freq=20, n_eval_episodes=2, log_path=folder, verbose=0)]

    folders = iter([tmp_path / "whole", tmp_path / "broken", tmp_path / "broken"])
    check_resume(
        lambda: CPO("MlpPolicy", risky(), 1.0, **KWARGS),
        tmp_path / "checkpoints",
        make_callbacks=lambda: callbacks(str(next(folders))),
    )
    whole, resumed = (np.load(tmp_path / name / "evaluations.npz") for name in ("whole", "broken"))
    assert set(whole) == set(resumed)
    for key in whole:
        np.testing.assert_array_equal(whole[key], resumed[key])
    assert len(whole["timesteps"]) == 4


class Counter(BaseCallback):
    """A user's callback with a state, and with arguments that are none."""

    def __init__(self, name="first"):
        super().__init__()
        self.name, self.n_rollouts, self.seen = name, 0, []

    def _on_rollout_start(self):
        self.n_rollouts += 1
        self.seen.append(float(np.random.random()))  # noqa: NPY002

    def _on_step(self):
        return True


def test_callbacks_keep_what_they_have_learned_and_not_their_arguments(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    whole = Counter()
    CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(5 * ROLLOUT, callback=whole)
    with pytest.raises(Killed):
        model.learn(5 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path), Counter(), Kill(3 * ROLLOUT + 4)])
    resumed, counter = CPO.resume(tmp_path, risky()), Counter("second")
    resumed.learn(5 * ROLLOUT, callback=counter)
    assert counter.seen == whole.seen
    assert (counter.n_rollouts, counter.n_calls, counter.name) == (5, 5 * N_STEPS, "second")


@pytest.mark.parametrize("log_interval", [1, 2])
def test_rows_of_files_are_neither_lost_nor_doubled(log_interval, tmp_path):
    def run(folder, kill_at=None, resume=False):
        env = make_vec_env(lambda: RiskyEnv(length=7), n_envs=N_ENVS, seed=5, monitor_dir=str(folder))
        model = CPO.resume(folder / "parts", env) if resume else CPO("MlpPolicy", env, 1.0, **KWARGS)
        model.set_logger(configure(str(folder), ["csv", "json", "log", "tensorboard"]))
        callbacks = [TrainingCheckpoint(2 * N_STEPS, folder / "parts"), *([Kill(kill_at)] if kill_at else [])]
        try:
            model.learn(7 * ROLLOUT, callback=callbacks, log_interval=log_interval)
        except Killed:
            pass
        model.logger.close()
        env.close()

    run(tmp_path / "whole")
    run(tmp_path / "broken", kill_at=5 * ROLLOUT + 4)
    # Twice: rows of a first attempt to go on are taken back too
    run(tmp_path / "broken", kill_at=6 * ROLLOUT + 4, resume=True)
    run(tmp_path / "broken", resume=True)

    def read_csv(path):
        with open(path) as file:
            return [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(file)]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert read_csv(whole / "progress.csv") == read_csv(broken / "progress.csv")
    assert len(read_csv(whole / "progress.csv")) == 7 // log_interval
    for rank in range(N_ENVS):
        lines = [
            [line.rsplit(",", 2)[0] if line[0] != "#" else "#" for line in path.read_text().splitlines()]
            for path in (whole / f"{rank}.monitor.csv", broken / f"{rank}.monitor.csv")
        ]
        assert lines[0] == lines[1]
        assert len(lines[0]) == 2 + 7 * N_STEPS // 7
    assert scalars(whole) == scalars(broken)
    assert [step for step, _ in scalars(whole)["train/n_updates"]]


def scalars(folder):
    """Every scalar in all of TensorBoard's files, doubled ones too."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag not in CLOCKS:
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def test_tensorboard_goes_on_in_its_folder_even_if_there_is_a_newer_one(tmp_path):
    logs = str(tmp_path / "tb")
    model = CPO("MlpPolicy", risky(), 1.0, tensorboard_log=logs, **KWARGS)
    with pytest.raises(Killed):
        model.learn(4 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path / "parts"), Kill(2 * ROLLOUT + 4)])
    CPO("MlpPolicy", risky(), 1.0, tensorboard_log=logs, **KWARGS).learn(ROLLOUT)
    resumed = CPO.resume(tmp_path / "parts", risky())
    resumed.learn(4 * ROLLOUT)
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["CPO_1", "CPO_2"]
    assert [step for step, _ in scalars(tmp_path / "tb" / "CPO_1")["rollout/ep_cost_mean"]] == [
        ROLLOUT * i for i in (1, 2, 3, 4)
    ]
    # The next `learn` is a run of its own again
    resumed.learn(ROLLOUT)
    assert (tmp_path / "tb" / "CPO_3").exists()


# ---------------------------------------------------------------- where it ends


def interrupted(folder, total=6):
    model = CPO("MlpPolicy", risky(), lambda progress: 1 + progress, **KWARGS)
    with pytest.raises(Killed):
        model.learn(total * ROLLOUT, callback=[TrainingCheckpoint(1, folder), Kill(2 * ROLLOUT + 4)])
    return CPO.resume(folder, risky())


@pytest.mark.parametrize(
    ("n_rollouts", "reset", "end"), [(6, True, 6), (6, False, 6), (4, False, 6), (4, True, 6), (9, True, 9), (9, False, 11)]
)
def test_learn_ends_where_the_interrupted_one_would_have(n_rollouts, reset, end, tmp_path):
    model = interrupted(tmp_path)
    model.learn(n_rollouts * ROLLOUT, reset_num_timesteps=reset)
    assert model.num_timesteps == model._total_timesteps == end * ROLLOUT
    assert model.current_cost_limit == 1
    # From then on `learn` is SB3's
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)
    assert model.num_timesteps == (end + 2) * ROLLOUT


def test_the_second_learn_of_a_run_is_resumed_too(tmp_path):
    def model():
        return CPO("MlpPolicy", risky(), lambda progress: 1 + progress, **KWARGS).learn(2 * ROLLOUT)

    whole, broken = model(), model()
    whole.learn(4 * ROLLOUT, reset_num_timesteps=False)
    callbacks = [TrainingCheckpoint(1, tmp_path), Kill(4 * ROLLOUT + 4)]
    with pytest.raises(Killed):
        broken.learn(4 * ROLLOUT, callback=callbacks, reset_num_timesteps=False)
    resumed = CPO.resume(tmp_path, risky())
    resumed.learn(4 * ROLLOUT, reset_num_timesteps=False)
    assert_same_model(resumed, whole)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    model.learn(3 * ROLLOUT, callback=TrainingCheckpoint(10_000, tmp_path))
    # The last update is in it
    resumed = CPO.resume(tmp_path, risky())
    resumed.learn(3 * ROLLOUT)
    assert_same_model(resumed, model)
    whole = CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(5 * ROLLOUT)
    assert_same_model(resumed.learn(5 * ROLLOUT), whole)


def test_a_run_that_a_callback_has_stopped_stops_there_again(tmp_path):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 3 * ROLLOUT + 10

    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    model.learn(5 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path), Stop()])
    assert find_checkpoint(tmp_path).state["num_timesteps"] == 3 * ROLLOUT
    resumed = CPO.resume(tmp_path, risky())
    resumed.learn(5 * ROLLOUT, callback=Stop())
    assert_same_model(resumed, model)


# ---------------------------------------------------------------- environments that do not say their state


class Secretive(RiskyEnv):
    """Holds something that cannot be pickled."""

    def reset(self, *, seed=None, options=None):
        self.world = (part for part in ())
        return super().reset(seed=seed, options=options)


def test_an_environment_without_a_state_is_reset_with_a_warning(tmp_path):
    def make():
        return make_vec_env(lambda: Secretive(length=7), n_envs=N_ENVS, seed=5)

    model = CPO("MlpPolicy", make(), 1.0, **KWARGS)
    with pytest.warns(UserWarning, match=r"cannot be stored \(Secretive\.world"), pytest.raises(Killed):
        model.learn(6 * ROLLOUT, callback=[TrainingCheckpoint(1, tmp_path), Kill(3 * ROLLOUT + 4)])
    with pytest.warns(UserWarning, match="training goes on with a reset"):
        resumed = CPO.resume(tmp_path, make())
    assert resumed._last_obs is None
    generator = find_checkpoint(tmp_path).state["env"].generators
    resumed.learn(6 * ROLLOUT)
    assert resumed.num_timesteps == 6 * ROLLOUT
    assert len(generator) == 2


class SaysItself(Secretive):
    def get_checkpoint_state(self):
        return self.steps

    def set_checkpoint_state(self, state):
        self.steps = state

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return np.full(3, self.np_random.random(), dtype=np.float32), {}

    def step(self, action):
        _, *rest = super().step(action)
        return np.full(3, self.np_random.random(), dtype=np.float32), *rest


def test_an_environment_can_say_its_state_itself(tmp_path):
    def make():
        return make_vec_env(lambda: SaysItself(length=7), n_envs=N_ENVS, seed=5)

    check_resume(lambda: CPO("MlpPolicy", make(), 1.0, **KWARGS), tmp_path)


def test_another_environment_is_an_error(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"is of 2 environments, env has 3: `load` continues with other numbers"):
        CPO.resume(tmp_path, risky(n_envs=3))
    with pytest.raises(
        ValueError, match=r"checkpoint is of the environment DummyVecEnv of CostMonitor .*, env is VecNormalize"
    ):
        CPO.resume(tmp_path, VecNormalize(risky()))


def test_a_wrapper_around_the_monitor_of_a_worker_is_noticed(tmp_path):
    def make():
        env_fns = [lambda: gym.wrappers.TimeLimit(CostMonitor(RiskyEnv(length=7)), 5)] * N_ENVS
        return SubprocVecEnv(env_fns, start_method="fork")

    env = make()
    model = CPO("MlpPolicy", env, 1.0, **KWARGS)
    with pytest.warns(UserWarning, match="TimeLimit.* is around the CostMonitor"):
        model.learn(2 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    env.close()


# ---------------------------------------------------------------- files


def test_the_last_ones_are_kept_and_the_newest_that_can_be_read_is_taken(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    model.learn(6 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path, n_kept=3))
    files = list_checkpoints(tmp_path)
    assert [path.name for path in files] == [f"checkpoint_{steps * ROLLOUT}_steps.zip" for steps in (6, 5, 4)]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    content = files[0].read_bytes()
    # A quarter of these pass is_zipfile
    cuts = [content[: len(content) * cut // 10] for cut in range(10)]
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for torn in [*cuts, flipped]:
        files[0].write_bytes(torn)
        with pytest.warns(UserWarning, match=f"{files[0].name} cannot be read"):
            assert find_checkpoint(tmp_path).path == files[1]
    with pytest.warns(UserWarning, match="cannot be read"):
        resumed = CPO.resume(tmp_path, risky())
    # The torn one does not count among those that are kept
    resumed.learn(7 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path, n_kept=1))
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint_{7 * ROLLOUT}_steps.zip"]
    whole = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    assert_same_model(resumed, whole.learn(7 * ROLLOUT))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        CPO.resume(tmp_path, risky())
    with pytest.raises(FileNotFoundError, match="no training checkpoint in"):
        CPO.resume(tmp_path / "nowhere", risky())


def test_a_checkpoint_is_a_model_of_sb3_with_its_statistics(tmp_path):
    env = VecNormalize(risky())
    model = CPO("MlpPolicy", env, 1.0, **KWARGS)
    model.learn(2 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    path = tmp_path / f"checkpoint_{2 * ROLLOUT}_steps.zip"
    loaded = CPO.load(path, env=VecNormalize(risky()))
    assert loaded.num_timesteps == 2 * ROLLOUT
    statistics = load_vec_normalize(path, risky())
    np.testing.assert_array_equal(statistics.obs_rms.mean, env.obs_rms.mean)
    model.save(tmp_path / "best_model")
    np.testing.assert_array_equal(load_vec_normalize(tmp_path / "best_model", risky()).obs_rms.var, env.obs_rms.var)
    CPO("MlpPolicy", risky(), 1.0, **KWARGS).save(tmp_path / "plain")
    assert load_vec_normalize(tmp_path / "plain", risky()) is None
    with pytest.raises(ValueError, match="it is a model and no training checkpoint"):
        CPO.resume(tmp_path / "plain.zip", risky())


def test_a_folder_is_of_one_run(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(
        ValueError, match=r"has checkpoints of another run up to step 64: continue from there with CPO\.resume"
    ):
        CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    first = CPO.resume(list_checkpoints(tmp_path)[-1], risky())
    with pytest.raises(ValueError, match="has checkpoints of this run up to step 64"):
        first.learn(ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))


def test_interval_and_arguments(tmp_path):
    model = CPO("MlpPolicy", risky(), 1.0, **KWARGS)
    # Every 2.5 rollouts: after the first update from then on
    model.learn(7 * ROLLOUT, callback=TrainingCheckpoint(5 * N_STEPS // 2, tmp_path / "a", "model", n_kept=None))
    assert [path.name for path in list_checkpoints(tmp_path / "a")] == [f"model_{i * ROLLOUT}_steps.zip" for i in (7, 6, 3)]
    model.learn(3 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path / "b", min_seconds=1000.0))
    # The end always
    assert [path.name for path in list_checkpoints(tmp_path / "b")] == [f"checkpoint_{3 * ROLLOUT}_steps.zip"]
    with pytest.raises(ValueError, match="save_freq must be at least 1, not 0"):
        TrainingCheckpoint(0, tmp_path)
    with pytest.raises(ValueError, match="n_kept must be at least 1"):
        TrainingCheckpoint(1, tmp_path, n_kept=0)


def test_saving_changes_nothing(tmp_path):
    plain = CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(4 * ROLLOUT)
    assert_same_model(
        CPO("MlpPolicy", risky(), 1.0, **KWARGS).learn(4 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path)), plain
    )


def test_sb3s_algorithms_have_sb3s_callback(tmp_path):
    from stable_baselines3 import PPO

    with pytest.raises(TypeError, match="not PPO: use CheckpointCallback"):
        PPO("MlpPolicy", risky(), n_steps=16, batch_size=16).learn(16, callback=TrainingCheckpoint(1, tmp_path))


def test_it_is_one_file_with_all_that_is_needed(tmp_path):
    CPO("MlpPolicy", VecNormalize(risky()), 1.0, **KWARGS).learn(ROLLOUT, callback=TrainingCheckpoint(1, tmp_path))
    with zipfile.ZipFile(io.BytesIO(list_checkpoints(tmp_path)[0].read_bytes())) as archive:
        names = set(archive.namelist())
        assert {"data", "policy.pth", "policy.optimizer.pth", "vecnormalize.pkl", "training_state.pkl"} <= names
        assert pickle.loads(archive.read("vecnormalize.pkl")).obs_rms.count > 1


def run_script(*args, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-W", "ignore", *args], capture_output=True, text=True, env=environment, **kwargs)
