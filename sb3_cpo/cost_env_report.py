"""What random episodes have shown of an environment's costs, as an object and as a text; what ``check_cost_env`` returns."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sb3_cpo.defaults import MIN_EPISODES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# A rollout should know the mean cost of an episode to this share of the limit
RELATIVE_ERROR = 0.2
# Copies for which n_steps is worked out
MANY_COPIES = 8


class CostSummary(NamedTuple):
    """One cost in random episodes."""

    name: str
    """Key of ``info``; ``cost[0]``, ``cost[1]``, ... where it holds an array."""
    episode_costs: np.ndarray
    """(n_episodes,) sums over the steps of the episodes that ended."""
    lowest: float
    """Of a step."""
    highest: float
    """Of a step."""
    mentioned_share: float
    """Share of the steps whose ``info`` has it."""
    nonzero_share: float
    """Share of the steps in which it is not 0."""
    is_cumulative: bool
    """Whether it looks like a running total instead of the cost of a step."""
    is_constant: bool
    """Whether it is the same in every step."""
    is_terminal: bool
    """Whether it is not 0 in the last steps of episodes only."""
    registered_limit: float | None
    """What the environment's own ``cost_limit`` says."""

    @property
    def mean(self) -> float:
        """Of an episode's cost; NaN where no episode ended."""
        return float(np.mean(self.episode_costs)) if len(self.episode_costs) else math.nan

    @property
    def std(self) -> float:
        """Of an episode's cost; NaN where no episode ended."""
        return float(np.std(self.episode_costs)) if len(self.episode_costs) else math.nan

    @property
    def quantiles(self) -> dict[float, float]:
        """Of an episode's cost; empty where no episode ended."""
        if not len(self.episode_costs):
            return {}
        return dict(zip(QUANTILES, np.quantile(self.episode_costs, QUANTILES).tolist(), strict=True))

    @property
    def suggested_limit(self) -> float | None:
        """
        The environment's own limit, else half of what random play costs; None: random play costs nothing, or sums of a running
        total, which no limit is for.
        """
        if self.registered_limit is not None:
            return self.registered_limit
        if not np.isfinite(self.mean) or self.mean == 0 or self.is_cumulative:
            return None
        half = self.mean - abs(self.mean) / 2
        return float(f"{half:.2g}")

    @property
    def n_episodes_needed(self) -> int:
        """Episodes in a rollout whose mean has a standard error of a fifth of the limit; 20 at least."""
        limit = self.suggested_limit
        if limit is None or limit == 0 or not np.isfinite(self.std):
            return MIN_EPISODES
        if set(np.unique(self.episode_costs)) <= {0.0, 1.0} and 0 < limit < 1:
            # The limit is a probability
            spread = math.sqrt(limit * (1 - limit))
        else:
            # Sums of rare costs spread as the root of their mean
            spread = self.std * min(1.0, math.sqrt(abs(limit / self.mean))) if self.mean else self.std
        return max(MIN_EPISODES, math.ceil(round((spread / (RELATIVE_ERROR * abs(limit))) ** 2, 6)))


