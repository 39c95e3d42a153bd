"""rl_zoo3's ``ExperimentManager`` for constrained algorithms: limits and schedules, ``vec_env`` and the tuner."""

import contextlib
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from rl_zoo3 import ALGOS
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from safe_envs import BatchVecEnv
from sb3_cpo.checkpoints import TrainingCheckpoint
from sb3_cpo.cost_shaping import FailurePredictor
from sb3_cpo.zoo import processes
from sb3_cpo.zoo.costs import add_cost
from sb3_cpo.zoo.episodes import EpisodeWriter
from sb3_cpo.zoo.hyperparams_opt import describe_trial, is_feasible, violation_of
from sb3_cpo.zoo.runs import checkpoint_folder, load_statistics

HYPERPARAMS = {algo: f"sb3_cpo.zoo.hyperparams.{algo}" for algo in ("cpo", "pdo", "fpo", "trpo")}
# Between the checkpoints of a run
CHECKPOINT_SECONDS = 60.0
VEC_ENVS: dict[str, type[VecEnv]] = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv, "batch": BatchVecEnv}


def parse_limit_schedule(limit: Any) -> Any:
    """
    A ``cost_limit`` of a YAML file or of ``-params``, with its schedules made.

    ``lin_25_5`` falls from 25 to 5 over the training, ``lin_25_5_0.5`` over its first half, ``lin_25`` from 25 to 0 as
    rl_zoo3's own schedules do. Inside sequences and mappings likewise; other values stay as they are.
    """
    if isinstance(limit, str):
        name, *numbers = limit.split("_")
        try:
            start, end, end_fraction = (*map(float, numbers), *(0.0, 1.0)[len(numbers) - 1 :])
        except ValueError:
            name = ""
        if name != "lin":
            raise ValueError(
                f"cost_limit is {limit!r}: expected a number, or 'lin_start_end' or 'lin_start_end_fraction' for a schedule"
            )
        return LinearSchedule(start, end, end_fraction)
    if isinstance(limit, Mapping):
        return {key: parse_limit_schedule(value) for key, value in limit.items()}
    if isinstance(limit, list | tuple):
        return [parse_limit_schedule(value) for value in limit]
    return limit


def read_cost_shaping(text: str) -> Any:
    """
    :param text: Python, as in a YAML file: ``FailurePredictor(horizon=20)``
    :raises ValueError: it is not
    """
    try:
        return eval(text, {"FailurePredictor": FailurePredictor})
    except Exception as error:
        raise ValueError(f"cost_shaping is {text!r}: expected FailurePredictor(horizon=20) for instance ({error})") from error


