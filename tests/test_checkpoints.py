"""Files of checkpoints, and where a resumed training ends."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from resuming import KWARGS, N_STEPS, ROLLOUT, Kill, Killed, assert_same_model, interrupted, risky
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_cpo import CPO, TrainingCheckpoint
from sb3_cpo.checkpoints import find_checkpoint, list_checkpoints, load_vec_normalize

# ---------------------------------------------------------------- where it ends


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

    whole = model()
    whole.learn(4 * ROLLOUT, reset_num_timesteps=False)
    broken = model()
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
    assert [path.name for path in list_checkpoints(tmp_path / "a")] == [f"model_{i * ROLLOUT}_steps.zip" for i in (7, 6, 3, 0)]
    model.learn(3 * ROLLOUT, callback=TrainingCheckpoint(1, tmp_path / "b", min_seconds=1000.0))
    # Beginning and end always
    assert [path.name for path in list_checkpoints(tmp_path / "b")] == [f"checkpoint_{i * ROLLOUT}_steps.zip" for i in (3, 0)]
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
