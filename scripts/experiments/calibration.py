"""Predicted against actual changes of the cost: does what an update expects come true?"""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

PREDICTED, ACTUAL = "train/predicted_cost_change", "train/actual_cost_change"


def slope_without_noise(rows: pd.DataFrame) -> float:
    """
    The slope that the actual changes would have on the predicted ones if J were known without error.

    An estimate of J that is too high by its noise e makes the update predict more, and lets the next estimate fall by e: the
    plain slope counts this fall as a prediction that came true. Here cov(predicted, e) is taken out: the variance of e, times
    how much the prediction answers to the estimate at the same margin (Stein's lemma: cov(f(J + e), e) = var(e) E f' for
    normal e).

    :param rows: of SB3's log, one per update
    """
    if "rollout/ep_shaped_cost_mean" in rows:
        return np.nan  # predicted and actual are of the shaped cost, whose error is not logged
    columns = {
        "predicted": rows[PREDICTED],
        "actual": rows[ACTUAL],
        "error": rows["rollout/ep_cost_std_error"].shift(),
        "estimate": rows["rollout/ep_cost_mean"].shift(),
    }
    if "train/cost_margin" in rows:
        # A row shows the margin after its update
        columns["margin"] = rows["train/cost_margin"].shift()
    known = pd.DataFrame(columns).dropna()
    noise_variance = (known.pop("error") ** 2).mean()
    known -= known.mean()
    predicted, actual = known.pop("predicted"), known.pop("actual")
    answer = np.linalg.lstsq(known, predicted)[0][0]
    return ((predicted * actual).mean() + answer * noise_variance) / (predicted**2).mean()


def draw_calibration(groups: dict[str, pd.DataFrame], path: Path) -> None:
    """
    Actual against predicted changes of J, one panel per group.

    :param groups: title -> rows of SB3's log
    """
    figure, axes = plt.subplots(1, len(groups), figsize=(4.5 * len(groups), 4.2), layout="constrained", squeeze=False)
    for axis, (title, rows) in zip(axes[0], groups.items(), strict=True):
        known = rows[[PREDICTED, ACTUAL]].dropna()
        axis.scatter(known[PREDICTED], known[ACTUAL], s=6, alpha=0.5)
        axis.axline((0, 0), slope=1, color="black", linestyle=":", label="actual = predicted")
        axis.set(xlabel="predicted change of J", ylabel="actual change of J", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        # Under the data, not over it
        axis.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
