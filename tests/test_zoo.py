"""The zoo: rl_zoo3's scripts, run in this process with small numbers."""

import os
import pickle
import subprocess
import sys
import tomllib
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_callbacks import ScriptedEnv

import safe_envs
from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO
from sb3_cpo.__main__ import COMMANDS, main

pytest.importorskip("rl_zoo3")
optuna = pytest.importorskip("optuna")

from sb3_cpo.zoo import ConstrainedExperimentManager  # noqa: E402
from sb3_cpo.zoo.enjoy import enjoy  # noqa: E402
from sb3_cpo.zoo.experiment_manager import parse_limit_schedule  # noqa: E402
from sb3_cpo.zoo.hyperparams_opt import ConstrainedTrialEvalCallback, is_feasible, violation_of  # noqa: E402
from sb3_cpo.zoo.train import train  # noqa: E402

ALGORITHMS = {"cpo": CPO, "pdo": PDO, "fpo": FPO, "trpo": TRPO}
TASKS = [f"Safe{robot}{task}-v0" for robot, task in safe_envs._TASKS]
# Achiam et al. 2017, supplement 10.3; Safety-Gymnasium's 25 elsewhere
LIMITS = {
    "SafePointCircle-v0": 5.0,
    "SafeAntCircle-v0": 10.0,
    "SafeHumanoidCircle-v0": 10.0,
    "SafePointGather-v0": 0.1,
    "SafeAntGather-v0": 0.2,
}


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
def _registered():
    gym.register("Priceless-v0", PricelessEnv)
    yield
    gym.registry.pop("Priceless-v0", None)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
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


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("env_id", [*TASKS, "default"])
def test_every_entry_builds_its_model_and_learns(algo, env_id, tmp_path):
    # The default entry, on an environment that has none
    name = "Priceless-v0" if env_id == "default" else env_id
    small = {"n_envs": 2, "n_steps": 120, "batch_size": 60, "n_timesteps": 240}
    if env_id == "default" and algo != "trpo":
        # Who brings an environment without a limit says one
        with pytest.raises(ValueError, match="needs a cost_limit"):
            make_manager(algo, name, tmp_path, small).setup_experiment()
        small["cost_limit"] = 25.0
    manager = make_manager(algo, name, tmp_path, small)
    model, _ = manager.setup_experiment()
    assert type(model) is ALGORITHMS[algo]
    expected = LIMITS.get(env_id, 25.0)
    if algo != "trpo" or env_id != "default":
        np.testing.assert_array_equal(model.current_cost_limit, [expected])
    assert isinstance(model.env.unwrapped if not isinstance(model.env, VecNormalize) else model.env.venv, BatchVecEnv) == (
        env_id != "default"
    )
    assert model.policy.normalize_observations == (model.get_vec_normalize_env() is None)
    before = model.policy.state_dict()["value_net.weight"].clone()
    manager.learn(model)
    assert model.num_timesteps == 240
    assert (model.policy.state_dict()["value_net.weight"] != before).any()
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


@pytest.mark.parametrize("algo", [*ALGORITHMS, "paper"])
def test_every_algorithm_has_an_entry_per_registered_task(algo):
    assert len(TASKS) == 11
    hyperparams = import_module(f"sb3_cpo.zoo.hyperparams.{algo}").hyperparams
    assert set(hyperparams) == {"default", *TASKS}
    # rl_zoo3 writes into what it reads
    hyperparams["SafeAntCircle-v0"]["n_envs"] = 1
    assert hyperparams["SafeAntCircle-v0"]["n_envs"] > 1


def test_cpo_as_in_the_paper_is_run_by_name(tmp_path):
    small = {"n_envs": 2, "n_steps": 130, "batch_size": 65, "n_timesteps": 260}
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path, small, config="sb3_cpo.zoo.hyperparams.paper")
    model, _ = manager.setup_experiment()
    assert (model.n_noise_draws, model.cost_confidence, model.cost_gae_gamma) == (0, 0.0, None)
    assert (model.target_kl, model.cg_damping, model.gamma, model.cost_limit) == (0.01, 1e-5, 0.995, 5.0)


