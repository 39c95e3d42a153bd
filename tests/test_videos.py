"""What the frames of a video show."""

import gymnasium as gym
import numpy as np
import pytest
from test_evaluation import CountingEnv

from sb3_cpo import CPO, make_vec_env, safety_report
from sb3_cpo.videos import caption_lines, record_episodes, record_replay, write_caption


@pytest.mark.parametrize("robot", ["Point", "Ant", "Humanoid"])
@pytest.mark.parametrize("size", [(480, 480), (640, 360)])
def test_the_whole_circle_is_in_view(robot, size, can_draw):
    env = gym.make(f"Safe{robot}Circle-v0", render_mode="rgb_array", width=size[0], height=size[1])
    env.reset(seed=0)
    red, green, blue = np.moveaxis(env.render().astype(int), 2, 0)
    env.close()
    is_ring = (blue > 180) & (blue > red + 60) & (blue > green + 30)
    rows, columns = np.nonzero(is_ring)
    # It is closed: to the left and right, and above and below, and none of it at the edge
    assert is_ring.sum() > 400
    assert 0 < columns.min() < 0.45 * size[0]
    assert 0.55 * size[0] < columns.max() < size[0] - 1
    assert 0 < rows.min() < 0.45 * size[1]
    assert 0.55 * size[1] < rows.max() < size[1] - 1


class Painter(CountingEnv):
    """Its frames are grey, and large enough for text."""

    def render(self):
        return np.full((120, 200, 3), 100 + self.t, dtype=np.uint8)


def make_model(cost_limit, **kwargs):
    return CPO("MlpPolicy", make_vec_env(Painter), cost_limit, n_steps=8, batch_size=8, **kwargs)


def test_cost_and_limit_are_written_into_the_frames(monkeypatch):
    lines = []
    monkeypatch.setattr("sb3_cpo.videos.write_caption", lambda frame, text: lines.append(text) or write_caption(frame, text))
    recording = record_episodes(make_model(5.0), make_vec_env(Painter), 2, caption=True)
    # Costs 1, 2, 3, 4: of the last step there is no picture
    assert lines == [["cost 1 / limit 5"], ["cost 3 / limit 5"], ["cost 6 / limit 5"]] * 2
    for t, frame in enumerate(recording.frames):
        assert frame.shape == (120, 200, 3)
        assert frame[:40, :100].std() > 10  # text
        np.testing.assert_array_equal(frame[60:], 101 + t % 3)  # the rest is as it was
    plain = record_episodes(make_model(5.0), make_vec_env(Painter), 1)
    assert plain.frames[0].std() == 0


def test_costs_are_discounted_as_the_limit_beside_them_is(monkeypatch):
    """In step t a cost of t, which weighs 1 / 2^(t - 1): 1 + 2 / 2 + 3 / 4 + 4 / 8, where the plain sum is 10."""
    lines = []
    monkeypatch.setattr("sb3_cpo.videos.write_caption", lambda frame, text: lines.append(text) or frame)
    model = make_model(5.0, cost_gamma=0.5)
    recording = record_episodes(model, make_vec_env(Painter, n_envs=2), 3, max_frames=3, caption=True)
    assert lines == [["cost 1 / limit 5"], ["cost 2 / limit 5"], ["cost 2.75 / limit 5"]]
    # Those of all copies, and those after the video has ended
    np.testing.assert_array_equal(recording.costs, [[3.25]] * 3)
    replay = record_replay(model, make_vec_env(Painter), 7, deterministic=True)
    np.testing.assert_array_equal(replay.costs, [[3.25]])


def test_captions_name_the_constraints():
    model = make_model({"cost_energy": 4.0, "cost_speed": lambda progress: 2.0 + progress})
    assert caption_lines(model, np.array([1.5, 12.0])) == ["cost_energy 1.5 / limit 4", "cost_speed 12 / limit 3"]
    assert caption_lines(object(), np.array([2.0])) == ["cost 2"]
    assert caption_lines(object(), np.zeros(0)) == []
    frame = np.zeros((8, 8, 3), dtype=np.uint8)
    assert write_caption(frame, []) is write_caption(frame, ["cost 2"]) is frame


def test_the_worst_episode_of_a_report_is_recorded_by_its_seed(can_draw):
    pytest.importorskip("scipy")
    model = CPO("MlpPolicy", "SafePointGather-v0", n_steps=15, batch_size=150, seed=0)
    report = safety_report(model, "SafePointGather-v0", 12, policies=["stochastic"])
    (worst,) = report.policies[0].constraints
    recording = record_replay(model, make_vec_env("SafePointGather-v0"), worst.worst_seed, deterministic=False)
    assert recording.costs[0, 0] == worst.worst_cost
    assert recording.rewards == [report.policies[0].returns[report.policies[0].seeds == worst.worst_seed][0]]
    assert len(recording.frames) == recording.lengths[0] - 1
