"""``sb3-cpo report``: a safety report of a trained agent."""

import argparse
import shlex
import sys
from pathlib import Path

import gymnasium as gym

# Says what to install where scipy is missing
import sb3_cpo.constraint_report
import sb3_cpo.zoo  # noqa: F401  (our algorithms in rl_zoo3's tables)
from sb3_cpo import safety_report
from sb3_cpo.cost_limits import read_limits
from sb3_cpo.cost_signal import MissingCost
from sb3_cpo.report_rendering import verdict_text
from sb3_cpo.zoo.agents import add_options, load_model, open_agent
from sb3_cpo.zoo.arguments import COST_OPTION, is_mistake

DESCRIPTION = """\
Play fresh episodes of a trained agent, and report with which confidence it satisfies its limits: bounds on the mean cost of an
episode and on the probability that one exceeds the limit, quantiles, the worst episode with the seed that reproduces it, and
what training cost. The verdict is satisfied, not satisfied, or inconclusive, with the number of episodes that would decide.

The agent is one of the zoo's (--algo, --env, --exp-id, --load-best, ...), or a file that model.save wrote (--model).
"""

EXAMPLES = """\
examples:
  the last model of the last run; report.md, report.json and costs.png go beside it
      %(prog)s --algo cpo --env SafePointCircle-v0
  the best feasible model, 500 episodes, an exact bound: an episode of 65 steps costs at most 65
      %(prog)s --algo cpo --env SafePointCircle-v0 --load-best -n 500 --max-episode-cost 65
  a model of your own, of SB3's PPO, with named limits; and a model card for the Hugging Face Hub (nothing is uploaded)
      %(prog)s --algo ppo --env MyEnv-v0 --model ppo.zip --cost-limit cost_speed:25 cost_energy:300 --model-card card
"""


def main(args: list[str] | None = None, prog: str = "sb3-cpo report") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("-n", "--n-episodes", type=int, default=100, help="episodes of each policy (default: 100)")
    parser.add_argument("--alpha", type=float, default=0.05, help="probability of error of each bound (default: 0.05)")
    parser.add_argument("--cost-limit", nargs="+", metavar="LIMIT", help="a number, or name:number (default: the model's own)")
    parser.add_argument(
        "--max-episode-cost", nargs="+", metavar="COST", help="what an episode costs at most, as a limit: bounds become exact"
    )
    parser.add_argument("--policy", choices=["both", "stochastic", "deterministic"], default="both", help="(default: both)")
    parser.add_argument("--seed", type=int, help="seed of the first episode (default: a million)")
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: beside the model)")
    parser.add_argument(
        "--model-card", type=Path, metavar="FOLDER", help="also write a Hugging Face model card, with the model"
    )
    parser.add_argument("--license", help="of the model, for its card")
    options = parser.parse_args(args)
    try:
        cost_limit, max_episode_cost = read_limits(options.cost_limit), read_limits(options.max_episode_cost)
        agent = open_agent(options)
        report = safety_report(
            load_model(options, agent),
            agent.env,
            options.n_episodes,
            cost_limit=cost_limit,
            alpha=options.alpha,
            max_episode_cost=max_episode_cost,
            policies=["stochastic", "deterministic"] if options.policy == "both" else [options.policy],
            seed=options.seed,
            model_path=agent.model_path,
            training_folder=agent.folder,
            command=shlex.join([*prog.split(), *(sys.argv[1:] if args is None else args)]),
            progress_bar=sys.stderr.isatty(),
        )
    except MissingCost as error:
        sys.exit(f"{error}\n{COST_OPTION}")
    except (AssertionError, ValueError, TypeError, gym.error.Error) as error:
        if is_mistake(error):
            parser.error(str(error))
        raise
    agent.env.close()
    folder = report.save(options.output or agent.folder / f"report-{agent.name}")
    for policy in report.policies:
        for one in policy.constraints:
            print(
                f"{policy.policy} policy, {one.name}: mean {one.mean:.4g}, at most {one.upper:.4g} with confidence "
                f"{1 - report.alpha:.0%}; limit {one.limit:g}: {verdict_text(one)}"
            )
    print(f"Report: {folder / 'report.md'}")
    if options.model_card is not None:
        print(f"Model card: {report.save_model_card(options.model_card, options.license) / 'README.md'}")


if __name__ == "__main__":
    main()
