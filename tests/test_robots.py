"""The robots against the specification's numbers, and against MuJoCo by other routes."""

import mujoco
import numpy as np
import pytest

from safe_envs.mujoco import robots
from safe_envs.mujoco.robot_env import RobotEnv
from safe_envs.mujoco.robots import ANT, HUMANOID, POINT

ALL_ROBOTS = [POINT, ANT, HUMANOID]


def test_point_drives_along_its_new_heading():
    env = RobotEnv(POINT)
    env.reset(seed=0)
    env.set_state(np.array([1.0, 2.0, 0.5]), np.zeros(3))
    # speed 0.6 * 1, turn 0.4 * 0.25 = 0.1: heading 0.6; cos 0.6 = 0.825335615, sin 0.6 = 0.564642473
    observation, _, terminated, _, _ = env.step(np.array([0.6, 0.4]))
    assert observation[:3] == pytest.approx([1.495201369, 2.338785484, 0.6], abs=1e-8)
    assert observation[3:6] == pytest.approx([0.495201369, 0.338785484, 0.1], abs=1e-8)
    assert not terminated


def test_point_drives_backwards_and_turns_right():
    qpos, qvel = robots.move_point(np.array([[0.0, 0.0, np.pi / 2]]), np.array([[-1.0, -0.25]]), 40.0)
    # heading pi/2 - 0.25: cos = sin 0.25 = 0.247403959, sin = cos 0.25 = 0.968912422
    assert qpos[0] == pytest.approx([-0.247403959, -0.968912422, 1.320796327], abs=1e-8)
    assert qvel[0] == pytest.approx([-0.247403959, -0.968912422, -0.25], abs=1e-8)


def test_point_stops_at_the_limit_but_its_displacement_does_not():
    qpos, qvel = robots.move_point(np.array([[39.5, -39.5, -np.pi / 4]]), np.array([[1.0, 0.0]]), 40.0)
    assert qpos[0, :2].tolist() == [40.0, -40.0]
    assert qvel[0, :2] == pytest.approx([0.7071067812, -0.7071067812])


def test_point_com_lies_ahead_of_its_joint():
    model = RobotEnv(POINT).model
    # sphere 100 * 4/3 pi 0.125 = 52.36, box 100 * 1 * 0.2 * 0.2 = 4, at 0.6
    assert model.body_mass.sum() == pytest.approx(56.36, abs=0.005)
    assert model.body("torso").ipos == pytest.approx([0.04258, 0.0, 0.5], abs=5e-6)
    com = robots.point_com(np.array([[1.0, 2.0, np.pi / 2]]), np.array([0.04258, 0.0, 0.5]))
    assert com[0] == pytest.approx([1.0, 2.04258, 0.5])


@pytest.mark.parametrize("robot", ALL_ROBOTS, ids=lambda robot: robot.name)
def test_com_and_its_velocity_agree_with_the_jacobian(robot):
    env = RobotEnv(robot)
    env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(5):
        env.step(env.action_space.sample())
    torso = env.model.body("torso").id
    assert env.robot_state.com[0] == pytest.approx(env.data.subtree_com[torso], abs=1e-12)
    if robot is POINT:
        return  # its velocity is the displacement of the step
    jacobian = np.zeros((3, env.model.nv))
    mujoco.mj_jacSubtreeCom(env.model, env.data, jacobian, torso)
    expected = jacobian @ env.data.qvel
    assert np.abs(expected).max() > 0.01
    assert env.robot_state.velocity[0] == pytest.approx(expected[:2], abs=1e-10)
    assert env.data.subtree_linvel[torso] == pytest.approx(expected, abs=1e-10)