@dataclass(frozen=True, repr=False)
class CostEnvReport:
    """What :func:`sb3_cpo.check_cost_env` has found; ``print`` it."""

    name: str
    n_envs: int
    lengths: np.ndarray
    """(n_episodes,) of the episodes that ended."""
    n_terminated: int
    n_unfinished: int
    """Episodes that had not ended when the check stopped."""
    n_steps_played: int
    max_episode_steps: int | None
    costs: tuple[CostSummary, ...]
    problems: tuple[str, ...]
    """What would stop a training, or spoil it."""
    remarks: tuple[str, ...]
    """What is worth knowing."""

    @property
    def is_ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def n_episodes(self) -> int:
        """Episodes that ended."""
        return len(self.lengths)

    @property
    def suggested_limit(self) -> dict[str, float]:
        """Name of the cost -> a limit worth trying; without those that random play does not pay."""
        limits = {cost.name: cost.suggested_limit for cost in self.costs}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def suggested_n_steps(self) -> int | None:
        """``n_steps`` of each copy, for as many copies as were checked; None: no episode ended."""
        return self.n_steps_for(self.n_envs)

    def n_steps_for(self, n_envs: int) -> int | None:
        """``n_steps`` that gives a rollout the episodes which the suggested limits need: whole episodes of each copy."""
        if not self.n_episodes:
            return None
        n_episodes = max(
            (cost.n_episodes_needed for cost in self.costs if cost.suggested_limit is not None), default=MIN_EPISODES
        )
        n_steps = n_episodes * float(np.mean(self.lengths)) / n_envs
        # Where all episodes are equally long, no copy should end in the middle of one; else, two digits are enough
        is_fixed = np.ptp(self.lengths) == 0
        unit = int(self.lengths[0]) if is_fixed else 10 ** max(0, math.floor(math.log10(n_steps)) - 1)
        return unit * math.ceil(n_steps / unit)

    def __repr__(self) -> str:
        return f"<CostEnvReport of {self.name}: {self.n_episodes} episodes, {len(self.problems)} problems>"

    def __str__(self) -> str:
        lines = [f"Costs of {self.name}, random actions", f"  episodes     {_episodes_text(self)}"]
        for cost in self.costs:
            lines += _cost_text(cost)
        if self.suggested_limit and self.n_episodes:
            lines += _suggestion_text(self)
        for title, texts in (("problems", self.problems), ("remarks", self.remarks)):
            lines += [f"  {title if index == 0 else '':12} - {text}" for index, text in enumerate(texts)]
        if self.is_ok:
            lines.append("  No problems found")
        return "\n".join(lines)


def _episodes_text(report: CostEnvReport) -> str:
    limit = "no time limit known" if report.max_episode_steps is None else f"time limit {report.max_episode_steps}"
    if not report.n_episodes:
        return f"none ended in {report.n_steps_played} steps; {limit}"
    lengths = report.lengths
    length = f"{lengths.mean():.1f} steps on average ({lengths.min()} to {lengths.max()})"
    return (
        f"{report.n_episodes}, of {length}; {report.n_terminated} terminated, "
        f"{report.n_episodes - report.n_terminated} ended by time; {limit}"
    )


def _cost_text(cost: CostSummary) -> list[str]:
    steps = f"{cost.lowest:g} to {cost.highest:g} in a step, not 0 in {cost.nonzero_share:.1%} of them"
    lines = [f"  {cost.name:12} {steps}"]
    if len(cost.episode_costs):
        quantiles = ", ".join(f"{level:.0%} {value:.4g}" for level, value in cost.quantiles.items())
        lines.append(f"  {'':12} an episode costs {cost.mean:.4g} on average (standard deviation {cost.std:.3g})")
        lines.append(f"  {'':12} quantiles: {quantiles}; largest {cost.episode_costs.max():.4g}")
    return lines


def _suggestion_text(report: CostEnvReport) -> list[str]:
    limits = report.suggested_limit
    names = list(limits)
    if names == ["cost"]:
        argument = f"{limits['cost']:g}"
    elif all(name.startswith("cost[") for name in names):
        argument = f"[{', '.join(f'{limit:g}' for limit in limits.values())}]"
    else:
        argument = f"{{{', '.join(f'{name!r}: {limit:g}' for name, limit in limits.items())}}}"
    is_own = all(cost.registered_limit is not None for cost in report.costs if cost.name in limits)
    is_saving = any(cost.mean < 0 for cost in report.costs if cost.name in limits)
    half = "what random play costs, less half of its size" if is_saving else "half of what random play costs"
    reason = "the environment's own" if is_own else half
    steps = [f"n_steps={report.suggested_n_steps}" + (f" of each of {report.n_envs} copies" if report.n_envs > 1 else "")]
    if report.n_envs == 1:
        steps.append(f"or {report.n_steps_for(MANY_COPIES)} of each of {MANY_COPIES} copies")
    n_episodes = max(cost.n_episodes_needed for cost in report.costs if cost.name in limits)
    return [
        f"  {'try':12} cost_limit={argument} ({reason})",
        f"  {'':12} {', '.join(steps)}: {n_episodes} episodes in a rollout, for a mean cost known to a fifth of the limit",
    ]
