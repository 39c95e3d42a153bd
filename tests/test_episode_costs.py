import numpy as np
import pytest
from scipy import stats

from sb3_cpo import distributed
from sb3_cpo.episode_costs import EndedEpisodes, EpisodeCosts, mean_cost

NO, YES = np.array([False]), np.array([True])


def play(episode_costs, costs, ends):
    for cost, end in zip(costs, ends, strict=True):
        episode_costs.add(np.atleast_2d(cost).astype(float), np.atleast_1d(end))


def test_estimate_by_hand_with_its_standard_error():
    costs = EpisodeCosts(n_envs=2, n_costs=1)
    # env 0: episodes 1 + 2 and 3; env 1: 10 + 20 + 30
    play(costs, [[[1], [10]], [[2], [20]], [[3], [30]]], [[False, False], [True, False], [True, True]])
    estimate = costs.estimate()
    np.testing.assert_allclose(estimate.mean, (3 + 3 + 60) / 3)
    # deviations -19, -19, 38: variance 2166 / 2, error sqrt(1083 / 3)
    np.testing.assert_allclose(estimate.standard_error, 19.0)
    assert estimate.n_episodes == 3
    assert estimate.mean_length == 2
    assert estimate.stale_share == 0


def test_each_constraint_is_summed_by_itself():
    costs = EpisodeCosts(n_envs=1, n_costs=3)
    play(costs, [[1, 10, 0], [2, 20, -1], [4, 40, 0]], [False, True, True])
    np.testing.assert_allclose(costs.estimate().mean, [3.5, 35, -0.5])
    np.testing.assert_allclose(costs.episodes, [[3, 30, -1], [4, 40, 0]])


def test_an_episode_longer_than_a_rollout_counts_whole_where_it_ends():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [1, 2, 4], [False] * 3)
    costs.start_rollout()
    play(costs, [8, 16, 32, 64], [False, True, False, False])
    estimate = costs.estimate()
    assert estimate.mean == 1 + 2 + 4 + 8 + 16
    assert estimate.mean_length == 5
    assert estimate.stale_share == 3 / 5
    assert np.isnan(estimate.standard_error)
    costs.start_rollout()
    play(costs, [128, 256], [True, False])
    assert costs.estimate().mean == 32 + 64 + 128


def test_no_window_over_older_rollouts():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [1000, 1000], [True, True])
    costs.start_rollout()
    play(costs, [1, 3], [True, True])
    assert costs.estimate().mean == 2
    assert costs.estimate().n_episodes == 2


def test_mean_is_over_episodes_and_not_over_steps():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [7, *[1.0] * 99], [True, *[False] * 98, True])
    assert costs.estimate().mean == (7 + 99) / 2
    assert costs.estimate().mean_length == 50


def test_without_a_finished_episode_and_a_time_limit_the_estimate_is_cost_so_far_plus_value():
    costs = EpisodeCosts(n_envs=2, n_costs=2)
    play(costs, [[[1, 0], [2, 0]], [[3, 0], [4, 0]]], [[False, False]] * 2)
    estimate = costs.estimate(np.array([[10.0, 5.0], [20.0, 7.0]]))
    np.testing.assert_allclose(estimate.mean, [(4 + 10 + 6 + 20) / 2, 6.0])
    assert estimate.n_episodes == 0
    assert estimate.mean_length == 2
    assert np.isnan(estimate.standard_error).all()


def test_a_critic_that_says_less_than_the_rate_so_far_is_not_believed():
    """10 in the first two of fifty steps are 250 in all; the second cost is what the critic says, which is more."""
    costs = EpisodeCosts(n_envs=2, n_costs=2)
    play(costs, [[[1, 0], [2, 0]], [[3, 0], [4, 0]]], [[False, False]] * 2)
    estimate = costs.estimate(np.array([[10.0, 5.0], [20.0, 7.0]]), 50)
    np.testing.assert_allclose(estimate.mean, [5 + 48 * 10 / 4, 6.0])
    assert estimate.mean_length == 50


