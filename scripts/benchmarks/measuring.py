"""What benchmarks share: measure in turns, compare within a round, report."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable

import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper

Measurement = Callable[[], float]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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


def step_vec_env(venv, actions: np.ndarray, clock: Callable[[], float] = time.perf_counter) -> float:
    """Steps per second, by CLOCKS["cpu"] of one core's time, whoever else wants the core."""
    start = clock()
    for action in actions:
        venv.step(action)
    return len(actions) * venv.num_envs / (clock() - start)


def learn(model, clock: Callable[[], float] = time.perf_counter) -> float:
    """Steps per second of training, rollouts and updates together."""
    steps, start = model.num_timesteps, clock()
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    return (model.num_timesteps - steps) / (clock() - start)


def update(model) -> float:
    """Updates per second of CPU time, of the rollout that the model has collected."""
    start = time.process_time()
    model.train()
    return 1 / (time.process_time() - start)


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
