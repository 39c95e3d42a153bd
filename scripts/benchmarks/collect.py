"""Compare what collecting a rollout costs the process that trains: CPO, and SB3's PPO, on the same 8 environments."""

import argparse
import time
from functools import partial

from benchmarks.measuring import learn, measure, ratio, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default="SafePointCircle-v0")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, measured in turns")


def run(args: argparse.Namespace) -> None:
    import torch as th
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from sb3_cpo import CPO, make_vec_env

    th.set_num_threads(1)
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        kwargs = {"n_envs": 8, "seed": 0, "vec_env_cls": vec_env_cls}
        if vec_env_cls is SubprocVecEnv:
            kwargs["vec_env_kwargs"] = {"start_method": "fork"}
        shared = {"n_steps": 500, "batch_size": 1000, "policy_kwargs": {"net_arch": [64, 32]}, "device": "cpu", "seed": 0}
        # What CPO does by default and PPO does not
        as_ppo = {**shared, "policy_kwargs": {**shared["policy_kwargs"], "normalize_observations": False}}
        models = {
            "CPO": CPO("MlpPolicy", make_vec_env(f"safe_envs:{args.env}", **kwargs), 10.0, **shared),
            "CPO, PPO's settings": CPO("MlpPolicy", make_vec_env(f"safe_envs:{args.env}", **kwargs), 10.0, **as_ppo),
            "PPO of SB3": PPO("MlpPolicy", sb3_make_vec_env(f"safe_envs:{args.env}", **kwargs), **shared),
        }
        models["CPO"].learn(4000)  # has statistics of observations from then on
        for model in models.values():
            model.train = lambda: None
        candidates = {name: partial(learn, model, time.process_time) for name, model in models.items()}
        title = (
            f"{args.env}, {vec_env_cls.__name__} of 8, rollouts of 4,000 steps, CPU time of this process, {args.rounds} rounds"
        )
        results = measure(candidates, args.rounds)
        report(title, results, "CPO", {})
        for name in list(models)[:2]:
            print(f"  a rollout of {name} costs {ratio(results, 'PPO of SB3', name):.3f} of PPO's   (goal 1.05)")
        for model in models.values():
            model.env.close()
