"""
Compare CPO, PDO and fixed penalties with the optimum, on random CMDPs whose optimum a linear program knows.

    python scripts/experiments/tabular_optimum.py                       # 10 problems with one constraint, 5 with two; CPO
    python scripts/experiments/tabular_optimum.py --algorithms CPO PDO FPO

The policy is a table of logits: SB3's MlpPolicy without hidden layers on the one-hot of the state. Episodes end with
probability 1 - gamma after every step and nothing is discounted, so that the algorithms' own quantity, the mean plain sum of
an episode, is the one that the program optimises. What is reported is not estimated: each policy is read out of the network
and evaluated by solving its Bellman equations. The numbers are means over the last ``--average`` policies of a run, and those
of the very last one.

Rewards and costs are uniform in [0, 1], so a random policy earns much of the return. Three columns tell it three ways:

return      return / optimal return
of range    (return - r0) / (optimal return - r0), r0 the least return that a policy within the limits can have
penalised   the same with the return less nu.(cost - limit), nu the prices of the limits: at most 100 % for any policy, so
            that nothing is gained by exceeding a limit
"""

import argparse
import csv
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

import sb3_cpo
from safe_envs.tabular import Optimum, TabularCMDP, evaluate, random_cmdp, solve_cmdp, unroll
from safe_envs.tabular.vec_env import TabularVecEnv

FIXED_PENALTIES = (0.5, 0.8, 1.0, 1.25, 2.0)
"""In units of the optimal prices, which only the linear program knows: the search of a lucky tuner."""


class Result(NamedTuple):
    """All as shares: of the optimal return, of the limit."""

    returns: float
    of_range: float
    penalised: float
    costs: np.ndarray  # (n_costs,)
    last_returns: float
    last_costs: np.ndarray
    seconds: float


def policy_table(model: BaseAlgorithm, n_states: int) -> np.ndarray:
    """The action probabilities in every state, (n_states, n_actions)."""
    with th.no_grad():
        states = th.arange(n_states, device=model.device)
        probabilities = model.policy.get_distribution(states).distribution.probs  # type: ignore[operator]
    table = probabilities.double().cpu().numpy()
    return table / table.sum(axis=1, keepdims=True)


