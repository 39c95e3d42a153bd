"""
How fast is it? Each subcommand measures one thing and prints a table.

    python scripts/benchmark.py envs
    python scripts/benchmark.py stepping --envpool path/to/python --mjbatch path/to/another/python
    python scripts/benchmark.py train --against HEAD~1
    python scripts/benchmark.py collect
    python scripts/benchmark.py update
    python scripts/benchmark.py memory
    python scripts/benchmark.py scaling --output scaling.png
    python scripts/benchmark.py processes
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper

Measurement = Callable[[], float]


def measure(candidates: dict[str, Measurement], n_rounds: int) -> dict[str, list[float]]:
    """
    Measure in turns, so that whatever else the machine does hits all alike.

    :param candidates: functions that return steps per second
    :return: the results of each, round by round
    """
    for run in candidates.values():
        run()  # warm up
    results: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(n_rounds):
        # There and back again: no candidate always follows the same one
        names = list(candidates) if round_index % 2 == 0 else list(candidates)[::-1]
        for name in names:
            results[name].append(candidates[name]())
    return results


def ratio(results: dict[str, list[float]], name: str, reference: str) -> float:
    """Median over the rounds of the ratio within a round."""
    pairs = zip(results[name], results[reference], strict=True)
    return statistics.median(own / other for own, other in pairs)


def step_vec_env(venv, actions: np.ndarray) -> float:
    start = time.perf_counter()
    for action in actions:
        venv.step(action)
    return len(actions) * venv.num_envs / (time.perf_counter() - start)


def step_vec_env_cpu(venv, actions: np.ndarray) -> float:
    """Steps per second of one core's time, whoever else wants the core."""
    start = time.process_time()
    for action in actions:
        venv.step(action)
    return len(actions) * venv.num_envs / (time.process_time() - start)


def step_batch(batch, controls: np.ndarray, states: np.ndarray, stage: int) -> float:
    """Bare mujoco.batch with random controls, from the states in which the task's robots are: as many contacts."""
    batch.state[:] = states
    ctrl = batch.ctrl
    start = time.perf_counter()
    for control in controls:
        ctrl[:] = control
        batch.step(stage=stage)
    return len(controls) * batch.nsim / (time.perf_counter() - start)


def benchmark_envs(args: argparse.Namespace) -> None:
    """Compare BatchVecEnv with bare mujoco.batch, with DummyVecEnv and with SubprocVecEnv."""
    import mujoco
    from mujoco.batch import Batch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from safe_envs import BatchVecEnv

    rng = np.random.default_rng(0)
    n_threads = args.threads or os.cpu_count() or 1
    env_id, n_envs, n_steps = "SafeAntCircle-v0", args.n_envs, args.steps

    def make(vec_env_cls=None, n_copies=n_envs, name=env_id, **vec_env_kwargs):
        # With the module, so that worker processes find the id
        venv = make_vec_env(
            f"safe_envs:{name}", n_envs=n_copies, seed=0, vec_env_cls=vec_env_cls, vec_env_kwargs=vec_env_kwargs
        )
        venv.reset()
        return venv

    def draw(venv, steps):
        return rng.uniform(-1.0, 1.0, (steps, venv.num_envs, *venv.action_space.shape)).astype(np.float32)

    venv = make(BatchVecEnv, n_threads=n_threads)
    model = venv.get_attr("model", indices=0)[0]
    batch = Batch(model, n_envs, n_threads)
    states = venv.simulation.batch.state  # live
    controls = rng.uniform(-150.0, 150.0, (n_steps, n_envs, model.nu))
    task_stage = venv.simulation.stage
    candidates = {
        "BatchVecEnv": partial(step_vec_env, venv, draw(venv, n_steps)),
        "Batch.step()": partial(step_batch, batch, controls, states, mujoco.mjtStage.mjSTAGE_NONE.value),
        f"Batch.step(stage={task_stage})": partial(step_batch, batch, controls, states, task_stage),
    }
    title = f"{env_id}, {n_envs} copies, {n_threads} thread(s), {args.rounds} rounds of {n_steps} steps, in turns"
    results = measure(candidates, args.rounds)
    report(title, results, "BatchVecEnv", {"Batch.step()": 0.75, f"Batch.step(stage={task_stage})": 0.90})

    others = {
        "BatchVecEnv": candidates["BatchVecEnv"],
        "DummyVecEnv of 8": partial(step_vec_env, dummy := make(n_copies=8), draw(dummy, n_steps)),
        "SubprocVecEnv of 2": partial(step_vec_env, subproc := make(SubprocVecEnv, 2), draw(subproc, n_steps)),
    }
    report(f"{env_id}, {n_envs} copies, against SB3's", measure(others, args.rounds), "BatchVecEnv", {})
    subproc.close()

    point = make(BatchVecEnv, 256, "SafePointCircle-v0")
    actions = draw(point, 10 * n_steps)
    speeds = measure(
        {"wall": partial(step_vec_env, point, actions), "cpu": partial(step_vec_env_cpu, point, actions)}, args.rounds
    )
    print("\nSafePointCircle-v0, 256 copies, one core")
    for clock, values in speeds.items():
        print(f"  {statistics.median(values):>12,.0f} steps/s by {clock} time, best {max(values):,.0f}   (goal 1,000,000)")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def learn(model, clock: Callable[[], float] = time.perf_counter) -> float:
    """Steps per second of training, rollouts and updates together."""
    steps, start = model.num_timesteps, clock()
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    return (model.num_timesteps - steps) / (clock() - start)


