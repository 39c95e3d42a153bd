"""What the tests of the zoo share: rl_zoo3's scripts run in this process, an environment, short command lines."""

import sys
from argparse import Namespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_cpo import CPO, FPO, PDO, TRPO

pytest.importorskip("rl_zoo3")
pytest.importorskip("optuna")

from sb3_cpo.zoo import ConstrainedExperimentManager

ALGORITHMS = {"cpo": CPO, "pdo": PDO, "fpo": FPO, "trpo": TRPO}


class PricelessEnv(gym.Env):
    """Four steps per episode; the reward is 1, the cost is 3 per step and no policy changes it."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, has_cost=True, render_mode=None):
        self.has_cost, self.render_mode = has_cost, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        info = {"cost": 3.0} if self.has_cost else {}
        return np.zeros(1, dtype=np.float32), 1.0, self.t == 4, False, info


@pytest.fixture(autouse=True)
def registered():
    gym.register("Priceless-v0", PricelessEnv)
    yield
    gym.registry.pop("Priceless-v0", None)


@pytest.fixture(name="run")
def run_in_folder(monkeypatch, tmp_path, capsys):
    """Run a script with a command line, in an empty folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_script(script, *args):
        monkeypatch.setattr(sys, "argv", [script.__name__, *args])
        script()
        return capsys.readouterr().out

    return run_script


TINY = ["-params", "n_steps:100", "n_envs:2", "batch_size:50", "n_critic_updates:1"]
POINT = ["--algo", "cpo", "--env", "SafePointCircle-v0"]


def make_manager(algo, env_id, tmp_path, hyperparams=None, **kwargs):
    args = Namespace(algo=algo, env=env_id)
    return ConstrainedExperimentManager(
        args,
        algo,
        env_id,
        str(tmp_path),
        eval_freq=-1,
        hyperparams=hyperparams,
        verbose=0,
        device="cpu",
        log_interval=-1,
        **kwargs,
    )


OPTIMIZE = ["-n", "200", "-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
OPTIMIZE += ["--n-startup-trials", "1", "--pruner", "none", "--seed", "1"]