@pytest.mark.parametrize("ending", ["yml", "py"])
def test_a_file_of_ones_own_and_the_command_line_come_before_the_table(tmp_path, ending):
    own = {"SafePointCircle-v0": {"n_timesteps": 260, "policy": "MlpPolicy", "n_envs": 2, "n_steps": 130, "gamma": 0.9}}
    path = tmp_path / f"own.{ending}"
    path.write_text(yaml.dump(own) if ending == "yml" else f"hyperparams = {own}")
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path, {"batch_size": 65, "cost_limit": 7.0}, config=str(path))
    model, saved = manager.setup_experiment()
    assert (model.gamma, model.n_steps, model.batch_size, model.cost_limit) == (0.9, 130, 65, 7.0)
    # Nothing of the table: it has another kind of VecEnv
    assert type(model.env) is DummyVecEnv
    assert "vec_env" not in saved


def test_limit_schedules():
    half = parse_limit_schedule("lin_25_5_0.5")
    assert [half(progress) for progress in (1.0, 0.75, 0.5, 0.0)] == [25.0, 15.0, 5.0, 5.0]
    assert [parse_limit_schedule("lin_25_5")(progress) for progress in (1.0, 0.5, 0.0)] == [25.0, 15.0, 5.0]
    assert [parse_limit_schedule("lin_20")(progress) for progress in (1.0, 0.5, 0.0)] == [20.0, 10.0, 0.0]
    mapping = parse_limit_schedule({"cost_a": "lin_4_2", "cost_b": 3})
    assert (mapping["cost_a"](0.5), mapping["cost_b"]) == (3.0, 3)
    assert parse_limit_schedule([1, "lin_4_2"])[1](0.0) == 2.0
    for wrong in ("lin", "lin_x", "lin_1_2_3_4", "exp_5", "5"):
        with pytest.raises(ValueError, match=f"cost_limit is '{wrong}'"):
            parse_limit_schedule(wrong)


def test_vec_env_of_the_command_line_comes_before_that_of_the_yaml_file(tmp_path):
    small = {"n_envs": 2, "n_steps": 120, "batch_size": 60}
    model, _ = make_manager("cpo", "SafePointCircle-v0", tmp_path, dict(small), vec_env_type="dummy").setup_experiment()
    assert type(model.env) is DummyVecEnv
    with pytest.raises(ValueError, match="vec_env is 'bunch': expected one of dummy, subproc, batch"):
        make_manager("cpo", "SafePointCircle-v0", tmp_path, {**small, "vec_env": "bunch"}).setup_experiment()


def test_cost_shaping_is_made_from_the_yaml_text(tmp_path):
    small = {"n_envs": 2, "n_steps": 120, "batch_size": 60, "cost_shaping": "FailurePredictor(horizon=7)"}
    model, saved = make_manager("cpo", "SafePointCircle-v0", tmp_path, small).setup_experiment()
    assert model.cost_shaping.horizon == 7
    assert saved["cost_shaping"] == "FailurePredictor(horizon=7)"