class ConstrainedExperimentManager(ExperimentManager):
    """
    Beside rl_zoo3's: YAML files of our algorithms, ``cost_limit`` with schedules, ``cost_shaping``, ``vec_env: batch``, and a
    hyperparameter optimisation that treats cost as a constraint.
    """

    def __init__(self, *args: Any, vec_env_type: str | None = None, config: str | None = None, **kwargs: Any):
        algo = args[1] if len(args) > 1 else kwargs["algo"]
        if config is None:
            config = HYPERPARAMS.get(algo)
        super().__init__(*args, vec_env_type="dummy", config=config, **kwargs)  # type: ignore[misc]
        if algo in HYPERPARAMS:
            # The limit is on the policy that plays in training; its mean action may well stand still, at cost 0
            self.deterministic_eval = False
        if getattr(self.args, "cost", None) is not None:
            add_cost(self.env_name.gym_id, self.args.cost)
        self.resumed_run: str | None = getattr(self.args, "resume", None)
        if self.resumed_run is not None:
            if algo not in HYPERPARAMS:
                raise ValueError(f"--resume is for {', '.join(HYPERPARAMS)}, not for {algo}: continue that with -i")
            self.save_path, self.params_path = self.resumed_run, f"{self.resumed_run}/{self.env_name}"
            self.continue_training = True
        # What the command line says comes before what the YAML file says
        self.vec_env_type = vec_env_type
        if vec_env_type is not None:
            self.vec_env_class = VEC_ENVS[vec_env_type]

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """rl_zoo3's. A mistake that is found here only leaves no folder of a run that has never begun."""
        try:
            return super().setup_experiment()
        except BaseException:
            for folder in (self.params_path, self.save_path):
                # Folders with something in them stay
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        if "cost_limit" in hyperparams:
            hyperparams["cost_limit"] = parse_limit_schedule(hyperparams["cost_limit"])
        return ExperimentManager._preprocess_schedules(hyperparams)

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        vec_env = hyperparams.pop("vec_env", None)
        if vec_env is not None and vec_env not in VEC_ENVS:
            raise ValueError(f"vec_env is {vec_env!r}: expected one of {', '.join(VEC_ENVS)}")
        if vec_env is not None and self.vec_env_type is None:
            self.vec_env_class = VEC_ENVS[vec_env]
        if isinstance(text := hyperparams.get("cost_shaping"), str):
            hyperparams["cost_shaping"] = read_cost_shaping(text)
        return super()._preprocess_hyperparams(hyperparams)

    def create_callbacks(self) -> None:
        save_freq, self.save_freq = self.save_freq, -1 if self.algo in HYPERPARAMS else self.save_freq
        super().create_callbacks()
        if self.algo in HYPERPARAMS and not self.optimize_hyperparameters:
            self.callbacks.append(self._make_checkpoints(save_freq))
        if self._has_one_monitor_file:
            self.callbacks.append(EpisodeWriter(self.save_path, self.env_name.gym_id))

    def _make_checkpoints(self, save_freq: int) -> TrainingCheckpoint:
        """With ``--save-freq`` all are kept, for ``enjoy`` too; otherwise there is a recent one, for ``--resume``."""
        folder = checkpoint_folder(self.save_path, save_freq)
        if save_freq > 0:
            return TrainingCheckpoint(max(save_freq // self.n_envs, 1), folder, "rl_model", n_kept=None, verbose=2)
        return TrainingCheckpoint(1, folder, "rl_model", n_kept=2, min_seconds=CHECKPOINT_SECONDS)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.trial_id is not None and self.resumed_run is None:
            # rl_zoo3 overlooks trial 0, and says nothing where the study is not named
            trial = self.load_trial(self.storage or "", self.study_name or "", self.trial_id)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
            self.trial_id = None
        if self.resumed_run is None:
            return super().read_hyperparameters()
        # As they were, whatever the table says today
        text = Path(self.params_path, "config.yml").read_text()
        return dict(yaml.load(text, Loader=yaml.UnsafeLoader)), yaml.load(text, Loader=yaml.UnsafeLoader)

    def load_trial(self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True) -> dict[str, Any]:
        """
        rl_zoo3's.

        :raises ValueError: there is no such storage, study or trial
        """
        if not storage or not study_name:
            raise ValueError("--trial-id needs the --storage and the --study-name of the study")
        if storage.endswith(".log") and not Path(storage).is_file():
            raise ValueError(f"--storage is {storage!r}: there is no such file")
        opened: Any = JournalStorage(JournalFileBackend(storage)) if storage.endswith(".log") else storage
        names = optuna.get_all_study_names(opened)
        if study_name not in names:
            raise ValueError(f"--study-name is {study_name!r}: the studies in {storage} are {', '.join(names)}")
        n_trials = len(optuna.load_study(study_name=study_name, storage=opened).trials)
        if trial_id is not None and trial_id not in range(n_trials):
            raise ValueError(f"--trial-id is {trial_id}: {study_name} has the trials 0 to {n_trials - 1}")
        return super().load_trial(storage, study_name, trial_id, convert)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.resumed_run is None:
            return super()._load_pretrained_agent(hyperparams, env)
        algorithm: Any = ALGOS[self.algo]
        folder = checkpoint_folder(self.save_path, self.args.save_freq)
        model = algorithm.resume(folder, env, self.device, tensorboard_log=self.tensorboard_log, verbose=self.verbose)
        print(f"Going on with {self.save_path} at step {model.num_timesteps:,}")
        return model

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.resumed_run is None:
            super()._save_config(saved_hyperparams)

    def learn(self, model: BaseAlgorithm) -> None:
        """rl_zoo3's. After Ctrl-C, which ends workers too, there may be nobody left to be told to close."""
        with contextlib.suppress(ConnectionError):
            super().learn(model)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        n_envs = n_envs if eval_env else processes.share_of(n_envs)
        return super().create_envs(n_envs, eval_env, no_log or self._has_one_monitor_file)

    @property
    def _has_one_monitor_file(self) -> bool:
        """ARS plays its episodes where no callback sees them."""
        return self.algo != "ars"

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """
        rl_zoo3's, which continues a checkpoint with the statistics of another model, or without a word with fresh ones.

        :raises ValueError: there are no statistics beside the model that is to be continued
        """
        if not self.continue_training or self.resumed_run is not None:
            # Where no agent is named, rl_zoo3 takes statistics that happen to lie in the current folder
            trained_agent, self.trained_agent = self.trained_agent, os.devnull
            try:
                return super()._maybe_normalize(env, eval_env)
            finally:
                self.trained_agent = trained_agent
        normalized = load_statistics(self.trained_agent, self.env_name, env)
        if normalized is not None:
            env = normalized
            # Whatever the hyperparameters say: they are saved with the model that they belong to
            self.normalize = True
            if eval_env:
                env.training = env.norm_reward = False
        elif self.normalize:
            raise ValueError(
                f"no statistics of VecNormalize lie in {self.trained_agent} or beside it: with fresh ones, this policy would "
                "see other observations than it has learned from. Checkpoints bring theirs along; for a model that was "
                "trained without VecNormalize: -params normalize:False"
            )
        return env

    # ---------------------------------------------------------------- hyperparameter optimisation

    def objective(self, trial: optuna.Trial) -> float:
        # What one trial learns, a cost predictor for instance, is not for the next
        self._hyperparams = deepcopy(self._untouched_hyperparams)
        return super().objective(trial)

    def _create_study(self) -> optuna.Study:
        storage: Any = self.storage
        if storage is not None and storage.endswith(".log"):
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(storage))
        if storage is not None and self.study_name is None:
            warnings.warn(
                f"You passed a storage ({self.storage}) but no `--study-name`: Optuna will invent one. "
                "Give all processes the same name to share the study."
            )
        sampler: BaseSampler = self._create_sampler(self.sampler)
        study = optuna.create_study(
            sampler=sampler,
            pruner=self._create_pruner(self.pruner),
            storage=storage,
            study_name=self.study_name,
            load_if_exists=True,
            direction="maximize",
        )
        if "command" not in study.user_attrs:
            study.set_user_attr("command", " ".join(sys.orig_argv))
            # Save default hyperparams
            for key in sorted(self._hyperparams):
                study.set_user_attr(key, str(self._hyperparams[key]))
        return study

    def hyperparameters_optimization(self) -> None:
        """
        rl_zoo3's, which would end without its report where no trial is feasible or none is complete, and reports no costs.
        """
        if self.verbose > 0:
            print(f"Optimizing hyperparameters. Sampler: {self.sampler} - Pruner: {self.pruner}")
        if self.tensorboard_log is not None:
            warnings.warn("Tensorboard log is deactivated when running hyperparameter optimization")
            self.tensorboard_log = None
        self._untouched_hyperparams = deepcopy(self._hyperparams)
        study = self._create_study()
        try:
            if self.max_total_trials is None:
                study.optimize(self.objective, n_jobs=self.n_jobs, n_trials=self.n_trials, gc_after_trial=True)
            else:
                # Trials that run elsewhere count: otherwise there were max_total_trials + number of workers in total
                states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED)
                if len(study.get_trials(states=states)) < self.max_total_trials:
                    callbacks = [MaxTrialsCallback(self.max_total_trials, states=states)]
                    study.optimize(self.objective, n_jobs=self.n_jobs, callbacks=callbacks, gc_after_trial=True)
        except KeyboardInterrupt:
            pass
        finally:
            self._report(study)

    def _report(self, study: optuna.Study) -> None:
        trials = study.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        feasible = [trial for trial in complete if is_feasible(trial)]
        n_pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
        print(f"Trials: {len(trials)}, complete: {len(complete)}, of which feasible: {len(feasible)}, pruned: {n_pruned}")
        if feasible:
            print("Best feasible trial:")
            print(describe_trial(max(feasible, key=lambda trial: trial.value or 0.0)))
        elif complete:
            print("No trial is feasible. The one with the lowest violation:")
            print(describe_trial(min(complete, key=violation_of)))
        else:
            print("No trial is complete.")

        name = (
            f"report_{self.env_name}_{self.n_trials}-trials-{self.n_timesteps}-{self.sampler}-{self.pruner}_{int(time.time())}"
        )
        path = Path(self.log_folder) / self.algo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = study.trials_dataframe(attrs=("number", "value", "duration", "params", "user_attrs", "state"))
        table.to_csv(f"{path}.csv")
        # Save python object to inspect/re-use it later
        with open(f"{path}.pkl", "wb") as file:
            pickle.dump(study, file)
        print(f"Report: {path}.csv")
        if not self.no_optim_plots:
            self._plot_study(study, path)

    @staticmethod
    def _plot_study(study: optuna.Study, path: Path) -> None:
        """The same two plots as rl_zoo3's, as files: no window opens where there is no screen."""
        try:
            from optuna.visualization import plot_optimization_history, plot_param_importances

            plot_optimization_history(study).write_html(f"{path}_history.html")
            plot_param_importances(study).write_html(f"{path}_importances.html")
        except (ValueError, ImportError, RuntimeError) as error:
            print(f"No plots of the study: {error}")
