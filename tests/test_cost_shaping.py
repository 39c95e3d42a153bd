import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from toy_envs import RiskyEnv, ScriptedEnv, vec_env

from sb3_cpo import CPO, FPO, PDO, TRPO, FailurePredictor
from sb3_cpo.cost_shaping import coming_costs

KWARGS = {"n_steps": 8, "batch_size": 16, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}


def labels(costs, ends, horizon):
    return coming_costs(np.array(costs, float).reshape(-1, 1, 1), np.array(ends, bool).reshape(-1, 1), horizon)[
        :, 0, 0
    ].tolist()


def test_labels_by_hand():
    costs, no_end = [0, 0, 0, 2, 0, 0], [0] * 6
    # Any cost within this step and the next horizon - 1 ones
    assert labels(costs, no_end, 1) == [False, False, False, True, False, False]
    assert labels(costs, no_end, 3) == [False, True, True, True, False, False]
    assert labels(costs, no_end, 99) == [True, True, True, True, False, False]


def test_labels_stay_within_their_episode():
    costs = [0, 0, 0, 2, 0, 0]
    assert labels(costs, [0, 1, 0, 0, 0, 0], 99) == [False, False, True, True, False, False]
    # The cost of the last step belongs to the episode that it ends
    assert labels(costs, [0, 0, 0, 1, 0, 0], 3) == [False, True, True, True, False, False]
    assert labels([0, 1, 1], [0, 1, 0], 1) == [False, True, True]


def test_labels_of_each_environment_and_cost_by_themselves():
    costs, ends = np.zeros((3, 2, 2)), np.zeros((3, 2), dtype=bool)
    costs[2, 0, 1] = costs[1, 1, 0] = 1
    found = coming_costs(costs, ends, 2)
    assert found[:, 0, 0].tolist() == [False] * 3
    assert found[:, 0, 1].tolist() == [False, True, True]
    assert found[:, 1, 0].tolist() == [True, True, False]
    assert found[:, 1, 1].tolist() == [False] * 3


def make_predictor(space=None, n_costs=1, **kwargs):
    th.manual_seed(0)
    predictor = FailurePredictor(**kwargs)
    predictor.setup(space or spaces.Box(-1, 1, (3,)), n_costs, th.device("cpu"))
    return predictor


def test_bonus_of_the_first_two_batches_is_zero():
    predictor = make_predictor(paper_init=True)
    obs, truth = np.zeros((5, 3), dtype=np.float32), np.ones((5, 1), dtype=bool)
    for _ in range(2):
        assert predictor.bonus(obs).tolist() == [[0.0]] * 5
        predictor.fit(obs, truth)
    assert (predictor.bonus(obs) > 0.1).all()


def test_coefficients_weigh_each_cost():
    ones, weighed = make_predictor(n_costs=2), make_predictor(n_costs=2, coef=[0.01, 3.0])
    ones.n_batches = weighed.n_batches = 2
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(weighed.bonus(obs), ones.bonus(obs) * [0.01, 3.0])


def test_untrained_outputs_begin_low_unless_as_published():
    obs = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    for paper_init, low, high in ((False, 0.0, 0.03), (True, 0.25, 0.8)):
        predictor = make_predictor(paper_init=paper_init)
        predictor.n_batches = 2
        assert low < predictor.bonus(obs).min()
        assert predictor.bonus(obs).max() < high


def test_predictor_learns_where_costs_come():
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (500, 3)).astype(np.float32)
    truth = obs[:, :1] > 0
    predictor = make_predictor(n_updates=300, learning_rate=3e-2)
    losses = [predictor.fit(obs, truth) for _ in range(2)]
    bonus = predictor.bonus(obs)
    assert losses[1] < losses[0] < 0.1
    assert bonus[obs[:, 0] > 0.2].min() > 0.5 > bonus[obs[:, 0] < -0.2].max()


