"""What gymnasium and SB3 ask of every environment."""

import json
import pickle
import subprocess
import sys
import textwrap
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import safe_envs

ALL_IDS = sorted(env_id for env_id in gym.registry if env_id.startswith("Safe"))
LIMITS = {
    "SafePointCircle-v0": 65, "SafeAntCircle-v0": 500, "SafeHumanoidCircle-v0": 1000,
    "SafePointGather-v0": 15, "SafeAntGather-v0": 500,
}  # fmt: skip
SIZES = {
    "SafePointCircle-v0": (9, 2), "SafeAntCircle-v0": (32, 8), "SafeHumanoidCircle-v0": (102, 10),
    "SafePointGather-v0": (29, 2), "SafeAntGather-v0": (52, 8),
}  # fmt: skip
# gymnasium warns of every infinite Box (once for each side) and of every wrapper; SB3 of the humanoid's box of +-0.4
ALLOWED_WARNINGS = [
    "A Box observation space minimum value is -infinity",
    "A Box observation space maximum value is infinity",
    "is different from the unwrapped version",
]
HUMANOID_WARNINGS = [
    "For Box action spaces, we recommend using a symmetric and normalized space",
    "We recommend you to use a symmetric and normalized Box action space",
]


@pytest.mark.parametrize("env_id", ALL_IDS)
@pytest.mark.parametrize("check", [check_gymnasium, check_sb3], ids=["gymnasium", "sb3"])
def test_checkers_are_content(env_id, check):
    allowed = ALLOWED_WARNINGS + (HUMANOID_WARNINGS if env_id == "SafeHumanoidVelocity-v0" else [])
    # The task with its robot, without gym.make's wrappers
    env = gym.make(env_id, disable_env_checker=True, max_episode_steps=-1).env
    assert type(env).__name__.endswith("Task")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if check is check_gymnasium:
            check(env, skip_render_check=True)
        else:
            check(env, warn=True)
    unexpected = [str(one.message) for one in caught if not any(text in str(one.message) for text in allowed)]
    assert unexpected == []


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_ids_have_the_sizes_and_limits_of_the_specification(env_id):
    env = gym.make(env_id)
    assert env.spec.max_episode_steps == LIMITS.get(env_id, 1000)
    if env_id in SIZES:
        n_observations, n_actions = SIZES[env_id]
        assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (n_observations,), np.float64)
        assert env.action_space == gym.spaces.Box(-1.0, 1.0, (n_actions,), np.float32)
    env.reset(seed=0)
    assert env.unwrapped.model.nq == len(env.unwrapped.data.qpos)


