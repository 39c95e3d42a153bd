"""VecEnvs that other simulators' adapters make of themselves: they answer what SB3's PPO asks, and little else."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, FPO, PDO, TRPO, env_facts, make_vec_env
from sb3_cpo.cost_signal import MissingCost, read_costs
from sb3_cpo.env_watch import EnvWatch

N_ENVS, LENGTH = 3, 5
# By rank: the cost of each step, and of an episode
STEP_COSTS = np.array([0.25, 0.5, 1.5])
EPISODE_COST = {gamma: STEP_COSTS.mean() * sum(gamma**step for step in range(LENGTH)) for gamma in (1.0, 0.99)}


class Adapter(VecEnv):
    """Three copies whose episodes end together after five steps; of the rest of a ``VecEnv``, as little as SB3 allows."""

    def __init__(self):
        super().__init__(N_ENVS, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))

    def reset(self):
        self.steps = 0
        return self._obs()

    def _obs(self):
        return np.full((N_ENVS, 2), self.steps / LENGTH, dtype=np.float32)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.steps += 1
        dones = np.full(N_ENVS, self.steps == LENGTH)
        infos = self.infos(bool(dones[0]))
        if dones[0]:
            self.reset()
        return self._obs(), self.actions[:, 0].astype(np.float32), dones, infos

    def infos(self, done):
        """One dictionary per copy."""
        costs = [{"cost": self.cost(cost), "cost_b": self.cost(2 * cost)} for cost in STEP_COSTS]
        ends = {"TimeLimit.truncated": True, "terminal_observation": self._obs()[0]} if done else {}
        return [{**cost, **ends} for cost in costs]

    def cost(self, cost):
        return float(cost)

    def get_attr(self, attr_name, indices=None):
        raise AttributeError(attr_name)

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        raise NotImplementedError

    def seed(self, seed=None):
        return [seed] * N_ENVS

    def close(self):
        pass


class GetAttrRaises(Adapter):
    def get_attr(self, attr_name, indices=None):
        if attr_name == "render_mode":
            return [None] * N_ENVS
        raise RuntimeError("attributes are on another machine")


class GetAttrOfLists(Adapter):
    """As Isaac Lab's: one answer for each of a list of indices."""

    def get_attr(self, attr_name, indices=None):
        n_indices = N_ENVS if indices is None else len(indices)
        attributes = {"render_mode": None, "max_episode_length": LENGTH}
        if attr_name not in attributes:
            raise AttributeError(attr_name)
        return [attributes[attr_name]] * n_indices


class GetAttrOfOne(Adapter):
    """As SuperSuit's: no indices, and the attribute itself."""

    def get_attr(self, attr_name):
        if attr_name not in ("render_mode", "spec", "cost_limit"):
            raise AttributeError(attr_name)
        return [None] * N_ENVS if attr_name == "render_mode" else 7


class IsWrappedWithoutIndices(Adapter):
    def env_is_wrapped(self, wrapper_class):
        return [False] * N_ENVS


class IsWrappedInShort(Adapter):
    def env_is_wrapped(self, wrapper_class, indices=None):
        return []


class NoTerminalObservation(Adapter):
    def infos(self, done):
        infos = super().infos(done)
        return [{key: value for key, value in info.items() if key != "terminal_observation"} for info in infos]


class EpisodeOfNone(Adapter):
    """As Isaac Lab's: every key in every step, most of them empty."""

    def infos(self, done):
        empty = {"episode": None, "terminal_observation": None}
        return [{**empty, **info} for info in super().infos(done)]


class ArrayCosts(Adapter):
    def cost(self, cost):
        return np.array([cost])


class TensorCosts(Adapter):
    def cost(self, cost):
        return th.tensor(cost)


class MixedCosts(Adapter):
    """A number for some copies, an array or a tensor for others."""

    def cost(self, cost):
        return {0.25: float(cost), 0.5: np.array([cost]), 1.5: th.tensor([[cost]])}.get(cost, float(cost))


class TensorOfAnotherDevice(th.Tensor):
    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(th.Tensor)


class DeviceCosts(Adapter):
    def cost(self, cost):
        return th.tensor(cost).as_subclass(TensorOfAnotherDevice)


class QuietInfos(Adapter):
    """An empty list of infos as long as there is nothing to tell; all costs are in the last step."""

    def infos(self, done):
        return [{**info, "cost": LENGTH * info["cost"]} for info in super().infos(done)] if done else []


class Everything(GetAttrRaises, NoTerminalObservation, EpisodeOfNone, MixedCosts):
    """All at once."""