TRAINING = {"batch_size": 1000, "n_critic_updates": 3, "policy_kwargs": {"net_arch": [64, 32]}, "device": "cpu"}


def make_circle_env(args: argparse.Namespace):
    from safe_envs import BatchVecEnv
    from sb3_cpo import make_vec_env

    # Time of the processor is that of one thread
    n_threads = 1 if args.clock == "cpu" else 0
    return make_vec_env(args.env, n_envs=100, vec_env_cls=BatchVecEnv, seed=0, vec_env_kwargs={"n_threads": n_threads})


def make_cpo(args: argparse.Namespace):
    from sb3_cpo import CPO

    kwargs = {"n_steps": args.steps // 100, "fisher_sub_sampling_factor": 5, "n_noise_draws": args.noise_draws, "seed": 0}
    return CPO("MlpPolicy", make_circle_env(args), 10.0, **kwargs, **TRAINING)


def train_on_demand(args: argparse.Namespace) -> None:
    """Train one update for every line that comes in, and print its steps per second."""
    import torch as th

    if args.clock == "cpu":
        th.set_num_threads(1)
    model = make_cpo(args)
    for _ in sys.stdin:
        print(learn(model, CLOCKS[args.clock]), flush=True)


class OnDemand:
    """
    A process that answers every line that it gets with a speed, measured by this script in turns with others.

    :param command: the program and its arguments
    :param env: variables of its environment beside ours
    """

    def __init__(self, command: list[str], env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return float(self.read())

    def read(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class OtherCode(OnDemand):
    """
    Training by the code of a commit.

    :param commit: None: the code beside this script
    """

    def __init__(self, commit: str | None, args: argparse.Namespace):
        self.folder = tempfile.TemporaryDirectory()
        root = Path(__file__).resolve().parents[1]
        if commit is not None:
            archive = subprocess.run(["git", "archive", commit], cwd=root, stdout=subprocess.PIPE, check=True).stdout
            subprocess.run(["tar", "x", "-C", self.folder.name], input=archive, check=True)
            root = Path(self.folder.name)
        options = ["--env", args.env, "--steps", args.steps, "--noise-draws", args.noise_draws, "--clock", args.clock]
        super().__init__([sys.executable, __file__, "worker", *map(str, options)], {"PYTHONPATH": str(root)})

    def close(self) -> None:
        super().close()
        self.folder.cleanup()


def benchmark_stepping(args: argparse.Namespace) -> None:
    """Compare BatchVecEnv with other libraries' batched environments, each with the same number of threads."""
    import gymnasium

    from safe_envs import BatchVecEnv
    from sb3_cpo import make_vec_env

    n_threads = args.threads or os.cpu_count() or 1
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    for robot, model in (("Ant", "ant.xml"), ("HalfCheetah", "half_cheetah.xml")):
        kwargs = {"vec_env_cls": BatchVecEnv, "vec_env_kwargs": {"n_threads": n_threads}}
        venv = make_vec_env(f"Safe{robot}Velocity-v0", n_envs=args.n_envs, seed=0, **kwargs)
        venv.reset()
        shape = (args.steps, args.n_envs, *venv.action_space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        candidates: dict[str, Measurement] = {"BatchVecEnv": partial(step_vec_env, venv, actions)}
        others = {"envpool": (args.envpool, f"{robot}-v4"), "mjbatch": (args.mjbatch, str(assets / model))}
        processes = []
        for library, (python, what) in others.items():
            script = Path(__file__).with_name("step_others.py")
            sizes = map(str, (args.n_envs, n_threads, args.steps))
            process = OnDemand([python, str(script), library, what, *sizes])
            if process.read() == "ready":
                candidates[library if library == "envpool" else "mjbatch (physics)"] = process
            else:
                print(f"{library}: not in {python}, or it does not start (its error stands above)")
            processes.append(process)
        title = f"{robot}, {args.n_envs} copies, {n_threads} thread(s), {args.rounds} rounds of {args.steps} steps, in turns"
        report(title, measure(candidates, args.rounds), "BatchVecEnv", dict.fromkeys(candidates, 1.0))
        for process in processes:
            process.close()


def benchmark_train(args: argparse.Namespace) -> None:
    """
    Compare training with CPO on BatchVecEnv to sb3-contrib's TRPO on SB3's DummyVecEnv, to bare stepping, and to the code of
    another commit. Torch has as many threads as it chooses by itself.
    """
    import torch as th
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env

    if args.clock == "cpu":
        th.set_num_threads(1)
    sizes = {"SafePointCircle-v0": 20_000, "SafeAntCircle-v0": 50_000}
    for env_id, size in sizes.items() if args.env is None else [(args.env, sizes.get(args.env, 20_000))]:
        case = argparse.Namespace(**{**vars(args), "env": env_id, "steps": args.steps or size})
        stepped = make_circle_env(case)
        stepped.reset()
        shape = (case.steps // 100, 100, *stepped.action_space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        step = step_vec_env_cpu if args.clock == "cpu" else step_vec_env
        codes = {"CPO, BatchVecEnv": OtherCode(None, case)}
        if args.against is not None:
            codes[f"CPO of {args.against}"] = OtherCode(args.against, case)
        candidates: dict[str, Measurement] = {**codes, "stepping alone": partial(step, stepped, actions)}
        if not args.without_trpo:
            trpo = TRPO("MlpPolicy", sb3_make_vec_env(env_id, n_envs=8, seed=0), n_steps=case.steps // 8, **TRAINING)
            candidates["contrib TRPO, Dummy"] = partial(learn, trpo, CLOCKS[args.clock])
        title = f"{env_id}, {case.steps:,} steps per update, {args.rounds} rounds in turns, {args.clock} time, noise draws: "
        report(title + str(args.noise_draws), measure(candidates, args.rounds), "CPO, BatchVecEnv", {})
        for code in codes.values():
            code.close()


def benchmark_collect(args: argparse.Namespace) -> None:
    """Compare what collecting a rollout costs the process that trains: CPO, and SB3's PPO, on the same 8 environments."""
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


class RepeatedCost(VecEnvWrapper):
    """The cost of an environment once, twice over, three times over, ...: as many constraints."""

    def __init__(self, venv, n_costs: int):
        super().__init__(venv)
        self.n_costs = n_costs

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info["cost"] = info["cost"] * np.arange(1, self.n_costs + 1)
        return obs, rewards, dones, infos


def update(model) -> float:
    """Updates per second of CPU time, of the rollout that the model has collected."""
    start = time.process_time()
    model.train()
    return 1 / (time.process_time() - start)


def benchmark_update(args: argparse.Namespace) -> None:
    """Compare one update of CPO with one of sb3-contrib's TRPO: 20,000 steps of the ant, both critics, 10 CG iterations."""
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


SCALES = {
    "steps per update": (5_000, 10_000, 20_000, 40_000),
    "number of constraints": (1, 2, 4, 8),
    "cost rollouts": (1, 2, 4, 8),
}


def benchmark_scaling(args: argparse.Namespace) -> None:
    """How the time of one update grows with the batch, the constraints and the cost rollouts: a table and a picture."""
    import matplotlib
    import torch as th

    from safe_envs import BatchVecEnv
    from sb3_cpo import CPO, make_vec_env

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    th.set_num_threads(1)

    def model(axis: str, value: int):
        defaults = {"steps per update": 10_000, "number of constraints": 1, "cost rollouts": 1}
        n_steps, n_costs, n_rollouts = {**defaults, axis: value}.values()
        env = RepeatedCost(make_vec_env(args.env, n_envs=100, vec_env_cls=BatchVecEnv, seed=0), n_costs)
        kwargs = {"n_steps": n_steps // 100, "batch_size": 1000, "n_critic_updates": 3, "fisher_sub_sampling_factor": 4}
        cpo = CPO("MlpPolicy", env, [10.0] * n_costs, n_cost_rollouts=n_rollouts, **kwargs, device="cpu", seed=0)
        return cpo.learn(n_rollouts * n_steps)

    figure, plots = plt.subplots(1, len(SCALES), figsize=(11, 3.4), layout="constrained")
    for (axis, values), plot in zip(SCALES.items(), plots, strict=True):
        candidates = {str(value): partial(update, model(axis, value)) for value in values}
        seconds = [[1 / speed for speed in speeds] for speeds in measure(candidates, args.rounds).values()]
        medians = np.array([statistics.median(times) for times in seconds])
        slope, intercept = np.polyfit(values, medians, 1)
        print(f"\nOne update on {args.env}, CPU time of one thread, {args.rounds} rounds in turns")
        for value, times in zip(values, seconds, strict=True):
            line = f"  {axis} {value:>7,}   {min(times):.3f} / {statistics.median(times):.3f} / {max(times):.3f} s"
            print(f"{line}   straight line: {intercept + slope * value:.3f} s")
        plot.plot(values, intercept + slope * np.array(values), color="0.7", label="straight line")
        errors = [medians - np.min(seconds, axis=1), np.max(seconds, axis=1) - medians]
        plot.errorbar(values, medians, errors, fmt="o", capsize=3, label="min, median, max")
        plot.set(xlabel=axis, ylabel="CPU seconds of one update", xlim=(0, None), ylim=(0, None))
    plots[0].legend()
    figure.savefig(args.output, dpi=120)
    print(f"\n{args.output}")


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


def benchmark_memory(args: argparse.Namespace) -> None:
    """Peak memory of updates on 100,000 steps of the humanoid, beside sb3-contrib's TRPO; growth over small updates."""
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


def train_in_process(rank: int, n_processes: int, n_envs: int, folder: str, args: argparse.Namespace, results) -> None:
    """
    One of several processes that train together; the first one puts steps per second and what was sent into results.

    :param n_envs: copies in each process
    """
    import torch as th
    import torch.distributed as dist

    from safe_envs import BatchVecEnv
    from sb3_cpo import CPO, distributed, make_vec_env

    th.set_num_threads(1)
    if n_processes > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=n_processes)
    kwargs = {"n_threads": 1}
    env = make_vec_env(args.env, n_envs=n_envs, vec_env_cls=BatchVecEnv, vec_env_kwargs=kwargs, seed=rank)
    # As many minibatches, however many processes and copies there are
    kwargs = {"n_steps": 500, "batch_size": 10 * n_envs * n_processes, "n_critic_updates": 3, "seed": 0}
    model = CPO("MlpPolicy", env, 10.0, policy_kwargs={"net_arch": [64, 32]}, device="cpu", **kwargs)
    learn_globally(model)
    for _ in range(args.rounds):
        bytes_before, messages_before = distributed.n_bytes_sent, distributed.n_messages
        speed = learn_globally(model)
        if rank == 0:
            results.put((speed, distributed.n_bytes_sent - bytes_before, distributed.n_messages - messages_before))


def learn_globally(model) -> float:
    """Steps per second of one update of all processes together."""
    from sb3_cpo import distributed

    steps, start = model.num_timesteps, time.perf_counter()
    model.learn(model.n_steps * model.n_envs * distributed.world_size(), reset_num_timesteps=False)
    return (model.num_timesteps - steps) / (time.perf_counter() - start)


def processes_at_balance(update_seconds: float, n_bytes: float, n_messages: float, bandwidth: float, latency: float) -> int:
    """
    The number of processes at which a ring of them communicates as long as it computes, if each has its part of a fixed batch.

    :param update_seconds: rollout and update of one process alone
    :param n_bytes: summed over processes in one update
    :param n_messages: number of these sums
    :param bandwidth: bytes per second between neighbours
    :param latency: seconds that a message takes at least
    """
    n = 1
    while n < 10_000:
        n += 1
        communication = 2 * (n - 1) / n * n_bytes / bandwidth + 2 * (n - 1) * n_messages * latency
        if communication >= update_seconds / n:
            break
    return n


def benchmark_processes(args: argparse.Namespace) -> None:
    """Compare training on one and on two processes of one thread each, and say how far that carries."""

    context = multiprocessing.get_context("spawn")
    measured = {}
    for n_processes, n_envs in ((1, 100), (2, 50), (2, 100)):
        with tempfile.TemporaryDirectory() as folder:
            results = context.Queue()
            workers = [
                context.Process(target=train_in_process, args=(rank, n_processes, n_envs, folder, args, results))
                for rank in range(n_processes)
            ]
            for worker in workers:
                worker.start()
            measured[n_processes, n_envs] = [results.get() for _ in range(args.rounds)]
            for worker in workers:
                worker.join()
    speeds = {case: statistics.median(speed for speed, _, _ in rounds) for case, rounds in measured.items()}
    alone = speeds[1, 100]
    _, n_bytes, n_messages = measured[2, 50][-1]
    print(f"\n{args.env}, 500 steps of each copy per update, one thread per process, {args.rounds} rounds")
    for (n_processes, n_envs), speed in speeds.items():
        times = "" if n_processes == 1 else f"   {speed / alone:.2f} times as fast   (goal 1.80)"
        print(f"  {n_processes} of {n_envs} copies each {speed:>10,.0f} steps/s{times}")
    print(f"  {n_bytes / 1e6:.2f} MB in {n_messages} sums per update")
    print("\n  as long communicating as computing (a ring, a fixed batch), from these numbers and assumed networks:")
    networks = {
        "one machine (5 GB/s, 10 us)": (5e9, 1e-5),
        "10 Gbit Ethernet (50 us)": (1.25e9, 5e-5),
        "1 Gbit (200 us)": (1.25e8, 2e-4),
    }
    for name, (bandwidth, latency) in networks.items():
        n = processes_at_balance(50_000 / alone, n_bytes, n_messages, bandwidth, latency)
        print(f"  {name:<30} at {n} processes")


def report(title: str, results: dict[str, list[float]], subject: str, goals: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, values in results.items():
        speeds = " / ".join(f"{speed:,.0f}" for speed in (min(values), statistics.median(values), max(values)))
        line = f"  {name:<22} {speeds:>30} steps/s"
        if name != subject:
            line += f"   {subject} is {ratio(results, subject, name):.2f} times as fast"
        if name in goals:
            line += f"   (goal {goals[name]:.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="subcommand", required=True)

    envs = subcommands.add_parser("envs", help=benchmark_envs.__doc__)
    envs.add_argument("--n-envs", type=int, default=64, help="copies of the ant")
    envs.add_argument("--steps", type=int, default=100, help="steps in a round")
    envs.add_argument("--rounds", type=int, default=15, help="rounds, measured in turns")
    envs.add_argument("--threads", type=int, default=0, help="threads for the physics, 0 for all cores")
    envs.set_defaults(run=benchmark_envs)

    train = subcommands.add_parser("train", help=benchmark_train.__doc__)
    worker = subcommands.add_parser("worker")
    for parser_of_training in (train, worker):
        parser_of_training.add_argument("--env", help="all if not given")
        parser_of_training.add_argument("--steps", type=int, help="per update; 20,000 of the Point and 50,000 of the ant")
        parser_of_training.add_argument("--noise-draws", type=int, default=2, help="CPO's n_noise_draws")
        parser_of_training.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of one thread")
    worker.set_defaults(run=train_on_demand)
    train.add_argument("--rounds", type=int, default=3, help="rounds, measured in turns")
    train.add_argument("--against", metavar="COMMIT", help="train with the code of this commit in turns with this code")
    train.add_argument("--without-trpo", action="store_true", help="do not measure sb3-contrib's TRPO")
    train.set_defaults(run=benchmark_train)

    stepping = subcommands.add_parser("stepping", help=benchmark_stepping.__doc__)
    stepping.add_argument("--n-envs", type=int, default=64, help="copies")
    stepping.add_argument("--steps", type=int, default=200, help="steps in a round")
    stepping.add_argument("--rounds", type=int, default=7, help="rounds, measured in turns")
    stepping.add_argument("--threads", type=int, default=0, help="of each; 0: all cores")
    # mjbatch pins another release of MuJoCo than BatchVecEnv needs
    for library in ("envpool", "mjbatch"):
        stepping.add_argument(f"--{library}", metavar="PYTHON", default=sys.executable, help="an interpreter that has it")
    stepping.set_defaults(run=benchmark_stepping)

    collect = subcommands.add_parser("collect", help=benchmark_collect.__doc__)
    collect.add_argument("--env", default="SafePointCircle-v0")
    collect.add_argument("--rounds", type=int, default=5, help="rounds, measured in turns")
    collect.set_defaults(run=benchmark_collect)

    scaling = subcommands.add_parser("scaling", help=benchmark_scaling.__doc__)
    scaling.add_argument("--env", default="SafePointCircle-v0")
    scaling.add_argument("--rounds", type=int, default=5, help="rounds, measured in turns")
    scaling.add_argument("--output", default="scaling.png", help="the picture")
    scaling.set_defaults(run=benchmark_scaling)

    one_update = subcommands.add_parser("update", help=benchmark_update.__doc__)
    one_update.add_argument("--rounds", type=int, default=5, help="rounds, measured in turns")
    one_update.set_defaults(run=benchmark_update)

    memory = subcommands.add_parser("memory", help=benchmark_memory.__doc__)
    memory.add_argument("--steps", type=int, default=100_000, help="of the one update")
    memory.add_argument("--updates", type=int, default=300, help="small ones")
    memory.set_defaults(run=benchmark_memory)

    processes = subcommands.add_parser("processes", help=benchmark_processes.__doc__)
    processes.add_argument("--env", default="SafeAntCircle-v0")
    processes.add_argument("--rounds", type=int, default=3)
    processes.set_defaults(run=benchmark_processes)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
