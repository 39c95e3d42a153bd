"""Gather against numbers worked out by hand, and its draws against their law."""

import pickle

import gymnasium as gym
import numpy as np
import pytest

import safe_envs  # noqa: F401
from safe_envs.mujoco.gather import GRID, GatherTask, find_taken, place_objects, sense
from safe_envs.mujoco.robot_env import RobotEnv
from safe_envs.mujoco.robots import ANT, POINT

HALF_PI = np.pi / 2


def sense_one(objects, position=(0.0, 0.0), heading=0.0, is_present=None):
    objects = np.array([objects], dtype=float)
    present = np.ones(objects.shape[:2], dtype=bool) if is_present is None else np.array([is_present])
    return sense(np.array([position], dtype=float), np.array([heading]), objects, present)[0]


def polar(distance, degrees):
    return distance * np.cos(np.radians(degrees)), distance * np.sin(np.radians(degrees))


def expected(**readings):
    result = np.zeros(10)
    for key, value in readings.items():
        result[int(key[3:])] = value
    return pytest.approx(result)


@pytest.mark.parametrize(
    ("degrees", "index"), [(-89, 0), (-73, 0), (-71, 1), (-1, 4), (1, 5), (17, 5), (19, 6), (45, 7), (71, 8), (73, 9), (89, 9)]
)
def test_one_object_shows_in_the_bin_of_its_angle(degrees, index):
    # Bins of 18 degrees, the first from -90 to -72
    assert sense_one([polar(3.0, degrees)]) == expected(**{f"bin{index}": 0.5})


def test_bins_turn_with_the_robot():
    # Robot at (1, 1) looking along +y; object at (-2, 1) is exactly 90 degrees to the left, (3, 5) is to the right:
    # its direction is atan2(4, 2) = 63.4 degrees, 26.6 to the right of the heading: floor((90 - 26.6) / 18) = 3
    readings = sense_one([(-2.0, 1.0), (3.0, 5.0)], position=(1.0, 1.0), heading=HALF_PI)
    assert readings == expected(bin9=0.5, bin3=1.0 - np.sqrt(20.0) / 6.0)


@pytest.mark.parametrize("turns", [-3, 1, 20])
def test_heading_counts_modulo_full_turns(turns):
    objects = [polar(2.0, 40.0), polar(4.0, -33.0)]
    assert sense_one(objects, heading=2.0 * np.pi * turns) == pytest.approx(sense_one(objects))


def test_heading_near_half_a_turn_sees_both_sides_of_the_cut():
    # Looking along -x; objects at 170 and -170 degrees are 10 degrees to the right and to the left
    readings = sense_one([polar(3.0, 170.0), polar(1.5, -170.0)], heading=np.pi)
    assert readings == expected(bin4=0.5, bin5=0.75)


def test_nearest_of_two_in_a_bin_wins_in_either_order():
    near, far = polar(1.5, 5.0), polar(4.5, 8.0)
    assert sense_one([near, far]) == expected(bin5=0.75)
    assert sense_one([far, near]) == expected(bin5=0.75)


def test_nothing_is_seen_behind():
    assert sense_one([(-3.0, 0.5), (-1.0, 0.0), polar(2.0, 91.0), polar(2.0, -91.0)]) == expected()
    assert sense_one([polar(3.0, 90.0)]) == expected(bin9=0.5)
    assert sense_one([(0.0, -3.0)]) == expected(bin0=0.5)


def test_range_ends_at_six():
    assert sense_one([polar(5.4, 10.0)]) == expected(bin5=0.1)
    assert sense_one([(6.0, 0.001)]) == pytest.approx(np.zeros(10), abs=1e-6)
    assert sense_one([(6.1, 0.0)]) == expected()


def test_taken_objects_are_not_seen():
    objects = [polar(1.5, 5.0), polar(3.0, 5.0)]
    assert sense_one(objects, is_present=[False, True]) == expected(bin5=0.5)


def test_objects_are_taken_closer_than_one():
    objects = np.array([[(1.0, 0.0), (0.999, 0.0), (0.7, 0.72), (0.7, 0.71)]])
    assert find_taken(np.zeros((1, 2)), objects)[0].tolist() == [False, True, False, True]