def test_without_a_finished_episode_older_steps_are_called_stale():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [1, 1, 1], [False] * 3)
    costs.start_rollout()
    play(costs, [1], [False])
    assert costs.estimate(np.zeros((1, 1))).stale_share == 3 / 4


def test_discounted_costs_by_hand():
    costs = EpisodeCosts(n_envs=1, n_costs=1, gamma=0.5)
    play(costs, [8, 8, 8, 4], [False, False, True, False])
    assert costs.estimate().mean == 8 + 4 + 2
    costs.start_rollout()
    play(costs, [4], [False])
    # the second episode goes on: 4 + 4/2, then the value of what follows, discounted by 1/4
    assert costs.estimate(np.array([[100.0]])).mean == 6 + 25


def test_all_zero_costs_are_known_to_be_zero():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [0, 0, 0, 0], [True] * 4)
    assert costs.estimate().mean == 0
    assert costs.estimate().standard_error == 0


def test_without_critic_the_rest_of_an_episode_costs_as_much_per_step_as_what_was_played():
    costs = EpisodeCosts(n_envs=2, n_costs=1)
    for _ in range(4):
        costs.add(np.array([[1.0], [3.0]]), np.array([False, False]))
    # 4 and 12 so far; 6 steps to come at (4 + 12) / 8 = 2 each
    assert costs.estimate(max_episode_steps=10).mean.tolist() == [(4 + 12 + 12 + 12) / 2]
    assert costs.estimate().mean.tolist() == [8]


def test_rest_of_a_discounted_episode_is_discounted():
    costs = EpisodeCosts(n_envs=1, n_costs=1, gamma=0.5)
    for _ in range(2):
        costs.add(np.array([[4.0]]), np.array([False]))
    # 4 + 2 so far, and 1 + 0.5 in the two steps to come
    np.testing.assert_allclose(costs.estimate(max_episode_steps=4).mean, [7.5])


def test_long_episodes_and_short_rollouts_are_never_believed_to_be_cheap():
    """1,000 steps at 0.1 each, 128 of them in a rollout: J is 100 in every rollout, whatever an untrained critic says."""
    costs = EpisodeCosts(n_envs=4, n_costs=1)
    for rollout in range(9):
        costs.start_rollout()
        for step in range(rollout * 128, (rollout + 1) * 128):
            costs.add(np.full((4, 1), 0.1), np.full(4, step % 1000 == 999))
        for value in (-1e3, 0.0, None):
            cut_values = None if value is None else np.full((4, 1), value)
            np.testing.assert_allclose(costs.estimate(cut_values, 1000).mean, 100)


@pytest.mark.parametrize("kind", ["constant", "early", "late"])
@pytest.mark.parametrize("time_limit", [1000, None])
def test_once_an_episode_has_ended_the_next_ones_are_not_believed_to_be_cheaper(kind, time_limit):
    """Nobody need say a time limit then, and a cost that comes late in the episode is expected."""
    cost = {"constant": lambda t: 0.1, "early": lambda t: float(t < 100), "late": lambda t: float(t >= 900)}[kind]
    costs, means = EpisodeCosts(n_envs=4, n_costs=2), []
    for rollout in range(17):
        costs.start_rollout()
        for step in range(rollout * 128, (rollout + 1) * 128):
            costs.add(np.full((4, 2), [cost(step % 1000), 0.0]), np.full(4, step % 1000 == 999))
        estimate = costs.estimate(max_episode_steps=time_limit)
        means.append(estimate.mean[0])
        assert estimate.mean[1] == 0
        assert estimate.is_length_known == (time_limit is not None or rollout >= 7)
        assert estimate.mean_length == (1000 if estimate.is_length_known else 128 * (rollout + 1))
    assert min(means[7:]) >= 100 - 1e-9
    np.testing.assert_allclose([means[7], means[15]], 100)
    if kind != "early":
        np.testing.assert_allclose(means[7:], 100)


