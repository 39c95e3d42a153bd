"""Safety-Gymnasium's tasks beside a current gymnasium and MuJoCo, compared with recordings of the original stack."""

import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

if importlib.util.find_spec("safety_gymnasium") is None or importlib.util.find_spec("xmltodict") is None:
    pytest.skip("Safety-Gymnasium is not installed: see docs/guide/tried-environments.md", allow_module_level=True)

import safe_envs.safety_gymnasium  # noqa: F401  (registers the ids)
from sb3_cpo import CPO, make_vec_env

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("record_safety_gymnasium", ROOT / "scripts" / "record_safety_gymnasium.py")
recording = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recording)
RECORDED = np.load(ROOT / "tests" / "data" / "safety_gymnasium.npz")
PAIRS = [f"{robot}{task}" for robot in recording.ROBOTS for task in recording.TASKS]


@pytest.fixture(scope="module")
def episodes():
    played = {}

    def play(pair):
        if pair not in played:
            env = gym.make(f"Safety{pair}-v0", disable_env_checker=True)
            played[pair] = recording.play(env, env.unwrapped.builder.task)
            env.close()
        return played[pair]

    return play


# Where the car begins in Run0, MuJoCo's two versions see other contacts: its sensors differ from the reset on
COMPARED = [pair for pair in PAIRS if pair != "CarRun0"]


@pytest.mark.parametrize("pair", COMPARED)
def test_layout_and_first_observation_are_those_of_the_original(pair, episodes):
    """All to rounding; an accelerometer of the racecar to 1e-3."""
    ours, theirs = episodes(pair)["observations"][0], RECORDED[f"{pair}/observations"][0]
    np.testing.assert_allclose(ours, theirs, atol=1e-3 if pair.startswith("Racecar") else 1e-12)


@pytest.mark.parametrize("pair", COMPARED)
def test_first_steps_are_those_of_the_original(pair, episodes):
    """Two versions of MuJoCo lie between; what their contacts differ by grows with the steps, for the ant most."""
    ours = episodes(pair)
    np.testing.assert_allclose(ours["rewards"][:5], RECORDED[f"{pair}/rewards"][:5], atol=1e-2 if "Ant" in pair else 2e-3)
    np.testing.assert_array_equal(ours["costs"][:5], RECORDED[f"{pair}/costs"][:5])


def test_costs_are_named_and_cpo_trains_on_them():
    env = make_vec_env("SafetyPointGoal1-v0", n_envs=2, seed=0)
    assert gym.spec("SafetyPointGoal1-v0").kwargs["cost_limit"] == 25.0
    model = CPO("MlpPolicy", env, {"cost_hazards": 25.0}, n_steps=1000, batch_size=500, n_critic_updates=1, device="cpu")
    model.learn(2000)
    assert model.cost_estimate.n_episodes == 2
    assert np.isfinite(model.ep_cost_mean).all()


def test_pictures_are_drawn():
    env = gym.make("SafetyPointGoal1-v0", render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 10
    env.close()
