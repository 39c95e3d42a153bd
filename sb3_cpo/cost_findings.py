"""What the costs of random episodes are like, and what to think of them; for ``check_cost_env``."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_cpo.cost_env_report import CostEnvReport, CostSummary
from sb3_cpo.mistakes import is_running_total


class Episode(NamedTuple):
    """Costs of the steps of an episode by name; a name that is missing was not mentioned in that step."""

    steps: list[dict[str, float]]
    terminated: bool
    truncated: bool


def report_on(
    ended: Sequence[Episode],
    unfinished: Sequence[Episode],
    problems: Sequence[str],
    *,
    name: str,
    n_envs: int,
    max_episode_steps: int | None,
    cost_limit: Any,
    must_be_there: Sequence[str],
    other_keys: Mapping[str, bool],
) -> CostEnvReport:
    """
    Work out what episodes say.

    :param problems: what is known to be wrong already
    :param cost_limit: the environment's own, a number, a sequence or a mapping; None: none
    :param must_be_there: names of costs that somebody has asked for
    :param other_keys: the other keys of ``info``, and whether they hold a number
    """
    problems, remarks = list(problems), list[str]()
    everything = [*ended, *unfinished]
    n_steps = sum(len(episode.steps) for episode in everything)
    names = sorted({key for episode in everything for step in episode.steps for key in step}, key=_natural_order)
    costs = tuple(_summarise(key, ended, everything, _limit_of(key, cost_limit)) for key in names)
    if n_steps and not costs:
        problems.append(_no_cost_text(other_keys))
    for key in must_be_there:
        if costs and key not in names and f"{key}[0]" not in names:
            problems.append(f"no step's info has {key!r}, which is to be limited; it has {', '.join(map(repr, names))}")
    for cost in costs:
        for to, text in _doubts(cost, len(ended)):
            (problems if to == "problem" else remarks).append(text)
    if n_steps and not ended:
        problems.append(
            f"no episode ended in {n_steps} steps: without an end there is no cost of an episode. Give it a time limit, "
            "gymnasium.wrappers.TimeLimit(env, max_episode_steps)"
        )
    elif unfinished and sum(len(episode.steps) for episode in unfinished) > n_steps / 2:
        remarks.append(
            f"{len(unfinished)} episodes had not ended when the check stopped: the numbers are of the short ones (max_steps)"
        )
    return CostEnvReport(
        name=name,
        n_envs=n_envs,
        lengths=np.array([len(episode.steps) for episode in ended], dtype=np.int64),
        n_terminated=sum(episode.terminated for episode in ended),
        n_unfinished=len(unfinished),
        n_steps_played=n_steps,
        max_episode_steps=max_episode_steps,
        costs=costs,
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _natural_order(name: str) -> tuple[str, int]:
    key, _, index = name.partition("[")
    return key, int(index.rstrip("]")) if index else -1


def _limit_of(name: str, cost_limit: Any) -> float | None:
    key, index = _natural_order(name)
    if isinstance(cost_limit, Mapping):
        value = cost_limit.get(key)
    elif key != "cost" or cost_limit is None:
        value = None
    else:
        value = dict(enumerate(np.ravel(cost_limit))).get(max(index, 0))
    return None if value is None or callable(value) else float(value)


def _summarise(name: str, ended: Sequence[Episode], everything: Sequence[Episode], limit: float | None) -> CostSummary:
    """What is not mentioned counts as 0 in the sums."""
    steps = [np.array([step.get(name, 0.0) for step in episode.steps]) for episode in everything]
    values = np.concatenate(steps)
    n_mentioned = sum(name in step for episode in everything for step in episode.steps)
    not_last = np.concatenate([costs[:-1] for costs in steps[: len(ended)]] + steps[len(ended) :])
    return CostSummary(
        name=name,
        episode_costs=np.array([costs.sum() for costs in steps[: len(ended)]]),
        lowest=float(values.min()),
        highest=float(values.max()),
        mentioned_share=n_mentioned / len(values),
        nonzero_share=float(np.mean(values != 0)),
        is_cumulative=is_running_total(steps),
        is_constant=bool(np.ptp(values) == 0),
        is_terminal=bool(len(ended) and len(not_last) and not not_last.any() and values.any()),
        registered_limit=limit,
    )


def _doubts(cost: CostSummary, n_episodes: int) -> list[tuple[str, str]]:
    """Texts, each a "problem" or a "remark"."""
    key, bracket, index = cost.name.partition("[")
    place = f"info[{key!r}]{bracket}{index}"
    found: list[tuple[str, str]] = []
    if cost.mentioned_share < 1:
        found.append(
            (
                "problem",
                f"{place} is in {cost.mentioned_share:.1%} of the steps only, and a step without it stops the training: say 0 "
                "in the others, or pass missing_cost='zero' to the algorithm",
            )
        )
    if cost.is_cumulative:
        found.append(
            (
                "problem",
                f"{place} never falls within an episode, as a running total does not: the limit bounds the sum over "
                f"the steps, which counts it again and again. CostWrapper(env, total_key={key!r}) makes it a cost per step",
            )
        )
    if cost.lowest < 0:
        found.append(
            (
                "remark",
                f"{place} is negative in some steps ({cost.lowest:g} at the lowest): what is saved there pays for costs "
                "elsewhere in the episode, and cost shaping counts positive costs only",
            )
        )
    if cost.is_constant and cost.highest == 0:
        found.append(
            (
                "remark",
                f"{place} is always 0: random play never pays. It may be that only a trained agent gets there (train TRPO, "
                "and look at rollout/ep_cost_mean), or that the cost is not computed",
            )
        )
    elif cost.is_constant:
        found.append(("remark", f"{place} is {cost.highest:g} in every step: only the length of an episode changes its cost"))
    elif n_episodes > 1 and np.ptp(cost.episode_costs) == 0 and not cost.is_terminal:
        found.append(
            (
                "remark",
                f"every episode costs {cost.mean:g} in {place}: perhaps no action changes it, and then no training does",
            )
        )
    if cost.is_terminal and n_episodes:
        share = float(np.mean(cost.episode_costs != 0))
        found.append(
            (
                "remark",
                f"{place} is there in the last step of an episode only, in {share:.0%} of the episodes: a limit on "
                "it is one on the share of the episodes that end so, and small ones need many episodes",
            )
        )
    return found


def _no_cost_text(other_keys: Mapping[str, bool]) -> str:
    numbers = [key for key, is_number in other_keys.items() if is_number]
    named = [key for key in other_keys if key.startswith("cost_")]
    if named:
        there = (
            f"{', '.join(map(repr, named))} {'is' if len(named) == 1 else 'are'} no single number. Look at one with "
            f"check_cost_env(env, cost_keys=[{named[0]!r}]), "
        )
    elif numbers:
        there = f"It has the numbers {', '.join(map(repr, numbers[:10]))}: name one, cost_limit={{{numbers[0]!r}: limit}}, or "
    else:
        there = f"It has the keys {', '.join(map(repr, other_keys))}: " if other_keys else "It is empty: "
    return (
        "no step's info holds a cost ('cost', or a key that begins with 'cost_'). " + there + "put the cost of the step into "
        "info['cost'], or wrap the environment in safe_envs.CostWrapper(env, function)"
    )
