"""``python -m sb3_cpo.zoo.enjoy``: watch a trained agent, and what it costs."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.enjoy
import rl_zoo3.utils
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_cpo.cost_limits import exceeds, parse_cost_limit
from sb3_cpo.env_facts import registered_cost_limit
from sb3_cpo.evaluation import EpisodeCostRecorder
from sb3_cpo.zoo import runs
from sb3_cpo.zoo.arguments import Changes, run
from sb3_cpo.zoo.experiment_manager import HYPERPARAMS, parse_limit_schedule

DESCRIPTION = "Watch a trained agent: its episodes are rendered, and their return and cost are printed."

EXAMPLES = """\
examples:
  the last run of CPO, its last model
      %(prog)s --algo cpo --env SafePointCircle-v0
  the best feasible model of run 3, with the stochastic policy that the limit is for; only the numbers, of 5,000 steps
      %(prog)s --algo cpo --env SafePointCircle-v0 --exp-id 3 --load-best --no-render -n 5000
  a checkpoint
      %(prog)s --algo cpo --env SafeAntCircle-v0 --load-checkpoint 100000

Without a screen, use --no-render, or record a video (sb3-cpo video).
"""

CHANGES: Changes = {
    "--algo": {"default": "cpo"},
    "--env": {"default": "SafePointCircle-v0"},
    "--folder": {"default": "logs"},
}


class CostPrinter(VecEnvWrapper):
    """
    Prints the cost of each episode when it ends, and their mean when the environment is closed.

    :param venv: the environments; SB3's ``Monitor`` is around each
    :param cost_limit: limits of the run, in a form that the algorithms accept; None: none
    :param gamma: discount factor of the costs that the limits bound
    """

    def __init__(self, venv: VecEnv, cost_limit: Any = None, gamma: float = 1.0):
        super().__init__(venv)
        # A schedule ends at the limit that the trained agent is for
        if cost_limit is None:
            cost_limit = registered_cost_limit(venv)
        self.limits = None if cost_limit is None else parse_cost_limit(cost_limit)
        self._keys = None if self.limits is None else self.limits.keys
        self._gamma = gamma
        self._recorder = EpisodeCostRecorder(self._keys, None if self.limits is None else self.limits.n_costs, gamma=gamma)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        for index, (done, info) in enumerate(zip(dones, infos, strict=True)):
            if self._keys is None and "cost" not in info:
                # SB3's algorithms in environments without costs
                continue
            n_episodes = len(self._recorder.episodes)
            self._recorder({"i": index, "done": done, "info": info, "is_monitor_wrapped": True})
            if len(self._recorder.episodes) > n_episodes:
                print(f"Episode Cost: {self._describe(self._recorder.episodes[-1])}")
        return observations, rewards, dones, infos

    def _describe(self, costs: np.ndarray) -> str:
        names = self._keys
        texts = [f"{cost:.2f}" for cost in costs]
        return ", ".join(texts if names is None else [f"{text} ({name})" for text, name in zip(texts, names, strict=True)])

    def close(self) -> None:
        costs = self._recorder.episode_costs
        if len(costs):
            print(f"Mean cost: {self._describe(costs.mean(axis=0))} +/- {self._describe(costs.std(axis=0))}")
        if len(costs) and self.limits is not None and self.limits.is_limited:
            limit = self.limits.at(0.0)
            verdict = "OVER" if exceeds(costs.mean(axis=0), limit).any() else "within"
            discount = f" (costs are discounted by {self._gamma:g} per step)" if self._gamma < 1 else ""
            print(f"Cost limit: {self._describe(limit)}, the mean is {verdict}{discount}")
        super().close()


def _finish(options: argparse.Namespace) -> None:
    env_id = getattr(options.env, "gym_id", options.env)
    runs.register_envs(options.gym_packages, Path(options.folder, options.algo), env_id)
    # The best model of our algorithms was chosen by its stochastic policy: the deterministic one may exceed the limit
    if options.load_best and not options.deterministic and options.algo in HYPERPARAMS:
        print("The stochastic policy, by which the best model was chosen (--deterministic for the mean action)")
        options.stochastic = True


def enjoy(prog: str = "python -m sb3_cpo.zoo.enjoy") -> None:
    """rl_zoo3's ``enjoy``, with costs and our defaults."""
    model_path = ""

    def get_model_path(*args: Any) -> tuple[str, str, str]:
        nonlocal model_path
        try:
            prefix, model_path, log_path = rl_zoo3.utils.get_model_path(*args)
        except (AssertionError, ValueError) as error:
            sys.exit(str(error))
        return prefix, model_path, log_path

    def create_test_env(env_id: str, **kwargs: Any) -> VecEnv:
        hyperparams = kwargs["hyperparams"]
        limit, gamma = parse_limit_schedule(hyperparams.get("cost_limit")), hyperparams.get("cost_gamma", 1.0)
        return CostPrinter(runs.create_test_env(env_id, model_path=model_path, **kwargs), limit, gamma)

    rl_zoo3.enjoy.get_model_path = get_model_path  # type: ignore[assignment]
    rl_zoo3.enjoy.create_test_env = create_test_env  # type: ignore[assignment]
    parser: dict[str, Any] = {"prog": prog, "description": DESCRIPTION, "epilog": EXAMPLES}
    run(rl_zoo3.enjoy.enjoy, rl_zoo3.enjoy, CHANGES, finish=_finish, **parser)


if __name__ == "__main__":
    enjoy()