def test_grid_has_35_cells_and_lacks_the_start():
    cells = {tuple(cell) for cell in GRID.tolist()}
    assert len(GRID) == len(cells) == 35
    assert (0.0, 0.0) not in cells
    assert {x for x, _ in cells} == {y for _, y in cells} == {-6.0, -4.0, -2.0, 0.0, 2.0, 4.0}


def test_objects_are_placed_uniformly_without_replacement():
    rng = np.random.default_rng(0)
    counts = np.zeros((10, 35))
    index = {tuple(cell): row for row, cell in enumerate(GRID.tolist())}
    for _ in range(3500):
        cells = [index[tuple(cell)] for cell in place_objects(rng, 10).tolist()]
        assert len(set(cells)) == 10
        counts[np.arange(10), cells] += 1
    # For each object 35 bins of 100: chi-squared with 34 degrees of freedom, below 71 with probability 0.9998
    assert ((counts - 100.0) ** 2 / 100.0).sum(axis=1).max() < 71.0


def start(env_id, objects, heading=0.0, **kwargs):
    """A task whose robot stands at the origin and whose objects lie where we want them."""
    env = gym.make(env_id, disable_env_checker=True, **kwargs)
    env.reset(seed=0)
    task = env.env.env
    assert isinstance(task, GatherTask)
    base = env.unwrapped
    qpos = base.init_qpos.copy()
    if env_id == "SafePointGather-v0":
        qpos[2] = heading
    base.set_state(qpos, np.zeros(base.model.nv))
    task.episode = {"objects": np.array([objects], dtype=float), "is_taken": np.zeros((1, len(objects)), dtype=bool)}
    return env, task


def test_apples_pay_and_bombs_cost():
    # The Point's com is 0.04258 ahead of its joint. Speed 1 along +x: com at 1.04, 2.04, 3.04
    env, _ = start("SafePointGather-v0", [(1.5, 0.5), (9.0, 9.0), (2.5, -0.5), (9.0, 0.0)], n_apples=2, n_bombs=2)
    results = [env.step(np.array([1.0, 0.0])) for _ in range(4)]
    assert [result[1] for result in results] == [10.0, 0.0, 0.0, 0.0]
    assert [result[4]["cost"] for result in results] == [0.0, 1.0, 0.0, 0.0]
    assert [result[4]["apples"] for result in results] == [1.0, 1.0, 1.0, 1.0]
    assert [result[4]["bombs"] for result in results] == [0.0, 1.0, 1.0, 1.0]
    assert not any(result[2] for result in results)


def test_info_tells_where_the_centre_of_mass_is_and_how_fast_it_went():
    # Turns by 0.2 to heading 0.5, then drives 0.8; the com is 0.04258 further ahead
    env, _ = start("SafePointGather-v0", [(5.0, 5.0), (9.0, 9.0)], heading=0.3, n_apples=1, n_bombs=1)
    info = env.step(np.array([0.8, 0.8]))[4]
    assert info["x_position"] == pytest.approx(0.84258 * np.cos(0.5), abs=1e-5)
    assert info["y_position"] == pytest.approx(0.84258 * np.sin(0.5), abs=1e-5)
    assert info["speed"] == pytest.approx(0.8)


def test_reach_is_measured_from_the_centre_of_mass():
    # joint at 0 after turning on the spot; object at distance 1.02 from the joint, 0.977 from the com
    env, _ = start("SafePointGather-v0", [(1.02, 0.0), (9.0, 9.0)], n_apples=1, n_bombs=1)
    assert env.step(np.zeros(2))[1] == 10.0
    env, _ = start("SafePointGather-v0", [(-1.02, 0.0), (9.0, 9.0)], n_apples=1, n_bombs=1)
    assert env.step(np.zeros(2))[1] == 0.0


def test_bomb_penalty_restores_the_released_reward():
    env, _ = start("SafePointGather-v0", [(9.0, 9.0), (1.0, 0.0)], n_apples=1, n_bombs=1, bomb_penalty=1.0)
    _, reward, _, _, info = env.step(np.zeros(2))
    assert (reward, info["cost"]) == (-1.0, 1.0)


