"""What training itself has cost: the numbers by which methods that keep a limit *during* training are compared."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class SafetyRecord:
    """
    Costs of training, per constraint; arrays have shape (n_costs,). Saved with the model.

    :param n_costs: number of constraints
    """

    n_costs: int
    n_steps: int = 0
    n_updates: int = 0
    cumulative_cost: np.ndarray = field(init=False)
    """All costs since training began."""
    n_violations: np.ndarray = field(init=False)
    """Updates at which J was over the limit."""
    cost_regret: np.ndarray = field(init=False)
    """Sum over updates of max(J - limit, 0)."""
    streak: np.ndarray = field(init=False)
    longest_streak: np.ndarray = field(init=False)
    """Largest number of updates in a row over the limit."""
    first_feasible_step: int = -1
    """Steps played when every J was within its limit for the first time; -1: never yet."""

    def __post_init__(self) -> None:
        self.cumulative_cost, self.n_violations, self.cost_regret, self.streak, self.longest_streak = np.zeros(
            (5, self.n_costs)
        )

    @property
    def cost_rate(self) -> np.ndarray:
        """Cost per step since training began."""
        return self.cumulative_cost / max(self.n_steps, 1)

    @property
    def violation_rate(self) -> np.ndarray:
        """Share of updates at which J was over the limit."""
        return self.n_violations / max(self.n_updates, 1)

    def add(self, costs: np.ndarray, violation: np.ndarray, num_timesteps: int, is_known: bool = True) -> None:
        """
        One rollout.

        :param costs: (n_steps, n_envs, n_costs) as the environment emitted them
        :param violation: (n_costs,) J minus limit
        :param num_timesteps: steps played since training began
        :param is_known: whether any episode ended; a guess is no proof of a kept limit
        """
        is_over = violation > 0
        self.add_costs(costs)
        self.n_updates += 1
        self.n_violations = self.n_violations + is_over
        self.cost_regret = self.cost_regret + np.maximum(violation, 0.0)
        self.streak = np.where(is_over, self.streak + 1, 0)
        self.longest_streak = np.maximum(self.longest_streak, self.streak)
        if self.first_feasible_step < 0 and is_known and not is_over.any():
            self.first_feasible_step = num_timesteps

    def add_costs(self, costs: np.ndarray) -> None:
        """Steps without an update: (n_steps, n_envs, n_costs), those of a rollout that a callback stopped."""
        self.n_steps += costs.shape[0] * costs.shape[1]
        self.cumulative_cost = self.cumulative_cost + costs.sum(axis=(0, 1))

    def summary(self, names: Sequence[str] = ()) -> str:
        """One line per constraint, for the end of training."""
        lines = []
        for index in range(self.n_costs):
            name = f" of {names[index]}" if names else ""
            lines.append(
                f"Safety during training{name}: total cost {self.cumulative_cost[index]:.4g} "
                f"({self.cost_rate[index]:.3g} per step), over the limit at {self.violation_rate[index]:.0%} "
                f"of {self.n_updates} updates (at most {self.longest_streak[index]:.0f} in a row), "
                f"cost regret {self.cost_regret[index]:.4g}"
            )
        first = self.first_feasible_step
        lines.append("The limit was kept at no update" if first < 0 else f"First within the limit after {first} steps")
        return "\n".join(lines)
