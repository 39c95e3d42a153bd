"""A safety report as Markdown, JSON and histograms (extra: report)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from sb3_cpo.constraint_report import ConstraintReport
    from sb3_cpo.safety_report import PolicyReport, SafetyReport

PICTURE = "costs.png"
COLORS = {"stochastic": "C0", "deterministic": "C1"}


def verdict_text(report: "PolicyReport | ConstraintReport") -> str:
    """ "satisfied", "not satisfied", or "inconclusive" with what would decide."""
    if report.verdict != "inconclusive":
        return report.verdict
    if report.n_more_episodes is None:
        return "inconclusive (the mean is so near the limit that more than 100,000 episodes would be needed)"
    episodes = "episode" if report.n_more_episodes == 1 else "episodes"
    return f"inconclusive (about {report.n_more_episodes:,} more {episodes} needed)"


# ---------------------------------------------------------------- Markdown


def to_markdown(report: "SafetyReport", heading: str = "#") -> str:
    """
    :param heading: mark of the uppermost heading
    """
    level = f"{1 - report.alpha:.0%}"
    first = report.policies[0]
    lines = [
        f"{heading} Safety report: {report.algorithm} on {report.env_id}",
        "",
        f"**{verdict_text(first).capitalize()}**, judged by {len(first.seeds)} fresh episodes of the {first.policy} policy "
        f"(seeds {first.seeds[0]} to {first.seeds[-1]}), at a confidence of {level}."
        + (f" Costs are discounted by {report.cost_gamma:g} per step." if report.cost_gamma < 1 else ""),
        "",
    ]
    for policy in report.policies:
        lines += [f"{heading}# The {policy.policy} policy: {verdict_text(policy)}", "", *_policy_table(policy, level), ""]
        lines += [f"- {text}" for text in _notes(policy)] + [""]
    lines += [f"![Costs of the episodes, and the limits]({PICTURE})", ""]
    lines += [f"{heading}# What training cost", "", *_training_lines(report), ""]
    lines += [f"{heading}# How it was made", "", *_provenance_lines(report)]
    return "\n".join(lines) + "\n"


def _policy_table(policy: "PolicyReport", level: str) -> list[str]:
    constraints = policy.constraints
    rows: list[tuple[str, list[str]]] = [
        ("limit on the mean cost of an episode", [f"{one.limit:g}" for one in constraints]),
        ("**verdict**", [f"**{verdict_text(one)}**" for one in constraints]),
        ("mean cost of an episode", [f"{one.mean:.4g}" for one in constraints]),
        (f"its upper bound, {level} (Student's t)", [f"{one.t_upper:.4g}" for one in constraints]),
    ]
    if any(one.exact_upper is not None for one in constraints):
        texts = ["–" if one.exact_upper is None else f"{one.exact_upper:.4g}" for one in constraints]
        rows.append((f"its upper bound, {level} (betting, exact)", texts))
    rows += [
        ("episodes over the limit", [f"{one.n_exceeding} of {one.n_episodes} ({one.exceedance:.1%})" for one in constraints]),
        (f"P(episode over the limit), upper bound, {level}", [f"{one.exceedance_upper:.1%}" for one in constraints]),
        ("standard deviation of an episode's cost", [f"{one.std:.4g}" for one in constraints]),
        *(
            (
                f"{quantile:.0%} quantile" if quantile != 0.5 else "median",
                [f"{one.quantiles[quantile]:.4g}" for one in constraints],
            )
            for quantile in constraints[0].quantiles
        ),
        ("mean of the worst 5 % (CVaR 95)", [f"{one.cvar_95:.4g}" for one in constraints]),
        ("worst episode", [f"{one.worst_cost:.4g} (seed {one.worst_seed})" for one in constraints]),
    ]
    lines = [f"| | {' | '.join(one.name for one in constraints)} |", f"|---|{'---|' * len(constraints)}"]
    return lines + [f"| {name} | {' | '.join(texts)} |" for name, texts in rows]


def _notes(policy: "PolicyReport") -> list[str]:
    returns, lengths = policy.returns, policy.lengths
    notes = [
        f"Return {np.mean(returns):.4g} ± {np.std(returns):.3g} (standard deviation over episodes), "
        f"{np.mean(lengths):.4g} steps per episode."
    ]
    for one in policy.constraints:
        notes.append(f"Verdict on {one.name}: the mean lies between {one.lower:.4g} and {one.upper:.4g} by {one.method}.")
    return notes


def _training_lines(report: "SafetyReport") -> list[str]:
    record = report.training
    if record is None:
        return ["Not known: neither the model nor a folder of its run has counted (`training_folder`)."]
    lines = ["| | " + " | ".join(one.name for one in report.policies[0].constraints) + " |"]
    lines.append(f"|---|{'---|' * len(record.cumulative_cost)}")
    rows = [
        ("cumulative cost", record.cumulative_cost, "{:.4g}"),
        ("cost per step", record.cumulative_cost / max(record.n_steps, 1), "{:.3g}"),
    ]
    if record.cost_regret is not None:
        rows.append(("cost regret: sum over updates of what J exceeded the limit by", record.cost_regret, "{:.4g}"))
    if record.violation_rate is not None:
        rows.append(
            (f"share of {'updates' if record.n_updates else 'episodes'} over the limit", record.violation_rate, "{:.1%}")
        )
    lines += [f"| {name} | {' | '.join(form.format(value) for value in values)} |" for name, values, form in rows]
    n_updates = f", {record.n_updates:,} updates" if record.n_updates else ""
    return [*lines, "", f"{record.n_steps:,} steps{n_updates}; counted by {record.source}."]


def _provenance_lines(report: "SafetyReport") -> list[str]:
    return [
        f"- Command: `{report.command}`",
        f"- Date: {report.date}",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in report.versions.items())}",
        *(f"- SHA-256 of the {what}: `{digest}`" for what, digest in report.hashes.items()),
        "",
        "The episodes were seeded one by one, environment and policy both, apart from the seeds of training; "
        "`sb3_cpo.replay_episode` with its seed reproduces one. The bounds are one-sided, and hold for the environment that "
        'was played and for no other. "Satisfied": the upper bound on the mean cost is within the limit; "not satisfied": '
        "the lower bound is beyond it.",
    ]


# ---------------------------------------------------------------- JSON


def to_dict(report: "SafetyReport") -> dict[str, Any]:
    """In JSON's types."""
    return _plain(
        {
            "verdict": report.verdict,
            "environment": report.env_id,
            "algorithm": report.algorithm,
            "alpha": report.alpha,
            "cost_gamma": report.cost_gamma,
            "policies": {policy.policy: _policy_dict(policy) for policy in report.policies},
            "training": None if report.training is None else report.training._asdict(),
            "versions": report.versions,
            "sha256": report.hashes,
            "command": report.command,
            "date": report.date,
        }
    )