def test_fit_is_full_batch_adam_on_the_mean_squared_error():
    predictor, obs = make_predictor(n_updates=3), np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    truth = np.random.default_rng(1).random((20, 1)) < 0.5
    twin = make_predictor(n_updates=3)._network
    optimizer = th.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(2):
        for _ in range(3):
            loss = ((twin(th.as_tensor(obs)) - th.as_tensor(truth, dtype=th.float32)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # The moments go on from batch to batch
        assert predictor.fit(obs, truth) == pytest.approx(loss.item())
    for mine, theirs in zip(predictor._network.parameters(), twin.parameters(), strict=True):
        th.testing.assert_close(mine, theirs)


def test_fit_stops_when_the_loss_no_longer_moves():
    predictor = make_predictor(n_updates=10_000, learning_rate=1e-9)
    predictor.fit(np.zeros((4, 3), dtype=np.float32), np.zeros((4, 1), dtype=bool))
    assert predictor._optimizer.state_dict()["state"][0]["step"] == 2


class Kept(BaseCallback):
    def __init__(self):
        super().__init__()
        self.rollouts = []

    def _on_rollout_start(self):
        self.predictor_before = self.model.cost_shaping.n_batches

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        model, buffer = self.model, self.model.rollout_buffer
        self.rollouts.append({
            "costs": buffer.costs.copy(), "bonus": buffer.cost_bonus.copy(), "rewards": buffer.rewards.copy(),
            "obs": buffer.observations.copy(),
            "raw": model.raw_cost_estimate, "shaped": model.cost_estimate, "ends": buffer.episode_ends.copy(),
        })  # fmt: skip


@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_shaped_costs_are_used_and_raw_ones_logged(algorithm):
    def cost(rank, t):
        return float(t % 4 == 3)

    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(4,), cost=cost), 2)
    predictor, kept, bonuses = FailurePredictor(horizon=2, coef=10.0, paper_init=True), Kept(), []
    model = algorithm("MlpPolicy", env, cost_limit=1.0, cost_shaping=predictor, gamma=0.0, **KWARGS)
    bonus = predictor.bonus
    predictor.bonus = lambda obs: bonuses.append(bonus(obs)) or bonuses[-1]
    model.learn(2 * 8 * 4, callback=kept)
    bonuses = np.array(bonuses).reshape(4, 8, 2, 1)
    raw = np.tile(np.array([0, 0, 0, 1.0, 0, 0, 0, 1]).reshape(8, 1, 1), (1, 2, 1))
    assert not bonuses[:2].any()
    assert (bonuses[2:] > 0).all()
    for rollout, extra in zip(kept.rollouts, bonuses, strict=True):
        np.testing.assert_array_equal(rollout["costs"], raw)
        np.testing.assert_allclose(rollout["bonus"], extra)
        assert rollout["raw"].mean == 1
        np.testing.assert_allclose(rollout["shaped"].mean, (raw + extra).sum() / 4)
    assert model.ep_cost_mean == 1
    assert model.safety.cumulative_cost == 4 * 4
    if algorithm in (PDO, FPO):
        nu = 1.0 if algorithm is FPO else 0.0
        plain = kept.rollouts[2]["rewards"][:, 0] + nu * (raw + bonuses[2])[:, 0, 0]
        np.testing.assert_allclose(plain, np.arange(17, 25) % 7, atol=1e-5)
        # and the violation that moves the penalty is of the shaped cost
        if algorithm is PDO:
            violations = [rollout["shaped"].mean - 1.0 for rollout in kept.rollouts]
            np.testing.assert_allclose(model.penalty, 0.01 * np.sum(violations, axis=0))


def test_violation_of_cpo_is_that_of_the_shaped_cost(monkeypatch):
    env = vec_env(lambda rank: RiskyEnv(), 2)
    model = CPO(
        "MlpPolicy", env, 1.0, cost_shaping=FailurePredictor(paper_init=True), n_noise_draws=0, cost_confidence=0.0, **KWARGS
    )
    violations = []
    watch = model._watch
    monkeypatch.setattr(model, "_watch", lambda step, violation: violations.append(violation) or watch(step, violation))
    model.learn(2 * 8 * 3)
    np.testing.assert_allclose(violations[-1], model.cost_estimate.mean - 1.0)
    assert model.cost_estimate.mean > model.raw_cost_estimate.mean + 0.5


