"""SB3's rollout loop, for policies that can be asked for the values of all cut episodes of a rollout at once."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo.policies import CostActorCriticPolicy

# What SB3's loop would call for every cut episode on its own
_ASKED_AT_ONCE = ("predict_values", "obs_to_tensor")


def is_supported(model: OnPolicyAlgorithm) -> bool:
    """
    Whether :func:`collect` does the same as SB3's loop: continuous actions, observations that are vectors, and a policy whose
    values of several observations are those of each (it may be any class that does not replace what predicts them).
    """
    policy = model.policy
    is_ours = isinstance(policy, CostActorCriticPolicy) and all(
        getattr(type(policy), name) is getattr(ActorCriticPolicy, name) and name not in vars(policy) for name in _ASKED_AT_ONCE
    )
    observations = model.observation_space
    is_vector = isinstance(observations, spaces.Box) and len(observations.shape) == 1
    return is_ours and is_vector and isinstance(model.action_space, spaces.Box) and not model.use_sde


def collect(
    model: OnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
) -> bool:
    """
    SB3's ``OnPolicyAlgorithm.collect_rollouts`` with one difference: the values of the observations at which time limits cut
    episodes are predicted after the last step, all at once. One by one, they took a fifth of the rollouts of Point-Circle.
    Callbacks find the same names in ``locals``.
    """
    assert model._last_obs is not None
    policy, action_space = model.policy, model.action_space
    assert isinstance(action_space, spaces.Box)
    bootstraps = model.bootstrap_time_limits  # type: ignore[attr-defined]
    policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()
    cut: list[tuple[int, int, np.floating, np.ndarray]] = []
    for n_steps in range(n_rollout_steps):
        with th.no_grad():
            obs_tensor = obs_as_tensor(model._last_obs, model.device)  # type: ignore[arg-type]
            actions, values, log_probs = policy(obs_tensor)
        actions = actions.cpu().numpy()
        clipped_actions = np.clip(actions, action_space.low, action_space.high)

        new_obs, rewards, dones, infos = env.step(clipped_actions)
        model.num_timesteps += env.num_envs
        callback.update_locals({**locals(), "self": model})
        if not callback.on_step():
            return False
        model._update_info_buffer(infos, dones)

        for index in np.flatnonzero(dones).tolist():
            terminal_obs = infos[index].get("terminal_observation")
            is_cut = bootstraps and infos[index].get("TimeLimit.truncated", False)
            if is_cut and terminal_obs is not None:
                # A copy: it may be an array that the environment fills anew at every step
                cut.append((n_steps, index, rewards[index], np.array(terminal_obs)))
        rollout_buffer.add(model._last_obs, actions, rewards, model._last_episode_starts, values, log_probs)  # type: ignore[arg-type]
        model._last_obs, model._last_episode_starts = new_obs, dones  # type: ignore[assignment]

    with th.no_grad():
        values = policy.predict_values(obs_as_tensor(new_obs, model.device))  # type: ignore[arg-type]
        if cut:
            # Handle timeout by bootstrapping with value function, see SB3's GitHub issue #633
            steps, indices, cut_rewards, terminal_obs = map(np.array, zip(*cut, strict=True))
            terminal_values = policy.predict_values(policy.obs_to_tensor(terminal_obs)[0]).flatten()
            rollout_buffer.rewards[steps, indices] = cut_rewards + (model.gamma * terminal_values).cpu().numpy()
    rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
    callback.update_locals({**locals(), "self": model})
    callback.on_rollout_end()
    return True