def test_train_resume_and_enjoy(run):
    """A user's way: train, continue, watch; each finds what the one before has left."""
    run(train, *POINT, "-n", "400", "--eval-freq", "200", "--save-freq", "200", "-tb", "tb", "-P", "--seed", "1", *TINY)
    folder = Path("logs/cpo/SafePointCircle-v0_1")
    files = {path.name for path in folder.rglob("*")}
    expected = {"best_model.zip", "SafePointCircle-v0.zip", "rl_model_200_steps.zip", "evaluations.npz", "monitor.csv"}
    assert expected | {"config.yml", "args.yml", "command.txt"} <= files
    # One for all copies
    assert [path.name for path in folder.glob("*monitor.csv")] == ["monitor.csv"]
    results = load_results(str(folder))
    assert (results["cost"] >= 0).all()
    assert results["cost"].sum() > 0
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["costs"].shape == (2, 5, 1)
        np.testing.assert_array_equal(evaluations["cost_limits"], [[5.0], [5.0]])
    assert list(Path("tb/SafePointCircle-v0/CPO_1").glob("events*"))

    out = run(train, *POINT, "-n", "200", "-i", str(folder / "SafePointCircle-v0.zip"), *TINY, "cost_limit:'lin_9_7'")
    assert "Loading pretrained agent" in out
    first = CPO.load(folder / "SafePointCircle-v0.zip")
    second = CPO.load("logs/cpo/SafePointCircle-v0_2/SafePointCircle-v0.zip")
    assert second._n_updates == first._n_updates + 1 == 3
    np.testing.assert_array_equal(second.current_cost_limit, [7.0])

    out = run(enjoy, "--env", "SafePointCircle-v0", "--no-render", "-n", "200", "--exp-id", "2", "--stochastic", "--seed", "4")
    costs = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("Episode Cost")]
    rewards = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("Episode Reward")]
    assert len(costs) == len(rewards) > 2
    assert f"Mean cost: {np.mean(costs):.2f} +/- {np.std(costs):.2f}" in out
    # The end of the schedule
    verdict = "within" if np.mean(costs) <= 7 else "OVER"
    assert f"Cost limit: 7.00, the mean is {verdict}" in out


@pytest.mark.parametrize("vec_env", ["dummy", "batch"])
def test_the_monitor_file_has_every_episode_of_training_with_its_cost(tmp_path, vec_env, monkeypatch):
    """What SB3's monitors, a file per copy, say of the same training."""
    small = {"n_envs": 3, "n_steps": 130, "batch_size": 65, "n_timesteps": 780}
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path, dict(small), vec_env_type=vec_env, seed=0)
    manager.learn(manager.setup_experiment()[0])
    ours = load_results(manager.save_path)
    monkeypatch.setattr(ConstrainedExperimentManager, "_has_one_monitor_file", False)
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path / "sb3", dict(small), vec_env_type=vec_env, seed=0)
    manager.learn(manager.setup_experiment()[0])
    assert len(list(Path(manager.save_path).glob("*monitor.csv"))) == 3
    theirs = load_results(manager.save_path)
    columns = ["r", "l", "cost"]
    assert len(ours) == 12
    np.testing.assert_array_equal(ours[columns].sort_values(columns), theirs[columns].sort_values(columns))


def test_enjoy_prints_the_cost_and_says_when_it_is_over_the_limit(run):
    args = ["--algo", "cpo", "--env", "Priceless-v0"]
    run(train, *args, "-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:11.9")
    out = run(enjoy, *args, "--no-render", "-n", "8")
    assert out.count("Episode Cost: 12.00") == 2
    assert "Mean cost: 12.00 +/- 0.00\nCost limit: 11.90, the mean is OVER" in out


def test_sb3s_own_algorithms_still_train_in_the_zoo(run):
    out = run(
        train,
        "--algo",
        "ppo",
        "--env",
        "Priceless-v0",
        "-n",
        "64",
        "--eval-freq",
        "64",
        "-params",
        "n_steps:32",
        "batch_size:32",
        "--conf-file",
        str(write_ppo_yaml()),
    )
    assert "Episode cost: 12.00 +/- 0.00 (limit none)" in out
    assert "New best feasible model!" in out


def write_ppo_yaml():
    path = Path("ppo.yml")
    path.write_text("default:\n  n_timesteps: 64\n  policy: MlpPolicy\n")
    return path


def test_help_is_a_page(run, capsys):
    for script in (train, enjoy):
        with pytest.raises(SystemExit) as exit_info:
            run(script, "--help")
        assert exit_info.value.code == 0
        text = capsys.readouterr().out
        assert "examples:" in text
        assert "{a2c" in text
        assert "cpo" in text
        assert f"python -m sb3_cpo.zoo.{script.__name__}" in text


# ---------------------------------------------------------------- statistics of VecNormalize

NORMALIZED = [*POINT, "--seed", "1", *TINY, "normalize:True"]


def observation_mean(path):
    with open(path, "rb") as file:
        return pickle.load(file).obs_rms.mean


