"""The state of a ``BatchVecEnv`` between two steps, for checkpoints of a training."""

from typing import Any

# Of the episodes in progress, and for the next reset
_COPIED = ("_is_running", "_t_start", "_episode", "_lengths", "_sums", "_seeds", "_options", "reset_infos")


def get_state(vec_env: Any) -> dict[str, Any]:
    """
    Everything that the next steps depend on, except what monitors have seen.

    :raises NotImplementedError: the task has a simulation of its own, which does not say its state
    """
    if not hasattr(vec_env.simulation, "get_checkpoint_state"):
        raise NotImplementedError(f"{type(vec_env.simulation).__name__} has no get_checkpoint_state")
    return {
        "simulation": vec_env.simulation.get_checkpoint_state(),
        "attributes": {name: vars(vec_env)[name] for name in _COPIED},
        "generators": [env.unwrapped.np_random.bit_generator.state for env in vec_env.envs],
        # Perhaps changed since, by a curriculum
        "arguments": {name: getattr(vec_env.task, name, None) for name in getattr(vec_env.task, "_saved_kwargs", {})},
        "n_broken_simulations": [task.n_broken_simulations for task in vec_env._tasks],
    }


def set_state(vec_env: Any, state: dict[str, Any]) -> None:
    """Go on from a state of a ``BatchVecEnv`` of the same task and number of copies."""
    vec_env.simulation.set_checkpoint_state(state["simulation"])
    vars(vec_env).update(state["attributes"])
    for env, generator in zip(vec_env.envs, state["generators"], strict=True):
        env.unwrapped.np_random.bit_generator.state = generator
    vec_env._rngs = [env.unwrapped.np_random for env in vec_env.envs]
    for task, n_broken in zip(vec_env._tasks, state["n_broken_simulations"], strict=True):
        vars(task).update(state["arguments"])
        task.n_broken_simulations = n_broken
