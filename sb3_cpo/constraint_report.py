"""One constraint in a safety report: its numbers, from the episodes of one policy (extra: report)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sb3_cpo.cost_bounds import (
    Interval,
    Verdict,
    betting_interval,
    conditional_value_at_risk,
    episodes_to_decide,
    exceedance_bound,
    judge,
    t_interval,
)
from sb3_cpo.cost_limits import exceeds
from sb3_cpo.seeded_episodes import SeededEpisode

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ConstraintReport:
    """What episodes say about one constraint. Bounds hold with probability ``1 - alpha`` each."""

    name: str
    limit: float
    n_episodes: int
    mean: float
    std: float
    """Of an episode's cost."""
    t_upper: float
    """Upper bound on the mean by Student's t, approximate."""
    exact_upper: float | None
    """Upper bound on the mean by betting; None: what an episode costs at most is not known."""
    lower: float
    """Bounds by which the verdict was found. The lower one holds for all constraints together."""
    upper: float
    method: str
    """How these two were found."""
    n_exceeding: int
    """Episodes over the limit."""
    exceedance_upper: float
    """Upper bound on the probability that an episode exceeds the limit (Clopper-Pearson)."""
    quantiles: dict[float, float]
    cvar_95: float
    """Mean cost of the most expensive 5 % of the episodes."""
    worst_cost: float
    worst_seed: int
    """Seed of the most expensive episode."""
    verdict: Verdict
    n_more_episodes: int | None
    """About as many more would decide; 0: it is decided; None: more than 100,000."""

    @property
    def exceedance(self) -> float:
        """Share of the episodes over the limit."""
        return self.n_exceeding / self.n_episodes


def report_constraint(
    episodes: Sequence[SeededEpisode],
    index: int,
    name: str,
    limit: float,
    alpha: float,
    n_constraints: int,
    largest: float | None,
    time_limit: int | None,
) -> ConstraintReport:
    """
    :param index: number of the constraint
    :param alpha: probability of error
    :param n_constraints: that are judged together. All are satisfied if each is; to say so wrongly takes an error in the
        one that is not. But any of them may be found beyond its limit wrongly, so that lower bounds share ``alpha``
    :param largest: what an episode costs at most; None: not known
    :param time_limit: steps of an episode; None: not known
    """
    costs = np.array([episode.costs[index] for episode in episodes])
    alpha_lower = alpha / n_constraints
    exact = None if largest is None else betting_interval(costs, alpha_lower, alpha, largest)
    method, interval_of = _choose(episodes, costs, index, alpha_lower, alpha, largest, time_limit)
    interval = interval_of(costs)
    verdict = judge(interval, limit)
    n_in_all = episodes_to_decide(costs, limit, interval_of)
    worst = int(np.argmax(costs))
    n_exceeding = int(np.sum(exceeds(costs, limit)))
    return ConstraintReport(
        name=name,
        limit=float(limit),
        n_episodes=len(costs),
        mean=float(np.mean(costs)),
        std=float(np.std(costs, ddof=1)),
        t_upper=t_interval(costs, alpha_lower, alpha).upper,
        exact_upper=None if exact is None else exact.upper,
        lower=interval.lower,
        upper=interval.upper,
        method=method,
        n_exceeding=n_exceeding,
        exceedance_upper=exceedance_bound(n_exceeding, len(costs), alpha),
        quantiles=dict(zip(QUANTILES, np.quantile(costs, QUANTILES).tolist(), strict=True)),
        cvar_95=conditional_value_at_risk(costs),
        worst_cost=float(costs[worst]),
        worst_seed=episodes[worst].seed,
        verdict=verdict,
        n_more_episodes=None if n_in_all is None else n_in_all - len(costs),
    )


def _choose(
    episodes: Sequence[SeededEpisode],
    costs: np.ndarray,
    index: int,
    alpha_lower: float,
    alpha_upper: float,
    largest: float | None,
    time_limit: int | None,
) -> tuple[str, Callable[[np.ndarray], Interval]]:
    """
    How the mean is bounded.

    Where all costs are equal, t would find no doubt in them, and ten episodes without a fall would prove that nobody falls.
    There, every step is taken to cost at most what the most expensive one has cost, 1 if none has cost anything. Only where
    whole episodes are the same, returns and lengths too, is there nothing random left to doubt.
    """
    if largest is not None:
        bound = largest
        return f"betting, exact for costs in [0, {bound:g}]", lambda c: betting_interval(c, alpha_lower, alpha_upper, bound)
    is_equal = bool(np.ptp(costs) == 0)
    if not is_equal:
        return "Student's t, approximate", lambda c: t_interval(c, alpha_lower, alpha_upper)
    if len({(episode.reward, episode.length) for episode in episodes}) == 1:
        return "none: all episodes are the same", lambda c: Interval(float(c[0]), float(c[0]))
    n_steps = time_limit or max(episode.length for episode in episodes)
    of_a_step = max(float(max(episode.largest_costs[index] for episode in episodes)), 0.0) or 1.0
    assumed = max(n_steps * of_a_step, float(costs[0]))
    if costs[0] < 0:
        return "Student's t, approximate", lambda c: t_interval(c, alpha_lower, alpha_upper)
    return (
        f"betting, if no episode costs more than {assumed:g} (all cost the same, which is no proof that none costs more)",
        lambda c: betting_interval(c, alpha_lower, alpha_upper, assumed),
    )