@pytest.fixture
def killed_run(run):
    """What a run leaves that was killed after its second checkpoint, with the best model of its first half."""
    run(train, *NORMALIZED, "-n", "400", "--eval-freq", "200", "--save-freq", "200")
    folder = Path("logs/cpo/SafePointCircle-v0_1")
    (folder / "SafePointCircle-v0.zip").unlink()
    return folder


@pytest.mark.parametrize("n_steps", [200, 400])
def test_a_killed_run_continues_with_the_statistics_of_its_checkpoint(killed_run, n_steps):
    statistics = observation_mean(killed_run / f"rl_model_vecnormalize_{n_steps}_steps.pkl")
    assert (statistics != observation_mean(killed_run / f"rl_model_vecnormalize_{600 - n_steps}_steps.pkl")).any()
    checkpoint = str(killed_run / f"rl_model_{n_steps}_steps.zip")
    small = {"n_steps": 100, "n_envs": 2, "batch_size": 50, "n_timesteps": 200}
    # As the command line does, and where it was forgotten that the run normalises
    for normalize in (True, False):
        manager = make_manager(
            "cpo", "SafePointCircle-v0", "logs", {**small, "normalize": normalize}, trained_agent=checkpoint
        )
        model, _ = manager.setup_experiment()
        # The reset, which counts one observation of each copy, has not come yet
        np.testing.assert_array_equal(model.get_vec_normalize_env().obs_rms.mean, statistics)
        assert model.get_vec_normalize_env().training
        eval_env = manager.create_envs(1, eval_env=True)
        np.testing.assert_array_equal(eval_env.obs_rms.mean, statistics)
        assert not eval_env.training
        manager.save_trained_model(model)
        np.testing.assert_array_equal(observation_mean(f"{manager.params_path}/vecnormalize.pkl"), statistics)


def test_the_best_model_is_continued_and_watched_with_its_own_statistics(killed_run, run):
    best = killed_run / "best_model_vecnormalize.pkl"
    # As where the first evaluation was the best
    best.write_bytes((killed_run / "rl_model_vecnormalize_200_steps.pkl").read_bytes())
    manager = make_manager(
        "cpo", "SafePointCircle-v0", "logs", {"n_timesteps": 200}, trained_agent=str(killed_run / "best_model.zip")
    )
    model, _ = manager.setup_experiment()
    np.testing.assert_array_equal(model.get_vec_normalize_env().obs_rms.mean, observation_mean(best))
    enjoyed = ["--env", "SafePointCircle-v0", "--exp-id", "1", "--no-render", "-n", "1"]
    out = run(enjoy, *enjoyed, "--load-best")
    assert f"Loading running average: {best}" in out
    assert "The stochastic policy, by which the best model was chosen" in out
    out = run(enjoy, *enjoyed, "--load-checkpoint", "400")
    assert f"Loading running average: {killed_run}/rl_model_vecnormalize_400_steps.pkl" in out
    assert "The stochastic policy" not in out
    assert "The stochastic policy" not in run(enjoy, *enjoyed, "--load-best", "--deterministic")


def test_a_model_without_its_statistics_is_not_continued_with_fresh_ones(killed_run, run):
    for path in killed_run.rglob("*vecnormalize*.pkl"):
        path.unlink()
    checkpoint = str(killed_run / "rl_model_400_steps.zip")
    with pytest.raises(ValueError, match="no statistics of VecNormalize lie beside"):
        run(train, *NORMALIZED, "-n", "200", "-i", checkpoint)
    run(train, *NORMALIZED[:-1], "normalize:False", "-n", "200", "-i", checkpoint)


# ---------------------------------------------------------------- costs on the command line

COSTS = """
import gymnasium as gym

def of_action(action):
    return 2.0

class Costly(gym.Wrapper):
    def step(self, action):
        *rest, info = self.env.step(action)
        return *rest, {**info, "cost": 5.0}
"""