def test_last_object_taken_ends_the_episode():
    env, _ = start("SafePointGather-v0", [(0.5, 0.0), (2.0, 0.0)], n_apples=1, n_bombs=1)
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (reward, info["cost"], terminated) == (10.0, 0.0, False)
    _, reward, terminated, truncated, info = env.step(np.array([1.0, 0.0]))
    assert (reward, info["cost"], terminated, truncated) == (0.0, 1.0, True, False)


def test_fall_replaces_the_reward_but_not_the_cost():
    env, _ = start("SafeAntGather-v0", [(0.3, 0.0), (9.0, 9.0), (0.0, 0.4), (9.0, 0.0)], n_apples=2, n_bombs=2)
    base = env.unwrapped
    qpos = base.init_qpos.copy()
    qpos[2] = 1.3
    base.set_state(qpos, np.zeros(14))
    _, reward, terminated, _, info = env.step(np.zeros(8))
    assert (reward, terminated, info["cost"], info["apples"]) == (-10.0, True, 1.0, 1.0)


def test_observation_ends_with_apples_then_bombs():
    ahead = float(RobotEnv(POINT).com_offset[0])
    env, task = start("SafePointGather-v0", [(3.0 + ahead, 0.0), (9.0, 9.0), (ahead, 1.5)], n_apples=2, n_bombs=1)
    observation, *_ = env.step(np.array([0.0, 0.0]))
    assert observation.shape == (29,)
    # straight ahead: 90 / 18 = 5; to the left: clamped to 9
    assert observation[9:19] == expected(bin5=0.5)
    assert observation[19:] == expected(bin9=0.75)
    assert env.observation_space.shape == task.observation_space.shape == (29,)


def test_ant_senses_along_its_true_yaw():
    env, task = start("SafeAntGather-v0", [(0.0, 3.0), (9.0, 9.0)], n_apples=1, n_bombs=1)
    base = env.unwrapped
    qpos = base.init_qpos.copy()
    qpos[3:7] = np.cos(np.radians(45)), 0.0, 0.0, np.sin(np.radians(45))  # turned by 90 degrees: it looks along +y
    base.set_state(qpos, np.zeros(14))
    observation = task.observe(base.robot_state, task.episode)[0]
    x, y, _ = base.robot_state.com[0]
    assert observation[32:42].max() == pytest.approx(1.0 - np.hypot(x, 3.0 - y) / 6.0)
    assert observation[32:42].argmax() in (4, 5)
    assert observation.shape == (52,)


def test_walls_stop_the_ant():
    env = gym.make("SafeAntGather-v0")
    env.reset(seed=0)
    base = env.unwrapped
    model = base.model
    for name, pos, size in (
        ("east", (7, 0, 0), (0.5, 7.5, 1)), ("west", (-7, 0, 0), (0.5, 7.5, 1)),
        ("north", (0, 7, 0), (7.5, 0.5, 1)), ("south", (0, -7, 0), (7.5, 0.5, 1)),
    ):  # fmt: skip
        wall = model.geom(f"wall_{name}")
        assert wall.pos.tolist() == list(pos)
        assert wall.size.tolist() == list(size)
        assert (wall.contype[0], wall.conaffinity[0], wall.bodyid[0]) == (1, 1, 0)
        assert np.allclose(wall.solimp[:3], [0.8, 0.8, 0.01])
    qpos = base.init_qpos.copy()
    qpos[:2] = 5.0, 0.0
    base.set_state(qpos, np.r_[6.0, np.zeros(13)])
    furthest = 0.0
    for _ in range(50):
        env.step(np.zeros(8))
        furthest = max(furthest, base.data.qpos[0])
    assert 5.2 < furthest < 6.5
    free = RobotEnv(ANT)
    free.set_state(qpos, np.r_[6.0, np.zeros(13)])
    for _ in range(50):
        free.step(np.zeros(8))
    assert free.data.qpos[0] > 6.5


def test_point_stays_within_the_activity_range():
    env = gym.make("SafePointGather-v0", max_episode_steps=100)
    env.reset(seed=0)
    for _ in range(30):
        observation, *_ = env.step(np.array([1.0, 0.0]))
    assert np.abs(observation[:2]).max() == 6.0


