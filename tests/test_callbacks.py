"""Callbacks, on an environment whose evaluations are written down in advance."""

import os

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import RiskyEnv

from sb3_cpo import CPO, TRPO, make_vec_env
from sb3_cpo.callbacks import (
    CostEvalCallback,
    CostProgressBarCallback,
    StopTrainingOnViolation,
)
from sb3_cpo.videos import VideoRecorderCallback, write_video


class ScriptedEnv(gym.Env):
    """Episodes of one step; episode k pays ``script[k]``: the reward, then costs."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(self, script, keys=("cost",), length=1):
        self.script, self.keys, self.length = script, keys, length
        self.n_episodes = self.n_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.n_steps += 1
        reward, *costs = self.script[self.n_episodes % len(self.script)]
        is_over = self.n_steps == self.length
        self.n_episodes += is_over
        info = dict(zip(self.keys, costs, strict=True)) if is_over else dict.fromkeys(self.keys, 0.0)
        return np.zeros(1, dtype=np.float32), float(reward) if is_over else 0.0, is_over, False, info

    def render(self):
        return np.full((16, 24, 3), 40 * self.n_steps, dtype=np.uint8)


class Memory(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))

    def column(self, key):
        return [row[key] for row in self.rows if key in row]


class StopAfter(BaseCallback):
    def __init__(self, n_steps):
        super().__init__()
        self.n_steps = n_steps

    def _on_step(self):
        return self.n_calls < self.n_steps


class Choices(BaseCallback):
    """Which evaluations gave a new best model; 0 is the first."""

    def __init__(self):
        super().__init__()
        self.of = []

    def _on_step(self):
        self.of.append(self.parent.n_calls - 1)
        return True


def train_with_evaluations(script, cost_limit=5.0, keys=("cost",), algorithm=CPO, **kwargs):
    """One evaluation per step of training, each of one episode of the script."""
    n_evaluations = len(script)
    choices = Choices()
    env = DummyVecEnv([lambda: ScriptedEnv([(0.0, *(0.0 for _ in keys))], keys)])
    arguments = {"cost_limit": cost_limit} if algorithm is not PPO else {}
    model = algorithm("MlpPolicy", env, n_steps=4, batch_size=4, **arguments)
    memory = Memory()
    model.set_logger(Logger(None, [memory]))
    options = {"n_eval_episodes": 1, "eval_freq": 1, "verbose": 0, "warn": False, "callback_on_new_best": choices, **kwargs}
    callback = CostEvalCallback(Monitor(ScriptedEnv(script, keys)), **options)
    model.learn(n_evaluations, callback=[callback, StopAfter(n_evaluations)])
    return callback, choices.of, memory, model


def test_best_feasible_model_comes_before_any_richer_infeasible_one():
    # Infeasible, less so, feasible and poor, infeasible and rich, feasible and better, feasible and worse
    script = [(100, 9), (50, 7), (1, 4), (1000, 6), (2, 5), (1.5, 0)]
    callback, chosen, memory, _ = train_with_evaluations(script)
    assert chosen == [0, 1, 2, 4]
    assert callback.best_mean_reward == 2.0
    np.testing.assert_array_equal(callback.best_mean_cost, [5.0])
    assert memory.column("eval/mean_cost") == [9, 7, 4, 6, 5, 0]
    assert memory.column("eval/is_feasible") == [0, 0, 1, 0, 1, 1]
    assert memory.column("eval/mean_reward") == [100, 50, 1, 1000, 2, 1.5]


def test_no_feasible_model_leaves_the_one_of_lowest_cost_and_no_best_reward():
    callback, chosen, _, _ = train_with_evaluations([(1, 9), (100, 10), (0, 8), (7, 8)])
    assert chosen == [0, 2]
    assert callback.best_mean_reward == -np.inf


def test_best_model_is_what_is_on_disk(tmp_path):
    """The saved file is that of the chosen evaluation: here the second of three."""

    class Mark(BaseCallback):
        def _on_step(self):
            self.model.mark = self.n_calls - 1
            return True

    env = make_vec_env(lambda: ScriptedEnv([(0, 0)]))
    model = CPO("MlpPolicy", env, cost_limit=5.0, n_steps=4, batch_size=4)
    evaluation = CostEvalCallback(
        Monitor(ScriptedEnv([(9, 9), (1, 1), (9, 9)])),
        n_eval_episodes=1,
        eval_freq=1,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model.learn(3, callback=[Mark(), evaluation])
    assert CPO.load(tmp_path / "best_model").mark == 1


def test_agrees_with_sb3_where_no_limit_binds(tmp_path):
    """The same rewards in evaluations.npz and the same best model as EvalCallback's."""
    script = [(3, 1), (1, 2), (4, 1), (1, 2), (5, 3)]
    ours, chosen, _, model = train_with_evaluations(script, cost_limit=100.0, log_path=str(tmp_path / "ours"))
    choices = Choices()
    theirs = EvalCallback(
        Monitor(ScriptedEnv(script)),
        callback_on_new_best=choices,
        n_eval_episodes=1,
        eval_freq=1,
        log_path=str(tmp_path / "theirs"),
        verbose=0,
    )
    model.learn(5, callback=[theirs, StopAfter(5)])
    assert chosen == choices.of == [0, 2, 4]
    assert ours.best_mean_reward == theirs.best_mean_reward == 5
    with np.load(tmp_path / "ours/evaluations.npz") as one, np.load(tmp_path / "theirs/evaluations.npz") as other:
        for key in other:
            np.testing.assert_array_equal(one[key], other[key])