@pytest.mark.parametrize(("name", "episode_cost"), [("of_action", 8.0), ("Costly", 20.0)])
def test_an_environment_without_costs_gets_one_on_the_command_line(run, name, episode_cost, monkeypatch):
    module = f"my_costs_{name}".lower()
    Path(f"{module}.py").write_text(COSTS)
    # Where a console command does not look by itself
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    gym.register("Free-v0", PricelessEnv, kwargs={"has_cost": False})
    try:
        args = ["--algo", "cpo", "--env", "Free-v0"]
        with pytest.raises(SystemExit, match="--cost my_module:my_function"):
            run(train, *args, "-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:1")
        out = run(train, *args, "--cost", f"{module}:{name}", "-n", "200", "--eval-freq", "100", *TINY, "cost_limit:9")
        assert f"Episode cost: {episode_cost:.2f} +/- 0.00" in out
        assert (load_results("logs/cpo/Free-v0_2")["cost"] == episode_cost).all()
        # In another process, the run says which cost it had
        gym.registry["Free-v0"].additional_wrappers = ()
        out = run(enjoy, *args, "--no-render", "-n", "8")
        assert out.count(f"Episode Cost: {episode_cost:.2f}") == 2
        assert f"Cost limit: 9.00, the mean is {'within' if episode_cost <= 9 else 'OVER'}" in out
    finally:
        gym.registry.pop("Free-v0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("costs", "expected module:function"),
        ("no_such_module:cost", "there is no module 'no_such_module'"),
        ("math:speed", "math has no function 'speed'; it has"),
    ],
)
def test_a_cost_that_is_not_there_is_an_error_of_the_command_line(run, name, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(train, *POINT, "--cost", name)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- hyperparameter optimisation


def evaluate_trial(trial, evaluations, cost_limit=5.0):
    """Report evaluations (reward, cost) of a trial, as a training would; return the value of the trial."""
    env = DummyVecEnv([lambda: ScriptedEnv([(0.0, 0.0)])])
    model = CPO("MlpPolicy", env, cost_limit=cost_limit, n_steps=len(evaluations), batch_size=len(evaluations))
    eval_env = DummyVecEnv([lambda: Monitor(ScriptedEnv(evaluations))])
    callback = ConstrainedTrialEvalCallback(eval_env, trial, n_eval_episodes=1, eval_freq=1)
    model.learn(len(evaluations), callback=callback)
    if callback.is_pruned:
        raise optuna.TrialPruned
    return callback.last_mean_reward


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(), optuna.samplers.TPESampler(n_startup_trials=0)])
def test_trial_over_the_limit_never_beats_a_feasible_one(sampler):
    # Rich and over the limit; within; poorer and within; richest and over
    outcomes = [(1000, 5.5), (2, 5.0), (1, 0.0), (5000, 9.0)]
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: evaluate_trial(trial, [(0, 0), outcomes[trial.number]]), n_trials=4)
    assert study.best_trial.number == 1
    assert [trial.constraints["0"] for trial in study.trials] == [0.5, 0.0, -5.0, 4.0]
    assert [trial.user_attrs["mean_cost_0"] for trial in study.trials] == [5.5, 5.0, 0.0, 9.0]
    assert [trial.user_attrs["is_feasible"] for trial in study.trials] == [False, True, True, False]


