"""An estimator of J: the one-sided upper confidence bound of the mean (Student's t)."""

from functools import partial

import numpy as np
from scipy import stats

from sb3_cpo.episode_costs import EndedEpisodes, mean_cost


def upper_bound(episodes: EndedEpisodes, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    mean, error = mean_cost(episodes)
    return mean + stats.t.ppf(confidence, df=max(len(episodes.costs) - 1, 1)) * np.nan_to_num(error), error


careful = partial(upper_bound, confidence=0.99)  # CPO(..., cost_estimator=careful)
