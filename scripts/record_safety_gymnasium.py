"""
Record transitions of Safety-Gymnasium on its own stack, for tests/test_safety_gymnasium.py to compare ours with.

In an environment of its own (Python 3.10; gymnasium 0.28.1, MuJoCo 2.3.3 and numpy 1.23.5 come with it)::

    python3.10 -m venv original && original/bin/pip install safety-gymnasium==1.0.0 "numpy<1.24"
    original/bin/python scripts/record_safety_gymnasium.py tests/data/safety_gymnasium.npz

Of each robot and task, an episode's first 200 steps: all rewards and costs; the observations before, after the first and
after every 25th step; and before every 25th step the whole state of the simulation, so that a test can begin there.
"""

import sys

import numpy as np

ROBOTS = ("Point", "Car", "Racecar", "Doggo", "Ant")
TASKS = ("Goal1", "Button1", "Push1", "Circle1", "Run0")
N_STEPS, EVERY, SEEDS = 200, 25, (0, 1, 2)


def random_actions(low, high, seed, n_steps=N_STEPS):
    """(n_steps, n_actions) uniform, each held for ten steps so that the robot gets somewhere."""
    draws = np.random.RandomState(seed).uniform(low, high, (n_steps // 10, len(low)))
    return draws.repeat(10, axis=0)


def state_of(data):
    """What MuJoCo's next step begins with."""
    return np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart])


def record(env, data, seed):
    """
    Play an episode.

    :param data: function that returns the simulation of this episode
    :return: arrays by name
    """
    observation, _ = env.reset(seed=seed)
    first, rewards, costs, states, observations, n_goals = [observation], [], [], [], [], 0
    for step, action in enumerate(random_actions(env.action_space.low, env.action_space.high, seed)):
        if step % EVERY == 0:
            states.append(state_of(data()))
        values = env.step(action)
        info = values[-1]
        n_goals += info.get("goal_met", False)
        rewards.append(values[1])
        costs.append(info["cost_sum"])
        if step == 0:
            first.append(values[0])
        if step % EVERY == 0:
            observations.append(values[0])
        if values[-3] or values[-2]:
            break
    return {
        "seed": np.array(seed),
        "first": np.array(first),
        "rewards": np.array(rewards, dtype=np.float32),
        "costs": np.array(costs, dtype=np.uint8),
        "states": np.array(states),
        "observations": np.array(observations),
        "n_goals": np.array(n_goals),
    }


def main(path):
    import safety_gymnasium

    arrays = {}
    for robot in ROBOTS:
        for task in TASKS:
            env_id = f"Safety{robot}{task}-v0"
            env = safety_gymnasium.make(env_id)
            episodes = [record(env, lambda env=env: env.unwrapped.task.data, seed) for seed in SEEDS]
            # No goal on the way, whose successor is random; as many costs as possible
            episode = max(episodes, key=lambda episode: (-episode.pop("n_goals"), episode["costs"].sum()))
            arrays.update({f"{env_id}/{name}": array for name, array in episode.items()})
            print(f"{env_id}: seed {episode['seed']}, cost {episode['costs'].sum()}")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