def test_ant_is_the_packaged_ant_with_four_differences():
    env = RobotEnv(ANT)
    model = env.model
    assert (model.nq, model.nv, model.nu, model.nbody, model.ncam) == (15, 14, 8, 14, 0)
    assert model.body_mass.sum() == pytest.approx(0.9109, abs=5e-5)
    assert model.opt.timestep == 0.02
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    assert np.allclose(model.geom_solref, [0.02, 1.0])
    assert np.allclose(model.geom_solimp[:, :3], [0.8, 0.8, 0.01])
    assert np.allclose(model.actuator_ctrlrange, [-150.0, 150.0])
    assert np.allclose(model.actuator_gear[:, 0], 1.0)
    joints = [model.joint(model.actuator_trnid[index, 0]).name for index in range(8)]
    assert joints == ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
    assert env.init_qpos.tolist() == [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]


# body: parent, position, quaternion, inertial position, mass, diagonal inertia, inertial quaternion
HUMANOID_BODIES = {
    "torso": ("world", (0, 0, 1.4), (1, 0, 0, 0), (0, 0, 0.0403624), 8.32208, (0.159056, 0.147471, 0.0330627), (1, 0, 0, 0)),
    "pelvis": (
        "torso", (0, 0, -0.425), (0.999998, 0, -0.002, 0), (-0.0148387, 0, 0.0387097), 7.88854,
        (0.0795697, 0.0619562, 0.0449816), (0.997805, 0, 0.0662273, 0),
    ),
    "right_thigh": (
        "pelvis", (0, -0.1, -0.04), (1, 0, 0, 0), (0, 0.005, -0.17), 5.37761,
        (0.0792387, 0.0792387, 0.0113602), (0.999892, 0.0147011, 0, 0),
    ),
    "right_shin": (
        "right_thigh", (0, 0.01, -0.403), (1, 0, 0, 0), (0, 0, -0.181), 3.10016,
        (0.045501, 0.045501, 0.00372174), (1, 0, 0, 0),
    ),
    "right_foot": ("right_shin", (0, 0, -0.45), (1, 0, 0, 0), (0, 0, 0.1), 1.76714587, (0.00397607820,) * 3, (1, 0, 0, 0)),
    "left_thigh": (
        "pelvis", (0, 0.1, -0.04), (1, 0, 0, 0), (0, -0.005, -0.17), 5.37761,
        (0.0792387, 0.0792387, 0.0113602), (0.999892, -0.0147011, 0, 0),
    ),
    "left_shin": (
        "left_thigh", (0, -0.01, -0.403), (1, 0, 0, 0), (0, 0, -0.181), 3.10016,
        (0.045501, 0.045501, 0.00372174), (1, 0, 0, 0),
    ),
    "left_foot": ("left_shin", (0, 0, -0.45), (1, 0, 0, 0), (0, 0, 0.1), 1.76714587, (0.00397607820,) * 3, (1, 0, 0, 0)),
    "right_upper_arm": (
        "torso", (0, -0.17, 0.06), (1, 0, 0, 0), (0.08, -0.08, -0.08), 1.59406,
        (0.0139972, 0.0139972, 0.00127525), (0.888074, -0.325058, -0.325058, 0),
    ),
    "left_upper_arm": (
        "torso", (0, 0.17, 0.06), (1, 0, 0, 0), (0.08, 0.08, -0.08), 1.59406,
        (0.0139972, 0.0139972, 0.00127525), (0.888074, 0.325058, -0.325058, 0),
    ),
}  # fmt: skip