def test_evaluations_file_holds_costs_and_limits(tmp_path):
    train_with_evaluations(
        [(1, 2, 30), (3, 4, 50)],
        cost_limit={"cost_a": 3.0, "cost_b": 40.0},
        keys=("cost_a", "cost_b"),
        log_path=str(tmp_path),
    )
    with np.load(tmp_path / "evaluations.npz") as file:
        np.testing.assert_array_equal(file["timesteps"], [1, 2])
        np.testing.assert_array_equal(file["results"], [[1], [3]])
        np.testing.assert_array_equal(file["costs"], [[[2, 30]], [[4, 50]]])
        np.testing.assert_array_equal(file["cost_limits"], [[3, 40], [3, 40]])
        np.testing.assert_array_equal(file["cost_b"], [[30], [50]])
        assert file["cost_names"].tolist() == ["cost_a", "cost_b"]


def test_two_constraints_must_both_be_kept():
    # Over the first by half, over the second by a tenth, both kept
    script = [(9, 15, 0), (9, 10, 110), (1, 10, 100)]
    limits = {"cost_a": 10.0, "cost_b": 100.0}
    callback, chosen, memory, _ = train_with_evaluations(script, cost_limit=limits, keys=("cost_a", "cost_b"))
    assert chosen == [0, 1, 2]
    assert callback.best_mean_reward == 1
    assert memory.column("eval/mean_cost/cost_b") == [0, 110, 100]
    assert memory.column("eval/is_feasible") == [0, 0, 1]


def test_model_chosen_under_a_higher_limit_is_judged_by_the_limit_of_today():
    """The limit falls from 10 to 0 over 8 steps, in rollouts of 4: cost 8 is feasible at first and not in the end."""
    script = [(100, 8)] * 4 + [(1, 2)] * 4
    callback, chosen, memory, model = train_with_evaluations(script, cost_limit=lambda progress: 10 * progress)
    # After the first rollout the limit is 5
    assert chosen == [0, 4]
    assert callback.best_mean_reward == 1
    assert memory.column("eval/is_feasible") == [1] * 8
    np.testing.assert_array_equal(model.current_cost_limit, [5.0])
    np.testing.assert_array_equal(callback.best_mean_cost, [2.0])


def test_own_limits_of_the_callback_replace_those_of_the_model():
    _, chosen, _, _ = train_with_evaluations([(9, 4), (1, 1)], cost_limit=5.0)
    assert chosen == [0]
    callback = CostEvalCallback(
        Monitor(ScriptedEnv([(9, 4), (1, 1)])), n_eval_episodes=1, eval_freq=1, verbose=0, cost_limit=2.0
    )
    CPO("MlpPolicy", make_vec_env(lambda: ScriptedEnv([(0, 0)])), 25.0, n_steps=4, batch_size=4).learn(2, callback=callback)
    assert callback.best_mean_reward == 1


def test_sb3_algorithms_are_judged_by_reward_or_by_the_limit_that_is_given():
    script = [(9, 9), (10, 9), (1, 1)]
    callback, chosen, memory, _ = train_with_evaluations(script, algorithm=PPO)
    assert (chosen, callback.best_mean_reward) == ([0, 1], 10)
    assert memory.column("eval/mean_cost") == [9, 9, 1]
    _, chosen, memory, _ = train_with_evaluations([(1,), (2,)], keys=(), algorithm=PPO)
    assert (chosen, memory.column("eval/mean_cost")) == ([0, 1], [])
    callback, chosen, memory, _ = train_with_evaluations(script, algorithm=TRPO, cost_limit=None)
    assert (chosen, callback.best_mean_reward) == ([0, 1], 10)
    assert memory.column("eval/mean_cost") == [9, 9, 1]