@pytest.mark.parametrize("kind", ["discrete", "dict", "image"])
def test_every_kind_of_observation(kind):
    policy = {"image": "CnnPolicy", "dict": "MultiInputPolicy"}.get(kind, "MlpPolicy")
    model = CPO(
        policy, vec_env(lambda rank: RiskyEnv(kind, n_costs=2), 2), [1.0, 2.0], cost_shaping=FailurePredictor(), n_steps=4,
        batch_size=8, n_critic_updates=1, device="cpu",
    )  # fmt: skip
    model.learn(8 * 3)
    assert np.all(model.cost_estimate.mean > model.raw_cost_estimate.mean)


def test_a_resumed_run_is_identical(tmp_path):
    """Predictor, moments of its optimizer and number of batches are saved with the model."""
    obs = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    truth = np.random.default_rng(1).random((16, 1)) < 0.5
    env = vec_env(lambda rank: RiskyEnv(), 2)
    model = CPO("MlpPolicy", env, 1.0, cost_shaping=FailurePredictor(), **KWARGS).learn(2 * 8 * 2)
    model.save(tmp_path / "model")
    loaded = CPO.load(tmp_path / "model", env=vec_env(lambda rank: RiskyEnv(), 2))
    assert loaded.cost_shaping is not model.cost_shaping
    assert loaded.cost_shaping.n_batches == 2
    for _ in range(2):
        np.testing.assert_array_equal(loaded.cost_shaping.bonus(obs), model.cost_shaping.bonus(obs))
        assert loaded.cost_shaping.bonus(obs).any()
        assert loaded.cost_shaping.fit(obs, truth) == model.cost_shaping.fit(obs, truth)
    # Without the moments, the next step of Adam would have another length
    assert float(loaded.cost_shaping._optimizer.state_dict()["state"][0]["step"]) > 2 * 25
    loaded.learn(16)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 0}, "horizon must be a whole number of steps, at least 1, not 0"),
        ({"n_updates": 0}, "n_updates must be at least 1"),
        ({"coef": -1.0}, "coef must be finite and not negative"),
        ({"coef": np.nan}, "coef must be finite"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FailurePredictor(**kwargs)


def test_a_predictor_made_for_another_model_is_refused():
    predictor = make_predictor()
    with pytest.raises(ValueError, match="made for 3 features and 1 costs, not for 5 and 1"):
        predictor.setup(spaces.Box(-1, 1, (5,)), 1, th.device("cpu"))


def test_copies_and_unpickled_predictors_learn_as_the_original():
    import copy
    import pickle

    rng = np.random.default_rng(0)
    obs, labels = rng.normal(size=(50, 3)).astype(np.float32), rng.random((50, 1)) > 0.5
    original = make_predictor()
    original.fit(obs, labels)
    copies = [copy.deepcopy(original), pickle.loads(pickle.dumps(original)), pickle.loads(pickle.dumps(copy.copy(original)))]
    losses = [predictor.fit(obs, labels) for predictor in (original, *copies)]
    assert losses == [losses[0]] * 4
    for predictor in copies:
        np.testing.assert_array_equal(predictor.bonus(obs), original.bonus(obs))
        pickle.dumps(predictor)


def test_raw_costs_stay_raw_where_no_episode_ends():
    """Nothing ever costs, and the untrained predictor says 0.5 everywhere: J is 0, the constrained J is not."""
    env = vec_env(lambda rank: ScriptedEnv(rank, lengths=(1000,), cost=lambda rank, t: 0.0), 2)
    model = CPO("MlpPolicy", env, 1.0, cost_shaping=FailurePredictor(paper_init=True), **KWARGS)
    model.learn(2 * 8 * 4)
    assert model.ep_cost_mean == 0
    assert model.cost_estimate.mean > 0
    assert not model.rollout_buffer.costs.any()
    assert model.rollout_buffer.cost_bonus.any()
