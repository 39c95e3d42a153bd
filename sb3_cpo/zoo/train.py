"""``python -m sb3_cpo.zoo.train``: rl_zoo3's training script, for algorithms and environments with costs."""

import argparse
from pathlib import Path
from typing import Any

import rl_zoo3.train

from sb3_cpo.zoo import ConstrainedExperimentManager, processes
from sb3_cpo.zoo.arguments import Changes, run
from sb3_cpo.zoo.costs import OPTION, import_here, load_cost
from sb3_cpo.zoo.experiment_manager import VEC_ENVS
from sb3_cpo.zoo.runs import RESUME, take_over

DESCRIPTION = """\
Train CPO, PDO, FPO, TRPO (or any algorithm of rl_zoo3) with the hyperparameters of a YAML file, evaluate on the way, and
save everything in <log-folder>/<algo>/<env>_<run>: the last and the best feasible model, monitor.csv and evaluations.npz
with costs, the configuration and the command.
"""

EXAMPLES = """\
examples:
  train CPO, with a progress bar that shows the cost against its limit, and TensorBoard
      %(prog)s --algo cpo --env SafePointCircle-v0 -P -tb tb
  another limit, and one that falls from 25 to 5 over the first half of training
      %(prog)s --algo cpo --env SafePointCircle-v0 -params cost_limit:10
      %(prog)s --algo cpo --env SafePointCircle-v0 -params cost_limit:lin_25_5_0.5
  your own hyperparameters, an environment of your own package, all cores
      %(prog)s --algo cpo --env MyEnv-v0 --gym-packages my_package --conf-file my.yml --vec-env subproc
  an environment without costs, and a function in my_costs.py: def speed(next_obs): return float(abs(next_obs[2]) > 4)
      %(prog)s --algo cpo --env Pendulum-v1 --cost my_costs:speed -params cost_limit:20
  go on with a run that was killed, as if it had not been; with the last one, or one that is named
      %(prog)s --algo cpo --env SafeAntCircle-v0 --resume
      %(prog)s --resume logs/cpo/SafeAntCircle-v0_3
  keep a checkpoint every 100,000 steps; begin a new run with the policy of one
      %(prog)s --algo cpo --env SafeAntCircle-v0 --save-freq 100000
      %(prog)s --algo cpo --env SafeAntCircle-v0 -i logs/cpo/SafeAntCircle-v0_1/rl_model_100000_steps.zip
  search hyperparameters: sb3-cpo tune

The hyperparameters that are used are printed at the start; the files are in sb3_cpo/zoo/hyperparams.
"""

TUNE_DESCRIPTION = """\
Search hyperparameters: the value of a trial is its mean reward, and its cost is a constraint. The options are those of
sb3-cpo train.
"""

TUNE_EXAMPLES = """\
examples:
  50 trials of 100,000 steps each. Start it several times to use several processes
      %(prog)s --algo cpo --env SafePointCircle-v0 -n 100000 --n-trials 50 --storage tune.log --study-name point
  with another limit
      %(prog)s --algo cpo --env SafePointCircle-v0 -n 100000 --n-trials 50 -params cost_limit:10
  train with what trial 7 has found
      sb3-cpo train --algo cpo --env SafePointCircle-v0 --storage tune.log --study-name point --trial-id 7
"""

EXAMPLE_MODEL = "logs/cpo/SafePointCircle-v0_1/SafePointCircle-v0.zip"
CHANGES: Changes = {
    "--algo": {"default": "cpo"},
    "--env": {"default": "SafePointCircle-v0"},
    "--vec-env": {
        "default": None,
        "choices": list(VEC_ENVS),
        "help": "VecEnv type; batch steps all copies of one of our tasks at once (default: that of the YAML file, or dummy)",
    },
}


def train(prog: str = "python -m sb3_cpo.zoo.train") -> None:
    """rl_zoo3's ``train``, with our experiment manager and options."""
    _train(CHANGES, prog=prog, description=DESCRIPTION, epilog=EXAMPLES)


def tune(prog: str = "sb3-cpo tune") -> None:
    """The same with ``-optimize``: search hyperparameters."""
    changes = {**CHANGES, "-optimize": {"default": True, "help": argparse.SUPPRESS}}
    _train(changes, prog=prog, description=TUNE_DESCRIPTION, epilog=TUNE_EXAMPLES)


def _finish(options: argparse.Namespace) -> None:
    if options.resume is not None:
        take_over(options)
    if options.trained_agent and not Path(options.trained_agent).is_file():
        raise ValueError(f"-i is {options.trained_agent!r}: expected the file of a model, {EXAMPLE_MODEL} for instance")
    if options.conf_file and options.conf_file.endswith((".yml", ".yaml")) and not Path(options.conf_file).is_file():
        raise ValueError(f"--conf-file is {options.conf_file!r}: there is no such file")
    for package in options.gym_packages:
        import_here(package, f"--gym-packages names {package}")
    if options.cost is not None:
        load_cost(options.cost)
    processes.share(options)


def _train(changes: Changes, **parser: Any) -> None:
    rl_zoo3.train.ExperimentManager = ConstrainedExperimentManager  # type: ignore[misc]
    with processes.connected():
        run(rl_zoo3.train.train, rl_zoo3.train, changes, {"--cost": OPTION, "--resume": RESUME}, _finish, **parser)


if __name__ == "__main__":
    train()