def test_missing_cost_in_evaluation_is_an_error():
    model = CPO("MlpPolicy", make_vec_env(lambda: ScriptedEnv([(0, 0)])), 25.0, n_steps=4, batch_size=4)
    with pytest.raises(KeyError, match="info has no 'cost'"):
        model.learn(1, callback=CostEvalCallback(Monitor(ScriptedEnv([(1,)], keys=())), eval_freq=1, verbose=0))


def test_discounted_limit_is_compared_with_discounted_cost():
    """A cost of 8 in the third step weighs 8 / 4 = 2 at cost_gamma = 0.5."""
    env = make_vec_env(lambda: ScriptedEnv([(0, 0)]))
    model = CPO("MlpPolicy", env, cost_limit=3.0, cost_gamma=0.5, n_steps=4, batch_size=4)
    evaluation = CostEvalCallback(Monitor(ScriptedEnv([(1, 8)], length=3)), n_eval_episodes=2, eval_freq=1, verbose=0)
    model.learn(1, callback=evaluation)
    np.testing.assert_array_equal(evaluation.last_mean_cost, [2.0])
    assert evaluation.best_mean_reward == 1


def test_a_cost_that_is_over_its_limit_by_rounding_alone_is_feasible(capsys):
    """Thirty steps of 0.1 against a limit of 3: of the floats, the sum is the greater one."""

    class Tenths(ScriptedEnv):
        def step(self, action):
            *step, _ = super().step(action)
            return *step, {"cost": 0.1}

    model = CPO("MlpPolicy", make_vec_env(lambda: Tenths([(0, 0)], length=30)), 3.0, n_steps=30, batch_size=30)
    evaluation = CostEvalCallback(Monitor(Tenths([(1, 0)], length=30)), n_eval_episodes=1, eval_freq=31)
    model.learn(60, callback=[evaluation, StopTrainingOnViolation()])
    assert model.ep_cost_mean > 3
    assert evaluation.last_violation > 0
    assert evaluation.best_mean_reward == 1
    assert "New best feasible model!" in capsys.readouterr().out
    assert model.num_timesteps == 60


def test_reward_threshold_stops_at_the_first_feasible_model_above_it():
    script = [(100, 9), (1, 1), (100, 9), (60, 1), (70, 1)]
    threshold = StopTrainingOnRewardThreshold(50)
    callback, _, _, model = train_with_evaluations(script, callback_on_new_best=threshold)
    assert model.num_timesteps == 4
    assert callback.best_mean_reward == 60


def test_no_model_improvement_counts_feasible_models():
    # Better and better in reward, but never feasible: the second, third and fourth are no improvement
    script = [(reward, 9) for reward in range(10)]
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2)
    _, _, _, model = train_with_evaluations(script, callback_after_eval=stop)
    assert model.num_timesteps == 3
    script = [(reward, 1) for reward in range(6)]
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2)
    _, _, _, model = train_with_evaluations(script, callback_after_eval=stop)
    assert model.num_timesteps == 6


def test_verbose_line_names_cost_and_limit(capsys):
    train_with_evaluations([(1, 4)], verbose=1)
    assert "Episode cost: 4.00 +/- 0.00 (limit 5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("max_violation", "max_n_violations", "expected_steps"),
    # Rollouts of 2 episodes with costs 1, 7, 1, 7, 7, ... against a limit of 5; the stop is at the first step of the next
    [(0.0, 0, 5), (0.0, 1, 11), (2.0, 0, 12)],
)
def test_training_stops_on_violation(max_violation, max_n_violations, expected_steps):
    costs = [1, 1, 7, 7, 1, 1, 7, 7, 7, 7, 1, 1]
    env = make_vec_env(lambda: ScriptedEnv([(0, cost) for cost in costs]))
    model = CPO("MlpPolicy", env, cost_limit=5.0, n_steps=2, batch_size=2)
    model.learn(12, callback=StopTrainingOnViolation(max_violation, max_n_violations))
    assert model.num_timesteps == expected_steps


def test_evaluations_can_stop_training_on_violation(capsys):
    script = [(1, 5), (1, 6), (1, 5), (1, 6), (1, 6), (1, 6)]
    stop = StopTrainingOnViolation(max_n_violations=1, verbose=1)
    *_, model = train_with_evaluations(script, callback_after_eval=stop)
    assert model.num_timesteps == 5
    assert "exceeded its limit by [1.] (2 times in a row)" in capsys.readouterr().out


def test_stop_on_violation_needs_costs():
    with pytest.raises(ValueError, match="PPO has no costs"):
        PPO("MlpPolicy", "Pendulum-v1").learn(1, callback=StopTrainingOnViolation())