def test_pruner_prefers_feasible_trials():
    """A rich trial over the limit is pruned against poor feasible ones, and a poor feasible one is not pruned against it."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    outcomes = [[(1, 1), (1, 1)], [(1000, 6), (1000, 6)], [(2, 1), (2, 1)]]
    study.optimize(lambda trial: evaluate_trial(trial, outcomes[trial.number]), n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    # Far over the limit is worse than a little
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: evaluate_trial(trial, [(9, 6), (9, 50), (-9, 5)]), n_trials=1)
    reported = study.trials[0].intermediate_values
    assert reported[2] < reported[1] < reported[3] == -9


OPTIMIZE = ["-n", "200", "-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
OPTIMIZE += ["--n-startup-trials", "1", "--pruner", "none", "--seed", "1"]


def test_tuner_shares_a_study_and_ends_with_its_report(run):
    """Two processes, one after the other, on one storage: the second goes on where the first stopped."""
    storage = ["--storage", "study/point.log", "--study-name", "point"]
    for n_trials in (2, 3):
        out = run(train, *POINT, *OPTIMIZE, "--max-total-trials", str(n_trials), *storage, *TINY)
    assert "Trials: 3, complete: 3" in out
    assert "cost_gae_lambda" in out
    storage_object = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study/point.log"))
    study = optuna.load_study(study_name="point", storage=storage_object)
    assert [set(trial.constraints) for trial in study.trials] == [{"0"}] * 3
    for trial in study.trials:
        assert trial.user_attrs["cost_limit_0"] == 5.0
        assert trial.constraints["0"] == trial.user_attrs["mean_cost_0"] - 5.0
    reports = sorted(Path("logs/cpo").glob("report_*.csv"))
    assert reports
    assert "user_attrs_mean_cost_0" in reports[-1].read_text().splitlines()[0]
    # A trial's hyperparameters can be used: rl_zoo3 reads them from the study
    manager = make_manager("cpo", "SafePointCircle-v0", "logs", storage="study/point.log", study_name="point")
    loaded = manager.load_trial("study/point.log", "point", 1)
    assert loaded["gamma"] == pytest.approx(study.trials[1].user_attrs["gamma"])
    assert loaded["target_kl"] == study.trials[1].params["target_kl"]


def test_enjoy_looks_into_no_folder_without_a_model(run):
    run(train, *POINT, "-n", "200", "--eval-freq", "-1", *TINY)
    run(train, *POINT, *OPTIMIZE[:-1], "2", "--n-trials", "1", *TINY)
    # A run that was killed at once
    Path("logs/cpo/SafePointCircle-v0_7").mkdir()
    assert Path("logs/cpo/SafePointCircle-v0_2").is_dir()
    out = run(enjoy, "--env", "SafePointCircle-v0", "--no-render", "-n", "1")
    assert "Loading latest experiment, id=1" in out
    with pytest.raises(SystemExit, match="No model found for cpo on SafeAntCircle-v0"):
        run(enjoy, "--env", "SafeAntCircle-v0", "--no-render")
    # New runs are numbered after all folders
    assert make_manager("cpo", "SafePointCircle-v0", "logs").save_path.endswith("SafePointCircle-v0_8")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_tuner_reports_where_no_trial_is_feasible(run, algo):
    out = run(train, "--algo", algo, "--env", "Priceless-v0", *OPTIMIZE, *TINY, "cost_limit:10.0")
    assert "complete: 2, of which feasible: 0" in out
    assert "No trial is feasible. The one with the lowest violation:" in out
    assert "mean_cost_0: 12.0" in out
    assert list(Path("logs", algo).glob("report_*.csv"))


def test_missing_cost_ends_the_tuner_and_is_not_a_pruned_trial(run):
    args = ["--algo", "cpo", "--env", "Priceless-v0", "--env-kwargs", "has_cost:False"]
    with pytest.raises(SystemExit, match="info has no 'cost'"):
        run(train, *args, *OPTIMIZE, *TINY, "cost_limit:1")


def test_a_trial_without_an_evaluation_is_not_feasible():
    study = optuna.create_study()
    trial = study.ask()
    callback = ConstrainedTrialEvalCallback(gym.make("SafePointCircle-v0"), trial, n_eval_episodes=1, eval_freq=10_000)
    CPO("MlpPolicy", gym.make("SafePointCircle-v0"), n_steps=65, batch_size=65, device="cpu").learn(65, callback=callback)
    study.tell(trial, 0.0)
    frozen = study.trials[0]
    assert not is_feasible(frozen)
    assert violation_of(frozen) == np.inf


# ---------------------------------------------------------------- rl_zoo3's plots


def write_evaluations(folder, costs, results):
    folder.mkdir(parents=True)
    np.savez(
        folder / "evaluations.npz",
        timesteps=[1000, 2000],
        results=results,
        ep_lengths=np.ones_like(results),
        costs=np.asarray(costs)[:, :, None],
        cost_limits=[[5.0], [5.0]],
    )


@pytest.mark.parametrize("shifts", [[0.0], [0.0, 2.0]])
def test_rl_zoo3s_plots_aggregate_costs(tmp_path, shifts):
    """In a process of their own: rl_zoo3's plots change matplotlib for good."""
    for run_id, shift in enumerate(shifts, start=1):
        costs = np.array([[7.0, 9.0], [3.0, 5.0]]) + shift
        write_evaluations(tmp_path / f"logs/cpo/SafePointCircle-v0_{run_id}", costs, 10 * costs)
    commands = [
        "all_plots -a cpo trpo -e SafePointCircle-v0 -f logs --no-million --key costs -o costs --no-display",
        "plot_from_file -i costs -o costs.svg",
    ]
    code = f"import sys; from sb3_cpo.zoo.plots import main\nfor c in {commands}: sys.argv = ['plots', *c.split()]; main()"
    env = {**os.environ, "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=env, capture_output=True)
    with open(tmp_path / "costs.pkl", "rb") as file:
        post_processed = pickle.load(file)["SafePointCircle-v0"]["CPO-logs"]
    np.testing.assert_array_equal(post_processed["mean"], np.array([8.0, 4.0]) + np.mean(shifts))
    np.testing.assert_array_equal(np.sort(post_processed["last_evals"], axis=None), 4.0 + np.array(shifts))
    assert (tmp_path / "costs.svg").read_text().startswith("<?xml")


def test_importing_sb3_cpo_imports_no_zoo():
    def heavy_modules_after(*modules):
        code = f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        return {"rl_zoo3", "optuna", "matplotlib", "pandas", "mujoco", "moviepy"} & set(out.split())

    # SB3 itself imports matplotlib and pandas where they are installed
    ours = heavy_modules_after("sb3_cpo", "sb3_cpo.evaluation", "sb3_cpo.callbacks")
    assert ours == heavy_modules_after("stable_baselines3")


# ---------------------------------------------------------------- sb3-cpo


def sb3_cpo(*args, missing=(), folder=None):
    """Run the command in a process of its own, as where some packages are not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from sb3_cpo.__main__ import main; main()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "MPLBACKEND": "agg"}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=folder, env=env)


def test_the_command_is_installed_under_its_name():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["sb3-cpo"].split(":")
    assert callable(getattr(import_module(module), function))
    # What a missing package's message asks to install
    extras = {extra for *_, names in COMMANDS.values() for extra in names.split(",")}
    assert extras <= set(project["optional-dependencies"])


def test_the_command_says_what_there_is(tmp_path):
    page = sb3_cpo("--help", missing=("rl_zoo3",))
    assert page.returncode == 0
    assert all(f"sb3-cpo {name}" in page.stdout for name in COMMANDS)
    wrong = sb3_cpo("fly")
    assert (wrong.returncode, wrong.stderr.strip()) == (
        1,
        "sb3-cpo: there is no command 'fly'; there are train, enjoy, tune, plot, video",
    )
    for name, missing in [("train", "rl_zoo3"), ("tune", "optuna"), ("plot", "matplotlib"), ("video", "rl_zoo3")]:
        result = sb3_cpo(name, "--help", missing=(missing,))
        assert result.returncode == 1
        assert result.stderr.startswith(f"sb3-cpo {name} needs packages that are not installed")
        assert missing in result.stderr
        assert f"pip install -e '.[{COMMANDS[name][2]}]'" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_page_of_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sb3-cpo", name, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: sb3-cpo {name}" in out
    assert "examples:" in out
    assert f"sb3-cpo {name} --algo" in out or name == "plot"


def test_train_plot_and_tune_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        ["train", *POINT, "-n", "200", "--eval-freq", "100", *TINY],
        ["plot", "logs/cpo/SafePointCircle-v0_1", "-o", "circle.png"],
        ["tune", *POINT, *(option for option in OPTIMIZE if option != "-optimize"), "--n-trials", "1", *TINY],
    ]
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["sb3-cpo", *command])
        main()
    out = capsys.readouterr().out
    assert "Image: circle.png" in out
    assert "Trials: 1, complete: 1" in out