def _policy_dict(policy: "PolicyReport") -> dict[str, Any]:
    return {
        "verdict": policy.verdict,
        "n_more_episodes": policy.n_more_episodes,
        "mean_return": np.mean(policy.returns),
        "constraints": [{**vars(one), "exceedance": one.exceedance} for one in policy.constraints],
        "episodes": {
            "seeds": policy.seeds,
            "returns": policy.returns,
            "lengths": policy.lengths,
            "costs": policy.costs,
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {f"{key:g}" if isinstance(key, float) else str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    # JSON knows neither NaN nor infinity
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ---------------------------------------------------------------- picture and files


def draw(report: "SafetyReport") -> Figure:
    """A histogram per constraint: costs of the episodes of each policy, the limit, and the bounds on the means."""
    names = [one.name for one in report.policies[0].constraints]
    figure = Figure(figsize=(10, 1.0 + 2.8 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        limit = report.policies[0].constraints[index].limit
        costs = {policy.policy: policy.costs[:, index] for policy in report.policies}
        everything = np.concatenate([*costs.values(), [limit]])
        # A bin for each number, where costs are counted
        is_counted = bool((everything[:-1] == np.round(everything[:-1])).all()) and np.ptp(everything) <= 60
        bins: Any = np.arange(np.floor(everything.min()) - 0.5, everything.max() + 1) if is_counted else 30
        edges = np.histogram_bin_edges(everything, bins)
        labels = [f"{policy.policy}, {len(policy.seeds)} episodes" for policy in report.policies]
        colors = [COLORS[policy.policy] for policy in report.policies]
        axis.hist(list(costs.values()), edges, color=colors, alpha=0.6, label=labels, rwidth=0.9)
        if is_counted:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.axvline(limit, color="black", linestyle="--", linewidth=1.5, label=f"limit {limit:g}")
        # The means and their bounds above the bars
        axis.margins(y=0.15 + 0.1 * len(report.policies))
        for row, (policy, color) in enumerate(zip(report.policies, colors, strict=True)):
            _draw_bound(axis, policy.constraints[index], policy.policy, color, 0.95 - 0.08 * row)
        axis.set(xlabel=f"{name} of an episode" if name != "cost" else "cost of an episode", ylabel="episodes")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{report.algorithm} on {report.env_id}: {report.verdict}")
    return figure


def _draw_bound(axis: Any, one: "ConstraintReport", policy: str, color: str, height: float) -> None:
    """From the mean to its upper bound; with an arrow where that is beyond the costs that were seen."""
    left, right = axis.get_xlim()
    is_in_view = one.upper <= right
    where = {"color": color, "transform": axis.get_xaxis_transform(), "clip_on": False}
    axis.plot([one.mean, min(one.upper, right)], [height] * 2, linewidth=2, **where)
    axis.plot(min(one.upper, right), height, marker="|" if is_in_view else ">", markersize=9 if is_in_view else 6, **where)
    label = f"{policy}: mean {one.mean:.4g}, at most {one.upper:.4g}"
    axis.plot(one.mean, height, marker="o", linewidth=2, label=label, **where)
    axis.set_xlim(left, right)


def save(report: "SafetyReport", folder: Path) -> Path:
    """Report, numbers and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(to_dict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw(report).savefig(folder / PICTURE, dpi=120)
    return folder