class PolicyTables(BaseCallback):
    """Keep the policy that collected each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[np.ndarray] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.tables.append(policy_table(self.model, self.training_env.get_attr("cmdp")[0].n_states))


def train(name: str, cmdp: TabularCMDP, args: argparse.Namespace, seed: int, **kwargs: Any) -> list[np.ndarray]:
    """Train one algorithm and return its policies, the initial one first."""
    env = TabularVecEnv(cmdp, args.n_envs, seed=seed)
    model = getattr(sb3_cpo, name)(
        "MlpPolicy",
        env,
        cost_limit=cmdp.cost_limit.tolist() if cmdp.n_costs > 1 else float(cmdp.cost_limit[0]),
        n_steps=args.n_steps,
        gamma=1.0,
        gae_lambda=args.gae_lambda,
        cost_gamma=1.0,
        cost_gae_lambda=args.gae_lambda,
        target_kl=args.target_kl,
        cg_damping=args.cg_damping,
        n_critic_updates=args.n_critic_updates,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        policy_kwargs={"net_arch": []},
        seed=seed,
        device="cpu",
        **kwargs,
    )
    recorder = PolicyTables()
    model.learn(args.n_updates * args.n_steps * args.n_envs, callback=recorder, log_interval=10**9)
    return [*recorder.tables, policy_table(model, cmdp.n_states)]


def judge(cmdp: TabularCMDP, optimum: Optimum, tables: list[np.ndarray], average: int, seconds: float) -> Result:
    """Evaluate the last policies of a run exactly."""
    least = solve_cmdp(replace(cmdp, rewards=-cmdp.rewards))
    assert least is not None
    least_return = -least.ep_rew_mean
    worths = [evaluate(cmdp, table) for table in tables[-average:]]
    returns = np.array([worth.ep_rew_mean for worth in worths])
    costs = np.array([worth.ep_cost_mean for worth in worths])
    penalised = returns - (costs - cmdp.cost_limit) @ optimum.nu
    span = optimum.ep_rew_mean - least_return
    return Result(
        returns=returns.mean() / optimum.ep_rew_mean,
        of_range=(returns.mean() - least_return) / span,
        penalised=(penalised.mean() - least_return) / span,
        costs=costs.mean(axis=0) / cmdp.cost_limit,
        last_returns=returns[-1] / optimum.ep_rew_mean,
        last_costs=costs[-1] / cmdp.cost_limit,
        seconds=seconds,
    )


def run(name: str, cmdp: TabularCMDP, optimum: Optimum, args: argparse.Namespace, seed: int) -> Result:
    """One algorithm on one problem; for FPO the best of several penalties."""
    variants: list[dict[str, Any]] = [{}]
    if name == "PDO":
        variants = [{"penalty_lr": args.penalty_lr}]
    if name == "FPO":
        variants = [{"penalty_coef": (factor * optimum.nu).tolist()} for factor in FIXED_PENALTIES]
    results = []
    for kwargs in variants:
        start = time.perf_counter()
        tables = train(name, cmdp, args, seed, **kwargs)
        results.append(judge(cmdp, optimum, tables, args.average, time.perf_counter() - start))
    feasible = [result for result in results if result.costs.max() <= 1 + args.tolerance]
    if feasible:
        return max(feasible, key=lambda result: result.returns)
    return min(results, key=lambda result: result.costs.max())


def is_passed(result: Result, args: argparse.Namespace) -> bool:
    """97 % of the return at no more than 103 % of any limit."""
    return bool(result.returns >= 0.97 and result.costs.max() <= 1 + args.tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["CPO"], choices=["CPO", "PDO", "FPO"])
    parser.add_argument("--n-problems", nargs=2, type=int, default=[10, 5], help="with one constraint, with two")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="seed of the first problem; training uses the problem's seed"
    )
    parser.add_argument("--n-states", type=int, default=5)
    parser.add_argument("--n-actions", type=int, default=3)
    parser.add_argument("--discount", type=float, default=0.9, help="1 - probability that an episode ends after a step")
    parser.add_argument("--horizon", type=int, help="episodes of so many steps instead, with the clock in the observation")
    parser.add_argument("--n-envs", type=int, default=256)
    parser.add_argument("--n-steps", type=int, default=80)
    parser.add_argument("--n-updates", type=int, default=100)
    parser.add_argument("--average", type=int, default=20, help="policies at the end of a run that are averaged")
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--target-kl", type=float, default=0.01)
    parser.add_argument("--cg-damping", type=float, default=1e-3)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--n-critic-updates", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--penalty-lr", type=float, default=0.05)
    parser.add_argument("--csv", help="write the table to this file too")
    args = parser.parse_args()
    th.set_num_threads(1)

    rows = []
    columns = f"{'m':>2} {'seed':>4} {'algorithm':>9} {'return':>7} {'of range':>8} {'penalised':>9} {'cost / limit':>17}"
    print(f"{columns} {'last return':>11} {'last cost':>17} {'price nu':>15} {'s':>5}  ok")
    for n_costs, n_problems in enumerate(args.n_problems, start=1):
        for seed in range(args.first_seed, args.first_seed + n_problems):
            cmdp = random_cmdp(np.random.default_rng(seed), args.n_states, args.n_actions, n_costs, args.discount)
            if args.horizon:
                # The limits of the discounted problem, in proportion to the number of steps.
                scale = args.horizon * (1 - args.discount)
                cmdp = unroll(replace(cmdp, gamma=1.0, cost_limit=scale * cmdp.cost_limit), args.horizon)
            optimum = solve_cmdp(cmdp)
            if optimum is None:
                print(f"{n_costs:>2} {seed:>4}  no policy respects the limits")
                continue
            for name in args.algorithms:
                result = run(name, cmdp, optimum, args, seed)
                passed = is_passed(result, args)
                print(
                    f"{n_costs:>2} {seed:>4} {name:>9} {result.returns:>7.1%} {result.of_range:>8.1%} "
                    f"{result.penalised:>9.1%} {shares(result.costs):>17} {result.last_returns:>11.1%} "
                    f"{shares(result.last_costs):>17} {' '.join(f'{price:.2f}' for price in optimum.nu):>15} "
                    f"{result.seconds:>5.0f}  {'yes' if passed else 'NO'}",
                    flush=True,
                )
                rows.append({"n_costs": n_costs, "seed": seed, "algorithm": name, "passed": passed, **result._asdict()})
    for name in args.algorithms:
        ours = [row for row in rows if row["algorithm"] == name]
        mean_return, mean_penalised = (np.mean([row[key] for row in ours]) for key in ("returns", "penalised"))
        print(
            f"{name}: {sum(row['passed'] for row in ours)} of {len(ours)} reach 97 % of the return within "
            f"{args.tolerance:.0%} of the limits; mean return {mean_return:.1%}, penalised {mean_penalised:.1%} of range, "
            f"worst cost {max(row['costs'].max() for row in ours):.1%} of its limit"
        )
    if args.csv and rows:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def shares(values: np.ndarray) -> str:
    return " ".join(f"{value:.1%}" for value in values)


if __name__ == "__main__":
    main()