# joint: body, position, axis, range, stiffness, control range
_DIAGONAL = 0.707107
HUMANOID_JOINTS = {
    "right_hip1": ("right_thigh", (0, 0, 0), (1, 0, 0), (-0.15, 0.0872665), 10, 100),
    "right_hip3": ("right_thigh", (0, 0, 0), (0, 1, 0), (-1.91986, 0.174533), 20, 100),
    "right_knee": ("right_shin", (0, 0, 0.05), (0, -1, 0), (-1.3, -0.0349066), 0, 100),
    "left_hip1": ("left_thigh", (0, 0, 0), (-1, 0, 0), (-0.15, 0.0872665), 10, 100),
    "left_hip3": ("left_thigh", (0, 0, 0), (0, 1, 0), (-1.91986, 0.174533), 20, 100),
    "left_knee": ("left_shin", (0, 0, 0.05), (0, -1, 0), (-1.3, -0.0349066), 0, 100),
    "right_shoulder1": ("right_upper_arm", (0, 0, 0), (0, -_DIAGONAL, _DIAGONAL), (-1.0472, 0.785398), 1, 20),
    "right_shoulder2": ("right_upper_arm", (0, 0, 0), (0.816497, 0.408248, 0.408248), (-0.785398, 0.785398), 1, 20),
    "left_shoulder1": ("left_upper_arm", (0, 0, 0), (0, _DIAGONAL, _DIAGONAL), (-1.0472, 0.785398), 1, 20),
    "left_shoulder2": ("left_upper_arm", (0, 0, 0), (0.816497, -0.408248, 0.408248), (-0.785398, 0.785398), 1, 20),
}

# geoms of each body: type, size (radius and half-length), position, quaternion
_SIDEWAYS = (0.707107, 0.707107, 0, 0)
HUMANOID_GEOMS = {
    "torso": [
        ("capsule", (0.07, 0.07), (0, 0, 0), _SIDEWAYS),
        ("sphere", (0.09,), (0, 0, 0.19), (1, 0, 0, 0)),
        ("capsule", (0.06, 0.06), (0, 0, -0.12), _SIDEWAYS),
    ],
    "pelvis": [
        ("capsule", (0.06, 0.06), (0, 0, 0.15), _SIDEWAYS),
        ("capsule", (0.09, 0.07), (-0.02, 0, 0), _SIDEWAYS),
    ],
    "right_thigh": [("capsule", (0.065, 0.170074), (0, 0.005, -0.17), (0.999892, 0.0147011, 0, 0))],
    "left_thigh": [("capsule", (0.065, 0.170074), (0, -0.005, -0.17), (0.999892, -0.0147011, 0, 0))],
    "right_shin": [("capsule", (0.049, 0.181), (0, 0, -0.181), (1, 0, 0, 0))],
    "left_shin": [("capsule", (0.049, 0.181), (0, 0, -0.181), (1, 0, 0, 0))],
    "right_foot": [("sphere", (0.075,), (0, 0, 0.1), (1, 0, 0, 0))],
    "left_foot": [("sphere", (0.075,), (0, 0, 0.1), (1, 0, 0, 0))],
    "right_upper_arm": [("capsule", (0.04, 0.2), (0.08, -0.08, -0.08), (0.888074, -0.325058, -0.325058, 0))],
    "left_upper_arm": [("capsule", (0.04, 0.2), (0.08, 0.08, -0.08), (0.888074, 0.325058, -0.325058, 0))],
}


def test_humanoid_bodies_are_those_of_the_table():
    model = RobotEnv(HUMANOID).model
    assert (model.nq, model.nv, model.nu, model.nbody) == (17, 16, 10, 11)
    assert [model.body(index).name for index in range(1, 11)] == list(HUMANOID_BODIES)
    assert model.body_mass.sum() == pytest.approx(39.8886, abs=5e-5)
    for name, (parent, pos, quat, ipos, mass, inertia, iquat) in HUMANOID_BODIES.items():
        body = model.body(name)
        assert model.body(body.parentid[0]).name == parent
        assert body.pos == pytest.approx(pos, abs=1e-9), name
        assert body.quat == pytest.approx(quat, abs=1e-6), name
        assert body.ipos == pytest.approx(ipos, abs=1e-9), name
        assert body.mass[0] == pytest.approx(mass, abs=1e-8), name
        assert body.inertia == pytest.approx(inertia, abs=1e-9), name
        assert body.iquat == pytest.approx(iquat, abs=1e-5), name


