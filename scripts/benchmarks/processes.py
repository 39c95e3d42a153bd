"""Compare training on one and on two processes of one thread each, and say how far that carries."""

import argparse
import multiprocessing
import statistics
import tempfile
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default="SafeAntCircle-v0")
    parser.add_argument("--rounds", type=int, default=3)


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


def run(args: argparse.Namespace) -> None:
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