COST_LIMITS = {
    "SafePointCircle-v0": 5.0, "SafeAntCircle-v0": 10.0, "SafeHumanoidCircle-v0": 10.0,
    "SafePointGather-v0": 0.1, "SafeAntGather-v0": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_task_carries_the_cost_limit_of_its_paper(env_id):
    expected = COST_LIMITS.get(env_id, 25.0)
    assert gym.spec(env_id).kwargs["cost_limit"] == expected
    assert gym.make(env_id).get_wrapper_attr("cost_limit") == expected
    for vec_env_cls in (DummyVecEnv, safe_envs.BatchVecEnv):
        assert make_vec_env(env_id, n_envs=2, vec_env_cls=vec_env_cls).get_attr("cost_limit") == [expected] * 2


@pytest.mark.parametrize("env_id", ["SafePointCircle-v0", "SafePointGather-v0", "SafeAntVelocity-v0"])
def test_another_cost_limit_goes_everywhere_and_changes_nothing_else(env_id):
    env = gym.make(env_id, cost_limit=3)
    assert env.spec.kwargs["cost_limit"] == 3
    assert gym.spec(env_id).kwargs["cost_limit"] != 3
    for twin in (
        env,
        gym.make(env.spec),
        gym.make(EnvSpec.from_json(env.spec.to_json())),
        pickle.loads(pickle.dumps(env)),
    ):
        assert twin.get_wrapper_attr("cost_limit") == 3
        assert is_equal(run(twin, 1, 30), run(gym.make(env_id), 1, 30))
    venv = make_vec_env(env_id, n_envs=2, env_kwargs={"cost_limit": 3}, vec_env_cls=safe_envs.BatchVecEnv)
    venv.set_attr("cost_limit", 4.0)
    assert venv.get_attr("cost_limit") == [4.0, 4.0]


def test_processes_tell_the_cost_limit():
    venv = make_vec_env("safe_envs:SafeAntCircle-v0", n_envs=1, vec_env_cls=SubprocVecEnv)
    assert venv.get_attr("cost_limit") == [10.0]
    venv.close()


def test_task_composed_by_hand_has_the_limit_that_it_was_given():
    assert safe_envs.CircleTask(safe_envs.RobotEnv(safe_envs.ANT)).cost_limit is None
    assert safe_envs.CircleTask(safe_envs.RobotEnv(safe_envs.ANT), cost_limit=2.5).cost_limit == 2.5


def run(env, seed, n_steps=60):
    """A trajectory with the environment's own random actions."""
    env.action_space.seed(seed)
    trajectory = [env.reset(seed=seed)[0]]
    for _ in range(n_steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        trajectory += [observation, np.array([reward, terminated, truncated, info["cost"]])]
        if terminated or truncated:
            trajectory.append(env.reset()[0])
    return trajectory


def is_equal(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_same_seed_gives_the_same_trajectory(env_id):
    first, second = gym.make(env_id), gym.make(env_id)
    trajectory = run(first, 1)
    assert is_equal(trajectory, run(second, 1))
    assert is_equal(trajectory, run(first, 1))
    assert not np.array_equal(trajectory[0], first.reset(seed=2)[0])


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_pickle_and_spec_and_json_round_trips(env_id):
    env = gym.make(env_id)
    trajectory = run(env, 3, 30)
    assert is_equal(trajectory, run(pickle.loads(pickle.dumps(env)), 3, 30))
    assert is_equal(trajectory, run(gym.make(env.spec), 3, 30))
    spec = EnvSpec.from_json(env.spec.to_json())
    json.loads(env.spec.to_json())
    assert is_equal(trajectory, run(gym.make(spec), 3, 30))
    twin = gym.make(env.spec)
    assert str(twin) == str(env)
    assert twin.spec == env.spec


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("SafePointCircle-v0", {"radius": 3.0, "x_limit": 0.25}),
        ("SafePointGather-v0", {"n_bombs": 20, "bomb_penalty": 1.0}),
        ("SafeAntVelocity-v0", {"threshold": 0.1}),
    ],
)
def test_round_trips_keep_the_arguments(env_id, kwargs):
    env = gym.make(env_id, **kwargs)
    trajectory = run(env, 3, 30)
    assert not is_equal(trajectory, run(gym.make(env_id), 3, 30))
    spec = EnvSpec.from_json(env.spec.to_json())
    assert is_equal(trajectory, run(gym.make(spec), 3, 30))
    assert is_equal(trajectory, run(pickle.loads(pickle.dumps(env)), 3, 30))


def test_pickled_task_goes_on_in_the_middle_of_an_episode():
    for env_id in ("SafePointGather-v0", "SafeAntGather-v0", "SafePointCircle-v0"):
        env = gym.make(env_id)
        env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(5):
            env.step(env.action_space.sample())
        twin = pickle.loads(pickle.dumps(env))
        for _ in range(5):
            action = env.action_space.sample()
            first, second = env.step(action), twin.step(action)
            assert np.array_equal(first[0], second[0])
            assert first[1:] == second[1:]


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_info_always_holds_the_cost_of_the_step(env_id):
    env = gym.make(env_id)
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(20):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert info["cost"] in (0.0, 1.0)
        # Importing rl_zoo3, as another test does, makes gymnasium's TimeLimit write this one
        info.pop("TimeLimit.truncated", None)
        assert all(type(value) is float for value in info.values())
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_make_vec_steps_every_id(env_id):
    venv = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    single = gym.make(env_id)
    observations, _ = venv.reset(seed=4)
    assert np.array_equal(observations[0], single.reset(seed=4)[0])
    venv.action_space.seed(0)
    for _ in range(5):
        actions = venv.action_space.sample()
        observations, rewards, _, _, infos = venv.step(actions)
        observation, reward, _, _, info = single.step(actions[0])
        assert np.array_equal(observations[0], observation)
        assert rewards[0] == reward
        assert infos["cost"][0] == info["cost"]
    venv.close()


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_every_task_can_be_seen(env_id, can_draw):
    env = gym.make(env_id, render_mode="rgb_array", width=160, height=120)
    env.reset(seed=0)
    image = env.render()
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5.0
    env.close()
    env.close()


def run_script(code):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_registers_and_is_light():
    output = run_script("""
        import sys
        import gymnasium, safe_envs
        heavy = [name for name in ("mujoco", "torch", "stable_baselines3") if name in sys.modules]
        assert not heavy, heavy
        assert "CircleTask" in dir(safe_envs)
        print(len([name for name in gymnasium.registry if name.startswith("Safe")]))
        from safe_envs import CircleTask
        assert "stable_baselines3" not in sys.modules
    """)
    assert output.strip() == "11"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        safe_envs.Nonsense  # noqa: B018
    for name in safe_envs.__all__:
        assert getattr(safe_envs, name) is not None


def test_id_with_module_needs_no_import():
    assert (
        run_script("""
        import gymnasium
        env = gymnasium.make("safe_envs:SafeAntCircle-v0")
        print(env.reset(seed=0)[0].shape)
    """).strip()
        == "(32,)"
    )


def test_subproc_vec_env_from_a_script(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import numpy as np
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import SubprocVecEnv

        if __name__ == "__main__":
            env_id, kwargs = "safe_envs:SafeAntGather-v0", dict(n_envs=2, seed=0)
            parallel = make_vec_env(env_id, vec_env_cls=SubprocVecEnv, **kwargs)
            serial = make_vec_env(env_id, **kwargs)
            assert np.array_equal(parallel.reset(), serial.reset())
            parallel.action_space.seed(0)
            for _ in range(70):
                actions = np.array([parallel.action_space.sample() for _ in range(2)])
                left, right = parallel.step(actions), serial.step(actions)
                assert np.array_equal(left[0], right[0])
                assert np.array_equal(left[1].astype(np.float32), right[1])  # SB3 rounds in DummyVecEnv only
                assert np.array_equal(left[2], right[2])
                assert [info["cost"] for info in left[3]] == [info["cost"] for info in right[3]]
            parallel.close()
            print("done")
        """)
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "done"
