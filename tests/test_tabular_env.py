"""Tabular problems as environments, and what algorithms learn in them."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from test_tabular import STAY, SWITCH, two_rooms

from safe_envs.tabular import (
    TabularEnv,
    discounted_visits,
    evaluate,
    random_cmdp,
    solve_cmdp,
    unroll,
)
from safe_envs.tabular.vec_env import TabularVecEnv


@pytest.mark.parametrize("cmdp", [random_cmdp(np.random.default_rng(0), n_costs=2), unroll(two_rooms(), 4)])
def test_environment_passes_gymnasiums_checker(cmdp):
    check_env(TabularEnv(cmdp), skip_render_check=True)


def test_environments_carry_the_limits_of_the_problem():
    one, two = (random_cmdp(np.random.default_rng(0), n_costs=n_costs) for n_costs in (1, 2))
    first, second = two.cost_limit
    for cmdp, names, expected in (
        (one, None, one.cost_limit[0]),
        (two, None, [first, second]),
        (two, ("cost_a", "cost_b"), {"cost_a": first, "cost_b": second}),
    ):
        assert TabularEnv(cmdp, names).get_wrapper_attr("cost_limit") == expected
        assert TabularVecEnv(cmdp, 3, cost_names=names).get_attr("cost_limit") == [expected] * 3


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_episode_sums_agree_with_the_evaluation(gamma):
    cmdp = random_cmdp(np.random.default_rng(7), n_costs=2, gamma=gamma)
    policy = np.random.default_rng(8).dirichlet(np.ones(cmdp.n_actions), size=cmdp.n_states)
    env, rng, sums = TabularEnv(cmdp), np.random.default_rng(9), []
    state, _ = env.reset(seed=10)
    for _ in range(1500):
        total, is_over = np.zeros(4), False
        while not is_over:
            state, reward, is_over, truncated, info = env.step(rng.choice(cmdp.n_actions, p=policy[state]))
            assert not truncated
            total += [reward, *info["cost"], 1]
            assert total[3] < 1000  # 0.9**1000 is never
        sums.append(total)
        state, _ = env.reset()
    worth = evaluate(cmdp, policy)
    expected = np.array([worth.ep_rew_mean, *worth.ep_cost_mean, worth.ep_len_mean])
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert np.all(np.abs(np.mean(sums, axis=0) - expected) < 4 * error)
    assert np.all(error < 0.05 * expected)


def test_vectorised_episode_sums_agree_with_the_evaluation():
    cmdp = random_cmdp(np.random.default_rng(7), n_costs=2, gamma=0.9)
    policy = np.random.default_rng(8).dirichlet(np.ones(cmdp.n_actions), size=cmdp.n_states)
    env, rng = TabularVecEnv(cmdp, n_envs=200, seed=3), np.random.default_rng(9)
    states, running, sums = env.reset(), np.zeros((200, 4)), []
    for _ in range(1000):
        actions = (rng.random((200, 1)) >= np.cumsum(policy[states], axis=1)).sum(axis=1)
        states, rewards, dones, infos = env.step(np.minimum(actions, cmdp.n_actions - 1))
        running += np.column_stack([rewards, [info["cost"] for info in infos], np.ones(200)])
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"]["r"] == pytest.approx(running[i, 0], rel=1e-5)
            assert infos[i]["episode"]["l"] == running[i, 3]
            assert infos[i]["terminal_observation"] in env.observation_space
            assert not infos[i]["TimeLimit.truncated"]
            sums.append(running[i].copy())
            running[i] = 0
        assert all("episode" not in infos[i] for i in np.flatnonzero(~dones))
    worth = evaluate(cmdp, policy)
    expected = np.array([worth.ep_rew_mean, *worth.ep_cost_mean, worth.ep_len_mean])
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert np.all(np.abs(np.mean(sums, axis=0) - expected) < 4 * error)


def test_fixed_horizon_episodes_last_exactly_so_long():
    env = TabularVecEnv(unroll(two_rooms(gamma=1.0), horizon=3), n_envs=2, seed=0)
    assert env.reset().tolist() == [0, 0]
    observations, rewards, dones, infos = zip(*[env.step(np.array([SWITCH, STAY])) for _ in range(3)], strict=True)
    assert np.array(observations).tolist() == [[3, 2], [4, 4], [0, 0]]  # 2 * time + room, then the next episode
    assert np.array(rewards).tolist() == [[1, 1], [0, 1], [1, 1]]
    assert np.array(dones).tolist() == [[False, False], [False, False], [True, True]]
    assert [[info["cost"] for info in step] for step in infos] == [[0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("n_costs", "names", "kinds"),
    [(1, None, {"cost": float}), (2, None, {"cost": np.ndarray}), (2, ("noise", "wear"), {"noise": float, "wear": float})],
)
def test_costs_are_reported_in_the_three_forms(n_costs, names, kinds):
    cmdp = random_cmdp(np.random.default_rng(0), n_costs=n_costs)
    env = TabularEnv(cmdp, names)
    state, _ = env.reset(seed=0)
    *_, info = env.step(np.int64(1))
    assert {key: type(value) for key, value in info.items()} == kinds
    assert np.hstack(list(info.values())) == pytest.approx(cmdp.costs[:, state, 1])


def test_vectorised_environment_trains_and_repeats():
    from stable_baselines3 import PPO

    cmdp = random_cmdp(np.random.default_rng(0))
    parameters = []
    for _ in range(2):
        model = PPO("MlpPolicy", TabularVecEnv(cmdp, n_envs=4), n_steps=16, batch_size=64, n_epochs=1, seed=5, device="cpu")
        model.learn(64)
        parameters.append(model.policy.action_net.weight.detach().numpy())
    assert np.array_equal(*parameters)


@pytest.mark.slow
@pytest.mark.parametrize("n_costs", [1, 2])
def test_cpo_reaches_the_optimum(n_costs):
    """A table of logits, 60 updates: 97 % of the optimal return, costs within 3 % of the limits (last 15 policies)."""
    import torch as th

    from sb3_cpo import CPO

    cmdp = random_cmdp(np.random.default_rng(1), n_costs=n_costs)
    optimum = solve_cmdp(cmdp)
    assert optimum is not None
    n_envs, n_steps, worths = 256, 80, []
    model = CPO(
        "MlpPolicy",
        TabularVecEnv(cmdp, n_envs, seed=0),
        cost_limit=cmdp.cost_limit.tolist() if n_costs > 1 else cmdp.cost_limit[0],
        n_steps=n_steps,
        gamma=1.0,
        target_kl=0.02,
        cg_damping=1e-3,
        n_critic_updates=5,
        batch_size=2048,
        learning_rate=0.02,
        policy_kwargs={"net_arch": []},
        seed=0,
        device="cpu",
    )
    for update in range(60):
        model.learn(n_envs * n_steps, reset_num_timesteps=update == 0)
        with th.no_grad():
            policy = model.policy.get_distribution(th.arange(cmdp.n_states)).distribution.probs.double().numpy()
        worths.append(evaluate(cmdp, policy / policy.sum(axis=1, keepdims=True)))
    assert np.mean([worth.ep_rew_mean for worth in worths[-15:]]) > 0.97 * optimum.ep_rew_mean
    assert np.all(np.mean([worth.ep_cost_mean for worth in worths[-15:]], axis=0) < 1.03 * cmdp.cost_limit)


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.9])
def test_gradient_of_the_cost_surrogate_is_that_of_the_discounted_cost(gamma, monkeypatch):
    """
    J discounts costs by ``cost_gamma``, from the beginning of each episode; so does the surrogate. Against the exact gradient
    of episodes of 50 steps; without the weight gamma^t it is 1.3 (0.99) and 5 (0.9) times too long.
    """
    import torch as th

    from sb3_cpo import CPO, trust_region_algorithm

    horizon, gradients = 50, []
    # Episodes of 50 steps; whether J discounts them is the algorithm's affair, not the environment's
    played = replace(unroll(two_rooms(), horizon), gamma=1.0)
    cmdp = replace(played, gamma=gamma)
    step_of = trust_region_algorithm.trust_region_step

    def spy(params, evaluate, *args, **kwargs):
        grads = th.autograd.grad(evaluate().costs.sum(), params, allow_unused=True, retain_graph=True)
        gradients.extend(grad for grad in grads if grad is not None and grad.ndim == 2)
        return step_of(params, evaluate, *args, **kwargs)

    monkeypatch.setattr(trust_region_algorithm, "trust_region_step", spy)
    n_actions = cmdp.rewards.shape[1]
    model = CPO(
        "MlpPolicy",
        TabularVecEnv(played, 500, seed=0),
        cost_limit=1.0,
        cost_gamma=gamma,
        cost_gae_lambda=1.0,
        n_noise_draws=0,
        n_steps=4 * horizon,
        batch_size=10_000,
        n_critic_updates=1,
        policy_kwargs={"net_arch": [], "ortho_init": False},
        seed=0,
        device="cpu",
    )
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.zero_()
    model.learn(500 * 4 * horizon)
    policy = np.full(cmdp.rewards.shape, 1 / n_actions)
    visits, evaluation = discounted_visits(cmdp, policy), evaluate(cmdp, policy)
    exact = (visits[:, None] * policy * evaluation.cost_advantages[0]).T
    found = gradients[0].numpy()
    np.testing.assert_allclose(model.ep_cost_mean, evaluation.ep_cost_mean, rtol=0.05)
    projection = (found * exact).sum() / (exact**2).sum()
    assert projection == pytest.approx(1.0, abs=0.1)
    # Where it is not the exact one, it is noise
    assert ((found - exact) ** 2).sum() < 0.5 * (exact**2).sum()
