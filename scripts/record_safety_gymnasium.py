"""
Record transitions of Safety-Gymnasium on its own stack, for tests/test_safety_gymnasium.py to compare ours with.

In an environment of its own, with Python 3.10 (gymnasium 0.28.1, MuJoCo 2.3.3 and pygame 2.1.0 come with it)::

    python3.10 -m venv original
    original/bin/pip install safety-gymnasium==1.0.0 numpy==1.23.5
    original/bin/python scripts/record_safety_gymnasium.py tests/data/safety_gymnasium.npz

Of each robot and task, an episode's first 100 steps: all rewards and costs, some of the observations, and at every 20th step
the whole state of the simulation and the observation after that step, so that a comparison can begin there.
"""

import sys

import numpy as np

ROBOTS = ("Point", "Car", "Racecar", "Doggo", "Ant")
TASKS = ("Goal1", "Button1", "Push1", "Circle1", "Run0")
SEED, N_STEPS = 3, 100
# Numbers of the steps after which an observation is kept (0: after the reset), and before which a state is
OBSERVED, STATES = (0, 1, 2, 5, 10, 20, 50, 100), range(0, N_STEPS, 20)


def random_actions(action_space):
    """(n_steps, n_actions) uniform, each held for ten steps so that the robot gets somewhere."""
    low, high = action_space.low, action_space.high
    return np.random.RandomState(SEED).uniform(low, high, (N_STEPS // 10, len(low))).repeat(10, axis=0)


def state_of(data):
    """What MuJoCo's next step begins with."""
    return np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart])


def play(env, task):
    """
    Play the episode.

    :param env: original or ours
    :param task: the task inside it
    :return: arrays by name
    """
    observations, rewards, costs, states = [env.reset(seed=SEED)[0]], [], [], []
    for step, action in enumerate(random_actions(env.action_space)):
        if step in STATES:
            states.append(state_of(task.data))
        values = env.step(action)
        observations.append(values[0])
        rewards.append(values[1])
        costs.append(values[-1]["cost_sum"])
    return {
        "observations": np.array([observations[step] for step in OBSERVED]),
        "rewards": np.array(rewards),
        "costs": np.array(costs, dtype=np.uint8),
        "states": np.array(states),
        "next_observations": np.array([observations[step + 1] for step in STATES]),
    }


def main(path):
    import safety_gymnasium

    arrays = {}
    for robot in ROBOTS:
        for task in TASKS:
            env = safety_gymnasium.make(f"Safety{robot}{task}-v0")
            episode = play(env, env.unwrapped.task)
            arrays.update({f"{robot}{task}/{name}": array for name, array in episode.items()})
            print(f"{robot}{task}: return {episode['rewards'].sum():.3f}, cost {episode['costs'].sum()}", flush=True)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