def test_video_shows_the_episode_on_disk_and_in_tensorboard(tmp_path, capsys):
    moviepy = pytest.importorskip("moviepy")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    env = VecNormalize(make_vec_env(lambda: ScriptedEnv([(0, 0)])))
    eval_env = VecNormalize(make_vec_env(lambda: ScriptedEnv([(3, 2)], length=6)), training=False, norm_reward=False)
    model = CPO("MlpPolicy", env, 25.0, n_steps=4, batch_size=4, tensorboard_log=str(tmp_path / "tb"))
    video = VideoRecorderCallback(eval_env, record_freq=3, video_folder=str(tmp_path / "videos"), verbose=1)
    model.learn(4, callback=video)
    assert os.listdir(tmp_path / "videos") == ["rl-video-step-3.mp4"]
    assert "(reward 3.00, cost 2.00)" in capsys.readouterr().out
    clip = moviepy.VideoFileClip(str(tmp_path / "videos/rl-video-step-3.mp4"))
    # Five frames at 10 per second, brighter and brighter
    assert (clip.fps, clip.size, clip.n_frames) == (10, [24, 16], 5)
    brightness = [frame.mean() for frame in clip.iter_frames()]
    np.testing.assert_allclose(brightness, [40, 80, 120, 160, 200], atol=6)
    clip.close()
    events = EventAccumulator(str(tmp_path / "tb/CPO_1"))
    events.Reload()
    (image,) = events.Images("eval/video")
    assert (image.step, image.width, image.height) == (3, 12, 8)
    assert image.encoded_image_string.startswith(b"GIF89a")
    # Every second frame
    from io import BytesIO

    from PIL import Image

    assert Image.open(BytesIO(image.encoded_image_string)).n_frames == 3
    # The statistics of training, not its own
    np.testing.assert_array_equal(eval_env.obs_rms.count, env.obs_rms.count - 1)


def test_video_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_video([], str(tmp_path / "video.mp4"), 30)


def test_progress_bar_shows_cost_against_limit():
    descriptions = []

    class Spy(CostProgressBarCallback):
        def _on_rollout_end(self):
            super()._on_rollout_end()
            descriptions.append(self.pbar.desc)

    env = make_vec_env(lambda: ScriptedEnv([(3, 1), (5, 2)]))
    CPO("MlpPolicy", env, cost_limit=5.0, n_steps=2, batch_size=2).learn(2, callback=Spy())
    keys = ("cost_a", "cost_b")
    env = make_vec_env(lambda: ScriptedEnv([(0, 1, 2)], keys))
    CPO("MlpPolicy", env, cost_limit={"cost_a": 3.0, "cost_b": 4.0}, n_steps=2, batch_size=2).learn(2, callback=Spy())
    env = make_vec_env(lambda: ScriptedEnv([(0, 1)]))
    TRPO("MlpPolicy", env, n_steps=2, batch_size=2).learn(2, callback=Spy())
    PPO("MlpPolicy", env, n_steps=2, batch_size=2).learn(2, callback=Spy())
    assert [text.removesuffix(": ") for text in descriptions] == [
        "return 4, cost 1.5/5",
        "return 0, cost cost_a 1/3, cost cost_b 2/4",
        "return 0, cost 1",
        "return 0",
    ]


def test_sb3s_own_progress_bar_works():
    env = make_vec_env(lambda: ScriptedEnv([(3, 1)]))
    model = CPO("MlpPolicy", env, 25.0, n_steps=2, batch_size=2).learn(4, progress_bar=True)
    assert model.num_timesteps == 4


def test_a_callback_that_has_stopped_a_training_lets_the_next_one_begin():
    stop = StopTrainingOnViolation()
    model = CPO("MlpPolicy", RiskyEnv(), 0.0, n_steps=20, batch_size=20, device="cpu")
    model.learn(100, callback=stop)
    assert model.num_timesteps == 21
    model.cost_limit = 100.0
    model.learn(100, callback=stop)
    assert model.num_timesteps == 100


def test_violations_are_counted_over_calls_of_learn_and_inside_of_other_callbacks():
    model = CPO("MlpPolicy", RiskyEnv(), 0.0, n_steps=20, batch_size=20, device="cpu")
    stop = StopTrainingOnViolation(max_n_violations=2)
    for steps in (20, 40, 60):
        model.learn(20, callback=stop, reset_num_timesteps=steps == 20)
        assert model.num_timesteps == steps
    model.learn(40, callback=stop, reset_num_timesteps=False)
    assert model.num_timesteps == 61
    model.learn(100, callback=EveryNTimesteps(5, StopTrainingOnViolation()))
    assert model.num_timesteps == 25
    with pytest.raises(ValueError, match=r"max_violation has 2 entries, for 1 limit"):
        model.learn(40, callback=StopTrainingOnViolation([1.0, 2.0]))