def test_objects_are_shown_until_they_are_taken():
    env, _ = start("SafePointGather-v0", [(1.5, 0.0), (-3.0, 2.0)], n_apples=1, n_bombs=1)
    env.step(np.zeros(2))
    model, data = env.unwrapped.model, env.unwrapped.data
    assert data.geom("object_0").xpos[:2].tolist() == [1.5, 0.0]
    assert model.geom("object_0").rgba[1] > model.geom("object_0").rgba[0]  # an apple is green
    assert model.geom("object_1").rgba[0] > model.geom("object_1").rgba[1]  # a bomb is red
    assert [model.geom(f"object_{index}").rgba[3] for index in (0, 1)] == [1.0, 1.0]
    env.step(np.array([1.0, 0.0]))
    assert [model.geom(f"object_{index}").rgba[3] for index in (0, 1)] == [0.0, 1.0]
    assert data.geom("object_1").xpos[:2].tolist() == [-3.0, 2.0]


def test_random_policy_takes_what_the_specification_says():
    env = gym.make("SafePointGather-v0", disable_env_checker=True)
    rng = np.random.default_rng(0)
    totals = []
    for episode in range(1500):
        env.reset(seed=0 if episode == 0 else None)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(rng.standard_normal(2))
            over = terminated or truncated
        totals.append((info["apples"], info["bombs"]))
    apples, bombs = np.mean(totals, axis=0)
    assert apples == pytest.approx(0.1, abs=0.03)
    assert bombs == pytest.approx(0.39, abs=0.06)


@pytest.mark.parametrize("kwargs", [{"n_apples": -1}, {"n_apples": 0, "n_bombs": 0}, {"n_apples": 30, "n_bombs": 6}])
def test_bad_numbers_of_objects_are_errors(kwargs):
    with pytest.raises(ValueError, match="room for 1 to 35"):
        GatherTask(RobotEnv(ANT), **kwargs)


@pytest.mark.parametrize("kwargs", [{"n_apples": 0, "n_bombs": 3}, {"n_apples": 3, "n_bombs": 0}])
def test_one_kind_alone_works(kwargs):
    env = gym.make("SafePointGather-v0", **kwargs)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (29,)
    env.step(env.action_space.sample())


def test_a_copy_keeps_the_activity_range():
    env = gym.make("SafePointGather-v0").unwrapped
    assert pickle.loads(pickle.dumps(env)).position_limit == env.position_limit == 6


def test_what_is_taken_is_sensed_no_more():
    env = GatherTask(RobotEnv(POINT), n_apples=1, n_bombs=1)
    env.reset(seed=0)
    env.unwrapped.set_state(np.zeros(3), np.zeros(3))
    objects = np.array([[[3.0, 0.1], [0.1, 3.0]]])
    readings = {}
    for apple_is_taken in (False, True):
        for bomb_is_taken in (False, True):
            episode = {"objects": objects, "is_taken": np.array([[apple_is_taken, bomb_is_taken]])}
            bins = env.observe(env.robot_env.robot_state, episode)[0, 9:]
            readings[apple_is_taken, bomb_is_taken] = (bins[:10] > 0).sum(), (bins[10:] > 0).sum()
    assert readings == {(False, False): (1, 1), (True, False): (0, 1), (False, True): (1, 0), (True, True): (0, 0)}


def test_an_apple_that_was_taken_is_neither_sensed_nor_drawn():
    task = GatherTask(RobotEnv(POINT), n_apples=2, n_bombs=1)
    task.reset(seed=0)
    position = task.robot_env.robot_state.com[0, :2]
    task.episode = {
        "objects": np.array([position + np.array([(0.5, 0.0), (3.0, 0.0), (5.9, 5.0)])]),
        "is_taken": np.zeros((1, 3), dtype=bool),
    }
    task.show(task.episode)
    geoms = [task.robot_env.model.geom(f"object_{index}").id for index in range(3)]
    assert task.robot_env.model.geom_rgba[geoms, 3].tolist() == [1, 1, 1]
    obs, reward, *_ = task.step(np.zeros(2))
    assert reward == 10
    # The other one is 3 away, so that its reading is 1 - 3 / 6; the one that was taken would read more
    assert max(obs[-20:-10]) == pytest.approx(0.5, abs=0.02)
    task.show(task.episode)
    assert task.robot_env.model.geom_rgba[geoms, 3].tolist() == [0, 1, 1]
    _, reward, *_ = task.step(np.zeros(2))
    assert reward == 0
