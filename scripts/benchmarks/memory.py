"""Peak memory of updates on 100,000 steps of the humanoid, beside sb3-contrib's TRPO; growth over small updates."""

import argparse
import multiprocessing
import resource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=100_000, help="of a rollout; five are played, an update after each")
    parser.add_argument("--updates", type=int, default=300, help="small ones, over which the memory may not grow")


def resident() -> float:
    """Memory of this process in MB, now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def peak_of_an_update(name: str, n_steps: int, results) -> None:
    """Memory of rollouts and updates above that of the model, in MB; a process of its own runs it."""
    import torch as th
    from sb3_contrib import TRPO

    from safe_envs import BatchVecEnv
    from sb3_cpo import CPO, make_vec_env
    from sb3_cpo.defaults import COST_ROLLOUTS

    th.set_num_threads(1)
    env = make_vec_env("SafeHumanoidCircle-v0", n_envs=100, vec_env_cls=BatchVecEnv, seed=0)
    kwargs = {"n_steps": n_steps // 100, "batch_size": 1000, "n_critic_updates": 2, "cg_max_steps": 10, "device": "cpu"}
    if name.endswith("whole Fisher matrix"):
        kwargs["fisher_sub_sampling_factor"] = 1
    if name.startswith("CPO, one rollout"):
        kwargs["n_cost_rollouts"] = 1
    model = TRPO("MlpPolicy", env, **kwargs) if name == "TRPO of contrib" else CPO("MlpPolicy", env, **kwargs)
    before = resident()
    model.learn(COST_ROLLOUTS * n_steps)
    results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before)


def growth(n_updates: int, results) -> None:
    """Memory in MB after a sixth of the updates, and after all of them."""
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_cpo import CPO, make_vec_env

    class Watch(BaseCallback):
        def __init__(self):
            super().__init__()
            self.memory: list[float] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.memory.append(resident())

    th.set_num_threads(1)
    env = make_vec_env("SafePointCircle-v0", n_envs=4, env_kwargs={"max_episode_steps": 20}, seed=0)
    model, watch = CPO("MlpPolicy", env, n_steps=40, batch_size=40, n_critic_updates=2, device="cpu"), Watch()
    model.learn(n_updates * 160, callback=watch)
    results.put((watch.memory[n_updates // 6], watch.memory[-1]))


def run(args: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()

    def in_a_process(function, *arguments):
        process = context.Process(target=function, args=(*arguments, results))
        process.start()
        result = results.get()
        process.join()
        return result

    print(f"\nUpdates on {args.steps} steps of SafeHumanoidCircle-v0 each, peak above the model")
    for name in ("TRPO of contrib", "CPO", "CPO, one rollout", "CPO, one rollout, whole Fisher matrix"):
        print(f"  {name:<38} {in_a_process(peak_of_an_update, name, args.steps):>6.0f} MB", flush=True)
    early, late = in_a_process(growth, args.updates)
    print(f"{args.updates} updates: {early:.0f} MB after {args.updates // 6}, {late:.0f} MB after all", flush=True)