def test_what_ended_last_is_seen_with_the_same_estimator_and_in_all_processes(monkeypatch):
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [1.0, 2.0, 3.0, 10.0], [True] * 4)
    for _ in range(2):
        costs.start_rollout()
        play(costs, [0.0], [False])
    assert costs.estimate().mean == 4
    assert costs.estimate(estimator=cvar).mean == 6.5
    other = EpisodeCosts(n_envs=1, n_costs=1)
    play(other, [4.0, 16.0], [True] * 2)
    other.start_rollout()
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "gather", lambda own: [own, other])
        assert costs.of_all_processes().estimate().mean == (16 + 20) / 6
    costs.start_rollout()
    play(costs, [2.0], [True])
    # What has ended now counts, and nothing else
    assert costs.estimate().mean == 2


def cvar(episodes, alpha=0.5):
    """Mean of the worst half."""
    worst = np.sort(episodes.costs, axis=0)[int(len(episodes.costs) * alpha) :]
    return worst.mean(axis=0), worst.std(axis=0, ddof=1) / np.sqrt(len(worst))


def upper_bound(episodes):
    """One-sided 95 % upper confidence bound of the mean (Student's t)."""
    mean, error = mean_cost(episodes)
    return mean + stats.t.ppf(0.95, len(episodes.costs) - 1) * error, error


def test_other_estimators_of_j():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [1.0, 2.0, 3.0, 10.0], [True] * 4)
    assert costs.estimate(estimator=cvar).mean == 6.5
    bound = costs.estimate(estimator=upper_bound)
    np.testing.assert_allclose(bound.mean, 4 + 2.3534 * np.std([1, 2, 3, 10], ddof=1) / 2, rtol=1e-4)
    assert (bound.n_episodes, bound.mean_length) == (4, 1)


def test_an_episode_that_does_not_count_begins_anew():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    costs.add(np.array([[5.0]]), np.array([True]), np.array([False]))
    costs.add(np.array([[2.0]]), np.array([True]), np.array([True]))
    assert costs.episodes.tolist() == [[2.0]]


def test_length_is_the_mean_and_not_the_median():
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [0.0] * 12, [True, False, True, *[False] * 8, True])
    assert costs.estimate().mean_length == (1 + 2 + 9) / 3


@pytest.mark.filterwarnings("error")
def test_two_episodes_have_a_standard_error_and_one_has_none():
    def error(values):
        return mean_cost(EndedEpisodes(np.array(values)[:, None], np.ones(len(values))))[1]

    np.testing.assert_allclose(error([1.0, 3.0]), 1.0)
    assert np.isnan(error([3.0])).all()


def test_a_discounted_episode_in_progress_is_extrapolated_to_its_discounted_end():
    costs = EpisodeCosts(n_envs=1, n_costs=1, gamma=0.5)
    play(costs, [1, 1], [False, False])
    # More steps are left than were played
    estimate = costs.estimate(max_episode_steps=5)
    np.testing.assert_allclose(estimate.mean, 1 + 0.5 + 0.25 + 0.125 + 0.0625)
    assert estimate.n_episodes == 0
    assert np.isnan(estimate.standard_error).all()


def test_episodes_in_progress_may_be_longer_than_those_that_ended():
    """One of 20 steps ended, then there is no end: an episode has at least as many steps as are played."""
    costs = EpisodeCosts(n_envs=1, n_costs=1)
    play(costs, [1.0] * 20, [False] * 19 + [True])
    costs.start_rollout()
    for _ in range(10):
        costs.start_rollout()
        play(costs, [1.0] * 100, [False] * 100)
    estimate = costs.estimate()
    assert estimate.mean_length == 1000
    np.testing.assert_allclose(estimate.mean, 1000.0)