def test_humanoid_joints_and_motors_are_those_of_the_table():
    model = RobotEnv(HUMANOID).model
    root = model.joint(0)
    assert (root.name, root.type[0]) == ("root", mujoco.mjtJoint.mjJNT_FREE)
    assert np.all(model.dof_armature[:6] == 0.0)
    assert np.all(model.dof_damping[:6] == 0.0)
    assert np.all(model.dof_armature[6:] == 1.0)
    assert np.all(model.dof_damping[6:] == 1.0)
    assert np.all(model.jnt_margin == 0.01)
    assert model.jnt_limited.tolist() == [0] + [1] * 10
    assert [model.joint(index).name for index in range(1, 11)] == list(HUMANOID_JOINTS)
    assert [model.joint(joint).name for joint in model.actuator_trnid[:, 0]] == list(HUMANOID_JOINTS)
    assert np.all(model.actuator_gear[:, 0] == 1.0)
    for index, (name, (body, pos, axis, limits, stiffness, control)) in enumerate(HUMANOID_JOINTS.items()):
        joint = model.joint(name)
        assert model.body(joint.bodyid[0]).name == body
        assert joint.pos == pytest.approx(pos, abs=1e-9), name
        assert joint.axis == pytest.approx(axis, abs=1e-6), name
        assert joint.range == pytest.approx(limits, abs=1e-9), name
        assert np.ravel(joint.stiffness)[0] == stiffness, name
        assert model.actuator_ctrlrange[index].tolist() == [-control, control]


def test_humanoid_geoms_are_those_of_the_table():
    model = RobotEnv(HUMANOID).model
    types = {"capsule": mujoco.mjtGeom.mjGEOM_CAPSULE, "sphere": mujoco.mjtGeom.mjGEOM_SPHERE}
    for body, expected in HUMANOID_GEOMS.items():
        first, count = model.body(body).geomadr[0], model.body(body).geomnum[0]
        assert count == len(expected)
        for index, (kind, size, pos, quat) in enumerate(expected, start=first):
            geom = model.geom(index)
            assert geom.type[0] == types[kind]
            assert geom.size[: len(size)] == pytest.approx(size, abs=1e-9)
            assert geom.pos == pytest.approx(pos, abs=1e-9)
            assert geom.quat == pytest.approx(quat, abs=1e-5)
    assert np.all(model.geom_condim == 3)
    assert np.all(model.geom_margin == 0.1)
    assert np.allclose(model.geom_friction, [1.0, 0.5, 0.5])
    assert np.allclose(model.geom_solref, [0.02, 1.0])
    assert np.allclose(model.geom_solimp, [0.9, 0.95, 0.001, 0.5, 2.0])
    floor = model.geom("floor")
    assert floor.type[0] == mujoco.mjtGeom.mjGEOM_PLANE
    assert floor.pos.tolist() == [0.0, 0.0, 0.0]
    assert [geom for geom in range(model.ngeom) if model.geom_conaffinity[geom]] == [floor.id]
    assert model.opt.timestep == 0.01


def test_humanoid_senses_the_contact_forces():
    env = RobotEnv(HUMANOID)
    env.reset(seed=0)
    upward = 0.0
    for _ in range(100):  # it drops from a hand's breadth
        observation, *_ = env.step(np.zeros(10))
        upward = 0.0
        for index in range(env.data.ncon):
            force = np.zeros(6)
            mujoco.mj_contactForce(env.model, env.data, index, force)
            upward += env.data.contact[index].frame[2] * force[0]
        if upward > 100.0:
            break
    assert upward > 100.0
    # Force is the second half of each row; the world's own row is left out of the sum
    assert env.data.cfrc_ext[1:, 5].sum() == pytest.approx(upward, rel=1e-9)
    assert observation[33:99] == pytest.approx(np.clip(env.data.cfrc_ext, -1.0, 1.0).ravel(), abs=0.0)
    assert np.abs(observation[33:99]).max() == 1.0
