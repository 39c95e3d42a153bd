"""The tuner: costs of a trial are constraints of Optuna."""

import tomllib
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_callbacks import ScriptedEnv
from zoo_scripts import ALGORITHMS, OPTIMIZE, POINT, TINY, make_manager, registered, run_in_folder  # noqa: F401

from sb3_cpo import CPO
from sb3_cpo.zoo import ConstrainedExperimentManager
from sb3_cpo.zoo.enjoy import enjoy
from sb3_cpo.zoo.hyperparams_opt import ConstrainedTrialEvalCallback, is_feasible, violation_of
from sb3_cpo.zoo.train import train

optuna = pytest.importorskip("optuna")


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


def test_a_trial_that_is_over_its_limit_by_rounding_alone_is_feasible():
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: evaluate_trial(trial, [(0, 0), (1, [3 + 1e-15, 3.1][trial.number])], 3.0), n_trials=2)
    assert [is_feasible(trial) for trial in study.trials] == [True, False]
    assert study.trials[0].constraints["0"] == 0
    assert study.best_trial.number == 0


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
    # A trial's hyperparameters can be used, those of the first too, which rl_zoo3 overlooks
    for number in (0, 1):
        run(train, *POINT, "-n", "200", "--eval-freq", "-1", *storage, "--trial-id", str(number), *TINY)
        folder = sorted(Path("logs/cpo").glob("SafePointCircle-v0_*"), key=lambda path: int(path.name.split("_")[-1]))[-1]
        model = CPO.load(folder / "SafePointCircle-v0.zip")
        assert model.gamma == pytest.approx(study.trials[number].user_attrs["gamma"])
        assert model.target_kl == study.trials[number].params["target_kl"]
        assert model.n_critic_updates == 1  # the command line comes first
    for arguments, message in [
        ([], "--trial-id needs the --storage and the --study-name"),
        (["--storage", "other.log", "--study-name", "point"], "--storage is 'other.log': there is no such file"),
        ([*storage[:-1], "pont"], "--study-name is 'pont': the studies in study/point.log are point"),
        ([*storage, "--trial-id", "3"], "--trial-id is 3: point has the trials 0 to 2"),
    ]:
        with pytest.raises(SystemExit, match=message):
            run(train, *POINT, "-n", "200", "--trial-id", "0", *arguments)


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


def test_plots_of_a_study_are_written_with_the_packages_of_the_extra(tmp_path, capsys):
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert "plotly" in project["optional-dependencies"]["zoo"]
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_categorical("y", [1, 2]), n_trials=4)
    ConstrainedExperimentManager._plot_study(study, tmp_path / "report")
    if find_spec("plotly") is None:
        assert "No plots of the study" in capsys.readouterr().out
        pytest.skip("plotly is not installed")
    assert "plotly" in (tmp_path / "report_history.html").read_text()
    assert "plotly" in (tmp_path / "report_importances.html").read_text()
