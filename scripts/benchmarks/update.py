"""Compare one update of CPO with one of sb3-contrib's TRPO: 20,000 steps of the ant, both critics, 10 CG iterations."""

import argparse
import statistics
from functools import partial

from benchmarks.measuring import RepeatedCost, measure, ratio, update


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="rounds, measured in turns")


def run(args: argparse.Namespace) -> None:
    import torch as th
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env

    from safe_envs import BatchVecEnv
    from sb3_cpo import CPO, make_vec_env
    from sb3_cpo.defaults import COST_ROLLOUTS

    th.set_num_threads(1)
    shared = {"n_steps": 200, "batch_size": 1000, "n_critic_updates": 10, "cg_max_steps": 10, "device": "cpu", "seed": 0}

    def collected(model):
        model.learn(20_000 * (getattr(model, "n_cost_rollouts", 1) or COST_ROLLOUTS))
        return model

    def cpo(n_costs: int = 1, **kwargs):
        env = make_vec_env("SafeAntCircle-v0", n_envs=100, vec_env_cls=BatchVecEnv, seed=0)
        limits = [10.0] * n_costs
        kwargs = {**shared, **kwargs}
        if n_costs > 1:
            env = RepeatedCost(env, n_costs)
        return collected(CPO("MlpPolicy", env, limits, **kwargs))

    plain = {"n_noise_draws": 0, "fisher_sub_sampling_factor": 1}
    candidates = {
        "TRPO of contrib": collected(TRPO("MlpPolicy", sb3_make_vec_env("SafeAntCircle-v0", n_envs=100, seed=0), **shared)),
        "plain CPO, whole Fisher matrix": cpo(**plain),
        "plain CPO": cpo(n_noise_draws=0),
        "plain CPO, three constraints": cpo(3, n_noise_draws=0),
        "CPO, one rollout": cpo(n_cost_rollouts=1),
        "CPO": cpo(),
    }
    results = measure({name: partial(update, model) for name, model in candidates.items()}, args.rounds)
    print(f"\nOne update on 20,000 steps of SafeAntCircle-v0, CPU time of one thread, {args.rounds} rounds in turns")
    for name, values in results.items():
        seconds = 1 / statistics.median(values)
        line = f"  {name:<32} {seconds:>6.2f} s"
        if name != "TRPO of contrib":
            line += f"   {1 / ratio(results, name, 'TRPO of contrib'):.2f} of contrib's"
        print(line)