ADAPTERS = [
    Adapter,
    GetAttrRaises,
    GetAttrOfLists,
    GetAttrOfOne,
    IsWrappedWithoutIndices,
    IsWrappedInShort,
    NoTerminalObservation,
    EpisodeOfNone,
    ArrayCosts,
    TensorCosts,
    MixedCosts,
    DeviceCosts,
    Everything,
]


class Passing(VecEnvWrapper):
    """As SuperSuit's: a ``VecEnvWrapper`` around something that is none and has no ``unwrapped``."""

    def __init__(self, venv):
        self.inner = venv
        self.venv = object()
        VecEnv.__init__(self, N_ENVS, venv.observation_space, venv.action_space)

    def reset(self, seed=None, options=None):
        return self.inner.reset()

    def step_async(self, actions):
        self.inner.step_async(actions)

    def step_wait(self):
        return self.inner.step_wait()

    def get_attr(self, attr_name, indices=None):
        return self.inner.get_attr(attr_name)

    def has_attr(self, attr_name):
        return VecEnv.has_attr(self, attr_name)

    def env_is_wrapped(self, wrapper_class, indices=None):
        return self.inner.env_is_wrapped(wrapper_class)

    def seed(self, seed=None):
        return self.inner.seed(seed)


def short(algorithm, env, **kwargs):
    return algorithm("MlpPolicy", env, n_steps=4 * LENGTH, batch_size=15, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize("adapter", [*ADAPTERS, QuietInfos], ids=lambda adapter: adapter.__name__)
def test_sb3s_ppo_trains_on_them(adapter):
    short(PPO, adapter(), n_epochs=1).learn(1)


@pytest.mark.parametrize("cost_gamma", [1.0, 0.99])
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
def test_cpo_trains_on_them_and_counts_every_cost(adapter, is_named, cost_gamma):
    limit = {"cost": 100.0, "cost_b": 100.0} if is_named else 100.0
    model = short(CPO, adapter(), cost_limit=limit, cost_gamma=cost_gamma, n_critic_updates=1)
    model.learn(1)
    expected = EPISODE_COST[cost_gamma] * np.array([1.0, 2.0])
    np.testing.assert_allclose(model.ep_cost_mean, expected if is_named else expected[:1], rtol=1e-6)
    assert model.safety.n_updates == 1


@pytest.mark.parametrize("limits", [{}, {"cost_limit": {"cost_b": 1.0}}], ids=["default", "named"])
@pytest.mark.parametrize("algorithm", [CPO, PDO, FPO, TRPO])
def test_all_algorithms_train_on_the_worst_with_default_settings(algorithm, limits, monkeypatch):
    # Where nobody knows how long an episode is; the default of 2,048 steps would only take longer
    monkeypatch.setattr("sb3_cpo.defaults.UNKNOWN_EPISODE", 8 * LENGTH)
    monkeypatch.setattr("sb3_cpo.defaults.MIN_ROLLOUT", 8 * LENGTH)
    kwargs = limits or ({} if algorithm is TRPO else {"cost_limit": 1.0})
    model = algorithm("MlpPolicy", VecNormalize(Everything(), norm_reward=False), device="cpu", **kwargs)
    assert model.n_steps == 8 * LENGTH
    model.learn(1)
    if kwargs:
        np.testing.assert_allclose(model.ep_cost_mean, EPISODE_COST[1.0] * (2 if limits else 1), rtol=1e-6)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_wrapper_around_no_vec_env_is_trained_on(is_named):
    model = short(CPO, Passing(GetAttrOfOne()), cost_limit={"cost": 1.0} if is_named else 1.0, n_critic_updates=1)
    model.learn(1)
    np.testing.assert_allclose(model.ep_cost_mean, EPISODE_COST[1.0], rtol=1e-6)


@pytest.mark.parametrize("cost_gamma", [1.0, 0.99])
@pytest.mark.parametrize("is_named", [False, True])
def test_steps_without_any_info_cost_nothing_if_missing_costs_mean_zero(is_named, cost_gamma):
    limit = {"cost": 100.0} if is_named else 100.0
    model = short(CPO, QuietInfos(), cost_limit=limit, cost_gamma=cost_gamma, missing_cost="zero", n_critic_updates=1)
    model.learn(1)
    expected = LENGTH * STEP_COSTS.mean() * cost_gamma ** (LENGTH - 1)
    np.testing.assert_allclose(model.ep_cost_mean, expected, rtol=1e-6)


def test_trpo_needs_no_infos():
    short(TRPO, QuietInfos(), n_critic_updates=1).learn(1)


def test_steps_without_any_info_are_named_where_a_cost_must_be_there():
    model = short(CPO, QuietInfos(), cost_limit=1.0)
    with pytest.raises(MissingCost, match="info has the keys"):
        model.learn(1)


def test_the_time_limit_is_asked_for_in_every_way_that_adapters_understand():
    assert env_facts.max_episode_steps(GetAttrOfLists()) == LENGTH
    assert CPO("MlpPolicy", GetAttrOfLists(), cost_limit=1.0, device="cpu").n_steps % LENGTH == 0
    for adapter in (Adapter, GetAttrRaises, GetAttrOfOne):
        assert env_facts.max_episode_steps(adapter()) is None


def test_time_limits_without_a_last_observation_are_ends_as_in_sb3():
    """The last step's advantage is its cost minus its value; with a last observation, its discounted value is added."""
    advantages = []
    for adapter in (Adapter, NoTerminalObservation):
        model = short(CPO, adapter(), cost_limit=100.0, cost_gamma=0.99)
        model.learn(2 * 4 * LENGTH * N_ENVS)  # the critic of the first rollout predicts 0
        buffer = model.rollout_buffer
        shape = (N_ENVS, 4 * LENGTH)  # flattened by environment
        last = [buffer.cost_advantages.reshape(shape)[:, LENGTH - 1], buffer.cost_values.reshape(shape)[:, LENGTH - 1]]
        advantages.append(last[0] + last[1])
    np.testing.assert_allclose(advantages[1], STEP_COSTS, rtol=1e-5)
    assert (np.abs(advantages[0] - STEP_COSTS) > 1e-3).all()


def test_resets_by_others_are_noticed_behind_wrappers():
    for env in (Adapter(), VecNormalize(Adapter()), Passing(Adapter())):
        resets = []
        with EnvWatch(env, lambda: 0, lambda resets=resets: resets.append(1)):
            assert not resets
            env.reset()
            assert resets == [1]
        env.reset()
        assert resets == [1]
    env, resets = Passing(Adapter()), []
    with EnvWatch(env, lambda: 0, lambda: resets.append(1)):
        env.reset(seed=3)
    assert resets == [1]


def test_costs_of_every_form_are_read():
    forms = [2.0, np.float32(2), np.array(2), np.array([2.0]), th.tensor(2), th.tensor([2.0]), DeviceCosts().cost(2.0)]
    for form in forms:
        assert read_costs([{"cost": form}, {"cost": 1}], None, 1).tolist() == [[2.0], [1.0]]
        assert read_costs([{"a": form, "b": 0.5}], ["a", "b"], 2).tolist() == [[2.0, 0.5]]
    tensors = [{"cost": th.tensor([1.0, 2.0])}, {"cost": th.tensor([3.0, 4.0]).as_subclass(TensorOfAnotherDevice)}]
    assert read_costs(tensors, None, 2).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_gradient_is_an_error_on_any_device():
    for tensor in (th.tensor(1.0, requires_grad=True), th.tensor([1.0, 2.0])):
        with pytest.raises(ValueError, match="detach it" if tensor.requires_grad else "expected shape"):
            read_costs([{"cost": tensor}], None, 1)


class Energy(VecEnvWrapper):
    """A cost that only this wrapper of the VecEnv knows."""

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        self.actions = actions
        self.venv.step_async(actions)

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        for info, action in zip(infos, self.actions, strict=True):
            info["cost_energy"] = float(np.square(action).sum())
        return obs, rewards, dones, infos


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, BatchVecEnv])
def test_a_wrapper_of_a_vec_env_can_add_a_cost(vec_env_cls):
    env = Energy(make_vec_env("SafePointCircle-v0", n_envs=4, vec_env_cls=vec_env_cls, seed=0))
    model = CPO("MlpPolicy", env, {"cost": 5.0, "cost_energy": 20.0}, n_steps=130, seed=0)
    model.learn(520)
    episodes = np.cumsum(model.rollout_buffer.episode_starts, axis=0)
    clipped = np.clip(model.rollout_buffer.actions.reshape(4, 130, 2), -1, 1)  # flattened copy by copy
    energy = np.square(clipped).sum(axis=2).T
    # Two episodes of each copy have ended: 50 to 65 steps each
    totals = [energy[episodes[:, copy] == episode, copy].sum() for copy in range(4) for episode in (1, 2)]
    np.testing.assert_allclose(model.safety.cumulative_cost[1], energy.sum(), rtol=1e-4)
    np.testing.assert_allclose(model.ledger.raw_estimate.mean[1], np.mean(totals), rtol=1e-4)
