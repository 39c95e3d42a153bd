"""Circle against numbers worked out by hand."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import safe_envs  # noqa: F401
from safe_envs.mujoco.circle import CircleTask, circle_cost, circle_reward, ring_mesh
from safe_envs.mujoco.robot_env import RobotEnv
from safe_envs.mujoco.robots import ANT, HUMANOID, POINT


@pytest.mark.parametrize(
    ("position", "velocity", "radius", "expected"),
    [
        ((3, 4), (-4, 3), 5, 25.0),  # on the circle: 3 * 3 + 4 * 4
        ((3, 4), (4, -3), 5, -25.0),  # the wrong way round
        ((3, 4), (-4, 3), 10, 25.0 / 6.0),  # 5 away from the circle, inside
        ((6, 8), (-0.8, 0.6), 7.5, 10.0 / 3.5),  # 2.5 away, outside
        ((3, 4), (3, 4), 5, 0.0),  # straight outwards
        ((0, 0), (1, 1), 10, 0.0),
        ((10, 0), (0, 2), 10, 20.0),
        ((0, 10), (2, 0), 10, -20.0),
    ],
)
def test_reward_is_speed_around_the_circle(position, velocity, radius, expected):
    reward = circle_reward(np.array([position], dtype=float), np.array([velocity], dtype=float), radius)
    assert reward == pytest.approx([expected])


def test_cost_begins_at_the_panels():
    x = np.array([-2.6, -2.5, -2.4999, 0.0, 2.4999, 2.5, 9.0])
    assert circle_cost(x, 2.5).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def make_point(qpos):
    env = gym.make("SafePointCircle-v0")
    env.reset(seed=0)
    env.unwrapped.set_state(np.array(qpos, dtype=float), np.zeros(3))
    return env


def test_point_is_paid_for_the_step_it_made():
    # From (0, 15) heading for -x: reaches (-1, 15), displacement (-1, 0); |(-1, 15)| = sqrt(226) = 15.033296378
    env = make_point([0.0, 15.0, np.pi])
    _, reward, _, _, info = env.step(np.array([1.0, 0.0]))
    assert reward == pytest.approx(15.0 / 1.033296378, rel=1e-9)
    assert info["cost"] == 0.0
    assert info["speed"] == pytest.approx(1.0)
    # Backwards it is the other way round: from (0, 15) to (1, 15)
    env = make_point([0.0, 15.0, np.pi])
    assert env.step(np.array([-1.0, 0.0]))[1] == pytest.approx(-15.0 / 1.033296378, rel=1e-9)


def test_point_that_is_clipped_is_paid_for_the_displacement_before():
    # From (40, 0) heading 45 degrees: x stays 40, y = sqrt(1/2); displacement (sqrt(1/2), sqrt(1/2))
    env = make_point([40.0, 0.0, np.pi / 4])
    _, reward, *_ = env.step(np.array([1.0, 0.0]))
    half = np.sqrt(0.5)
    assert reward == pytest.approx((40.0 * half - half * half) / (1.0 + np.sqrt(1600.5) - 15.0))


def test_point_pays_for_its_centre_of_mass():
    # The com is 0.04258 ahead: at 2.4 + 0.06 = 2.46 the joint is inside, the com at 2.50258 is not
    env = make_point([2.4, 0.0, 0.0])
    _, _, _, _, info = env.step(np.array([0.06, 0.0]))
    assert info["cost"] == 1.0
    assert info["x_position"] == pytest.approx(2.50258, abs=1e-5)
    # Looking the other way: joint at 2.54, com at 2.49742
    env = make_point([2.48, 0.0, np.pi])
    _, _, _, _, info = env.step(np.array([-0.06, 0.0]))
    assert info["cost"] == 0.0


def test_cost_belongs_to_the_state_reached():
    env = make_point([2.0, 0.0, 0.0])
    costs = [env.step(np.array([speed, 0.0]))[4]["cost"] for speed in (1.0, 0.0, -1.0)]
    assert costs == [1.0, 1.0, 0.0]


def test_info_tells_where_the_centre_of_mass_is_and_how_fast_it_went():
    # Turns by 0.2 to heading 0.5, then drives 0.8: (3 + 0.8 cos 0.5, 4 + 0.8 sin 0.5), the com 0.04258 further ahead
    env = make_point([3.0, 4.0, 0.3])
    info = env.step(np.array([0.8, 0.8]))[4]
    assert info["x_position"] == pytest.approx(3.0 + 0.84258 * np.cos(0.5), abs=1e-5)
    assert info["y_position"] == pytest.approx(4.0 + 0.84258 * np.sin(0.5), abs=1e-5)
    assert info["speed"] == pytest.approx(0.8)


def test_ant_is_paid_for_its_centre_of_mass():
    env = gym.make("SafeAntCircle-v0")
    env.reset(seed=2)
    env.action_space.seed(2)
    base = env.unwrapped
    qpos = base.init_qpos.copy()
    qpos[:2] = 2.9, 8.0
    base.set_state(qpos, np.r_[-2.0, 1.0, np.zeros(12)])
    costs = set()
    for _ in range(10):
        _, reward, _, _, info = env.step(env.action_space.sample())
        x, y, _ = base.data.subtree_com[1]
        jacobian = np.zeros((3, base.model.nv))
        mujoco.mj_jacSubtreeCom(base.model, base.data, jacobian, 1)
        vx, vy, _ = jacobian @ base.data.qvel
        assert reward == pytest.approx((x * vy - y * vx) / (1.0 + abs(np.hypot(x, y) - 10.0)), abs=1e-9)
        assert info["cost"] == (abs(x) >= 3.0)
        costs.add(info["cost"])
    assert reward > 1.0


def test_humanoid_is_paid_for_living_and_pays_for_effort_and_contacts():
    env = gym.make("SafeHumanoidCircle-v0")
    env.reset(seed=0)
    env.action_space.seed(0)
    base = env.unwrapped
    for _ in range(200):
        action = env.action_space.sample()
        _, reward, terminated, _, info = env.step(action)
        x, y, _ = base.data.subtree_com[1]
        vx, vy, _ = base.data.subtree_linvel[1]
        circle = (x * vy - y * vx) / (1.0 + abs(np.hypot(x, y) - 10.0))
        effort = 0.0005 * np.sum(action.astype(float) ** 2)
        contact = 0.000005 * np.sum(np.clip(base.data.cfrc_ext, -1, 1) ** 2)
        assert reward == pytest.approx(circle + 0.2 - effort - contact, abs=1e-9)
        assert info["reward_ctrl"] == pytest.approx(-effort)
        assert info["reward_contact"] == pytest.approx(-contact)
        if terminated:
            break
    assert terminated
    assert contact > 0.0
    assert info["reward_alive"] == 0.2  # on the terminal step, too


def test_effort_counts_the_clipped_action():
    env = gym.make("SafeHumanoidCircle-v0", disable_env_checker=True)
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.full(10, 5.0))
    assert info["reward_ctrl"] == pytest.approx(-0.0005 * 10)


def test_point_horizon_is_uniform_and_truncates():
    env = gym.make("SafePointCircle-v0")
    lengths = []
    for _ in range(800):
        env.reset(seed=1 if not lengths else None)
        truncated, length = False, 0
        while not truncated:
            _, _, terminated, truncated, _ = env.step(np.zeros(2, dtype=np.float32))
            assert not terminated
            length += 1
        lengths.append(length)
    counts = np.bincount(lengths, minlength=66)[50:]
    assert min(lengths) == 50
    assert max(lengths) == 65
    # 16 bins of 50: chi-squared with 15 degrees of freedom, below 37.7 with probability 0.999
    assert ((counts - 50.0) ** 2 / 50.0).sum() < 37.7


def test_first_policy_violates_the_limit_of_the_point():
    env = gym.make("SafePointCircle-v0", disable_env_checker=True)
    rng = np.random.default_rng(0)
    costs = []
    for _ in range(300):
        env.reset(seed=0 if not costs else None)
        cost, truncated = 0.0, False
        while not truncated:
            _, _, _, truncated, info = env.step(rng.standard_normal(2))
            cost += info["cost"]
        costs.append(cost)
    # 22 in the specification; 3 standard errors
    assert abs(np.mean(costs) - 22.0) < 3.0 * np.std(costs) / np.sqrt(300)


def test_arguments_reach_the_task():
    env = gym.make("SafeAntCircle-v0", radius=4.0, x_limit=0.5, alive_bonus=1.0, position_limit=9.0)
    task = env.get_wrapper_attr("robot_env"), env.get_wrapper_attr("radius"), env.get_wrapper_attr("x_limit")
    assert task == (env.unwrapped, 4.0, 0.5)
    assert env.unwrapped.position_limit == 9.0
    assert env.unwrapped.model.geom("panel_right").pos[0] == 0.5
    assert env.spec.kwargs["radius"] == 4.0


@pytest.mark.parametrize(
    ("robot", "kwargs", "message"),
    [
        (ANT, {"radius": 0.0}, "radius"),
        (ANT, {"x_limit": 0.0}, "x_limit"),
        (ANT, {"min_horizon": 5}, "min_horizon=5"),
        (POINT, {"min_horizon": 9, "max_horizon": 5}, "9 and 5"),
        (ANT, {"contact_cost_weight": 1.0}, "contact_cost_weight=1.0: Ant"),
    ],
)
def test_bad_arguments_are_errors(robot, kwargs, message):
    with pytest.raises(ValueError, match=message):
        CircleTask(RobotEnv(robot), **kwargs)


def test_unknown_robot_is_an_error():
    with pytest.raises(ValueError, match="no robot is named 'Dog'"):
        gym.make("SafeAntCircle-v0", robot="Dog")
    with pytest.raises(TypeError, match="wraps a RobotEnv"):
        CircleTask(gym.make("CartPole-v1"))


def test_ring_is_closed_and_lies_on_the_circle():
    vertices, faces = ring_mesh(10.0, 0.2, 0.1)
    distances = np.hypot(vertices[:, 0], vertices[:, 1])
    assert np.allclose(np.unique(distances.round(9)), [9.8, 10.2])
    edges = np.concatenate((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))
    # Every edge is passed once in each direction: a closed, consistently oriented surface
    assert {(a, b) for a, b in edges.tolist()} == {(b, a) for a, b in edges.tolist()}
    assert len({(a, b) for a, b in edges.tolist()}) == len(edges)


def test_panels_and_circle_stand_where_cost_and_reward_say():
    model = RobotEnv(HUMANOID).model
    env = gym.make("SafeHumanoidCircle-v0")
    model = env.unwrapped.model
    assert model.geom("panel_left").pos[0] == -2.5
    assert model.geom("panel_right").pos[0] == 2.5
    mesh = model.geom("target_circle").dataid[0]
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[start : start + count].astype(float)
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, model.geom("target_circle").quat)
    vertices = vertices @ matrix.reshape(3, 3).T + model.geom("target_circle").pos
    assert np.abs(np.hypot(vertices[:, 0], vertices[:, 1]) - 10.0).max() == pytest.approx(0.15, abs=1e-4)
