"""What people type who come from other algorithms, and the messages that say what to write here instead."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo.cost_limits import CostLimits

Init = TypeVar("Init", bound=Callable[..., None])

_CRITICS = "n_critic_updates are the epochs of the critics; the policy takes one step on the whole rollout"
_REGION = "target_kl is the size of the trust region, which bounds every update"
_OFF_POLICY = "this is an on-policy algorithm: each update is made of one rollout, n_steps * n_envs steps"
_CRITIC_RATE = "learning_rate is that of the critics; the policy takes steps of the size target_kl"
_TRAINING = "it belongs to learn()"

# Arguments of other algorithms, SB3's first, and what does their work here
ELSEWHERE = {
    "n_epochs": _CRITICS,
    "clip_range": _REGION,
    "clip_range_vf": "the critics' updates are not clipped",
    "ent_coef": 'there is no entropy bonus; the first standard deviation is policy_kwargs={"log_std_init": ...}',
    "vf_coef": "the critics have networks and an optimizer of their own; learning_rate is theirs",
    "max_grad_norm": "gradients are not clipped; target_kl bounds the policy's step",
    "rms_prop_eps": "the policy takes no gradient steps; the critics' optimizer is in policy_kwargs (optimizer_class)",
    "use_rms_prop": "the policy takes no gradient steps; the critics' optimizer is in policy_kwargs (optimizer_class)",
    **dict.fromkeys(
        ("buffer_size", "learning_starts", "tau", "train_freq", "gradient_steps", "action_noise", "replay_buffer_class"),
        _OFF_POLICY,
    ),
    **dict.fromkeys(("total_timesteps", "callback", "progress_bar", "log_interval", "tb_log_name"), _TRAINING),
    "n_envs": 'that is the environment\'s: env=sb3_cpo.make_vec_env("MyEnv-v0", n_envs=8)',
    "eval_env": "evaluation is a callback: learn(callback=sb3_cpo.callbacks.CostEvalCallback(eval_env))",
    "net_arch": 'it belongs to the policy: policy_kwargs={"net_arch": [64, 64]}',
    # Other libraries with costs
    **dict.fromkeys(("cost_limits", "cost_lim", "limit", "limits", "cost_threshold", "cost_budget"), "write cost_limit"),
    **dict.fromkeys(("max_kl", "delta", "kl_targ", "trust_region"), "write target_kl"),
    **dict.fromkeys(("cg_iters", "cg_iterations"), "write cg_max_steps"),
    **dict.fromkeys(("damping", "damping_coeff"), "write cg_damping"),
    **dict.fromkeys(("lam", "lambda_", "gae_lam"), "write gae_lambda"),
    **dict.fromkeys(("cost_lam", "lam_c", "lambda_c"), "write cost_gae_lambda"),
    **dict.fromkeys(("vf_lr", "critic_lr", "actor_lr", "pi_lr", "lr"), _CRITIC_RATE),
    **dict.fromkeys(("vf_iters", "critic_iters", "update_iters", "train_v_iters"), "write n_critic_updates"),
    **dict.fromkeys(("steps_per_epoch", "local_steps_per_epoch"), "write n_steps, the steps of each copy in a rollout"),
    **dict.fromkeys(("backtrack_coeff", "backtrack_iters"), "see line_search_shrinking_factor and line_search_max_iter"),
    **dict.fromkeys(
        ("lagrangian_multiplier_init", "lambda_init", "penalty_init"),
        "the multipliers follow from each batch in CPO; PDO(penalty_coef=...) begins with one",
    ),
    **dict.fromkeys(
        ("lambda_lr", "penalty_learning_rate"), "the multipliers follow from each batch in CPO; PDO has penalty_lr"
    ),
}

# Whose argument it is, where another algorithm here has it
HERE = {
    **dict.fromkeys(("cost_confidence", "cost_margin_lr", "n_cost_rollouts", "n_noise_draws", "cost_gae_gamma"), "CPO"),
    "penalty_lr": "PDO",
    "penalty_coef": "PDO and FPO",
}


class UnknownArgument(TypeError):
    """An algorithm has no argument of this name."""


def names_mistakes(init: Init) -> Init:
    """Of an algorithm's ``__init__``: arguments that it has not are errors that say what to write instead."""
    parameters = list(inspect.signature(init).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    by_position = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        algorithm = type(self).__name__
        for name in kwargs:
            if name not in names:
                raise UnknownArgument(f"{algorithm} has no argument {name!r}: {_hint(name, names)}")
        if len(args) > len(by_position):
            surplus = ", ".join(map(repr, args[len(by_position) :]))
            raise TypeError(
                f"{algorithm} takes {', '.join(by_position)} by position and the rest by name; it got {surplus} as well. "
                "(The third argument of SB3's algorithms is learning_rate: write learning_rate=...)"
            )
        is_loaded = not kwargs.get("_init_setup_model", True)  # SB3 sets the environment later
        if (args[1] if len(args) > 1 else kwargs.get("env")) is None and not is_loaded:
            policy = args[0] if args else kwargs.get("policy")
            example = repr(policy) if isinstance(policy, str) and policy not in self.policy_aliases else '"MyEnv-v0"'
            raise TypeError(f'{algorithm} needs an environment: {algorithm}("MlpPolicy", {example}, cost_limit=...)')
        init(self, *args, **kwargs)

    return checked_init  # type: ignore[return-value]


def _hint(name: str, names: Iterable[str]) -> str:
    if name in HERE:
        return f"it is an argument of {HERE[name]}"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    close = get_close_matches(name, [other for other in names if not other.startswith("_")], n=1)
    return f"did you mean {close[0]}?" if close else "help() of the class lists all"


def check_load(init: Callable[..., None], algorithm: str, arguments: Iterable[str]) -> None:
    """
    SB3 writes whatever ``load`` gets into the model, where nobody looks for a name that is misspelt.

    :param init: of the algorithm
    :raises UnknownArgument: an argument is that of another algorithm, or nearly one of this
    """
    names = list(inspect.signature(init).parameters)[1:]
    for name in arguments:
        if name in names:
            continue
        is_elsewhere = name in ELSEWHERE or name in HERE
        if is_elsewhere or get_close_matches(name, [other for other in names if not other.startswith("_")], n=1, cutoff=0.85):
            raise UnknownArgument(f"{algorithm} has no argument {name!r}: {_hint(name, names)}")


def check_env(env: Any) -> None:
    """
    :param env: what the user gave, made already
    :raises ValueError, TypeError: it is no environment; what it is instead, and how to make one of it
    """
    if isinstance(env, gym.Env | VecEnv):
        return
    if isinstance(env, str):
        raise TypeError(f"the environment is the string {env!r}: make it first, gym.make({env!r})")
    if isinstance(env, list | tuple):
        raise TypeError(
            f"the environment is a {type(env).__name__} of {len(env)}: several copies are "
            "sb3_cpo.make_vec_env(..., n_envs=...), or DummyVecEnv([function that makes one, ...])"
        )
    if isinstance(env, type) or (callable(env) and not hasattr(env, "step")):
        name = getattr(env, "__name__", repr(env))
        raise TypeError(
            f"the environment is {name}, which makes one: call it, {name}(), or sb3_cpo.make_vec_env({name}, n_envs=8)"
        )
    # SB3 takes environments of OpenAI Gym with the help of shimmy
    if "gym" not in sys.modules:
        raise TypeError(f"the environment is an object of {type(env).__name__}, which does not derive from gymnasium.Env")


def other_algorithm(name: str, path: Any, error: Exception) -> str:
    """
    What to say where a file is not that of the algorithm with this name.

    :param error: what is wrong with it
    """
    return (
        f"{path} does not hold a model of {name}. If it is another algorithm's, PPO's or TRPO's for instance, begin with its "
        f"actor and reward critic: model = {name}(...), then model.set_parameters({path!r}, exact_match=False). ({error})"
    )


def other_number_of_costs(n_costs: int, n_costs_of_model: int) -> str:
    """What to say where a loaded model has another number of costs than ``cost_limit``."""
    return (
        f"cost_limit has {n_costs} {'entry' if n_costs == 1 else 'entries'}, but this model was trained with "
        f"{n_costs_of_model}: its cost critic has an output for each. A new model can take over the rest: "
        "set_parameters(..., exact_match=False)"
    )


def check_model(model: Any) -> None:
    """
    :param model: what the user gave to be evaluated
    :raises TypeError: it cannot predict
    """
    if isinstance(model, str) or not hasattr(model, "predict"):
        hint = ": the model comes first, the environment second" if isinstance(model, gym.Env | VecEnv) else ""
        hint = f": load it first, CPO.load({model!r})" if isinstance(model, str) else hint
        raise TypeError(f"the model is an object of {type(model).__name__}, which has no predict(){hint}")


def check_learn(total_timesteps: Any, callback: Any) -> None:
    """
    :raises TypeError: what ``learn`` got is no number, or no callback
    """
    if isinstance(total_timesteps, str) or total_timesteps is None or not np.isreal(total_timesteps):
        raise TypeError(f"total_timesteps must be a number of steps, not {total_timesteps!r}")
    for part in callback if isinstance(callback, list) else [callback]:
        if isinstance(part, type):
            raise TypeError(f"callback is the class {part.__name__}: pass an object, {part.__name__}(...)")
        if part is not None and not isinstance(part, BaseCallback) and (isinstance(callback, list) or not callable(part)):
            hint = "; a function can be the only callback" if callable(part) else ""
            raise TypeError(f"callback must be an object of BaseCallback, or a list of such{hint}, not {part!r}")


class WrongReset(TypeError):
    """An environment's ``reset`` does not return an observation and an info."""


class WrongStep(ValueError):
    """An environment's ``step`` returns another number of values than five."""


_SIX_VALUES = (
    "step must return the five values (obs, reward, terminated, truncated, info). One that returns six, with the cost after "
    "the reward as in Safety-Gymnasium and OmniSafe: wrap the environment in safe_envs.SixTupleWrapper, inside of all other "
    "wrappers (around gym.make(id, disable_env_checker=True).unwrapped where it is made by its id)"
)
_FOUR_VALUES = (
    "step must return the five values (obs, reward, terminated, truncated, info) of gymnasium; four are those of OpenAI Gym, "
    'where "done" was both ends of an episode'
)


def explain_step(error: Exception) -> None:
    """
    :param error: what was raised while an environment was stepped
    :raises WrongStep: if its cause is that ``step`` has returned another number of values than five
    """
    text = str(error)
    if isinstance(error, WrongStep):  # a monitor has explained it already
        return
    if "too many values to unpack (expected 5)" in text or "elements returned: 6" in text:
        raise WrongStep(f"{text}: {_SIX_VALUES}") from error
    if "not enough values to unpack (expected 5" in text:
        raise WrongStep(f"{text}: {_FOUR_VALUES}") from error


def explain_reset(error: TypeError) -> None:
    """
    :param error: what was raised while an environment was reset
    :raises WrongReset: if its cause is a ``reset`` of OpenAI Gym
    """
    if "reset() got an unexpected keyword argument 'seed'" in str(error):
        raise WrongReset(
            f"{error}: gymnasium's environments have reset(self, *, seed=None, options=None), which returns (obs, info)"
        ) from error


def warn_of_running_totals(costs: np.ndarray, ends: np.ndarray, limits: CostLimits) -> None:
    """
    Warn of costs that only grow within every episode, as a count of all collisions so far does.

    :param costs: (n_steps, n_envs, n_costs) of the first rollout
    :param ends: (n_steps, n_envs), whether an episode ended in that step
    """
    for index in range(costs.shape[2]):
        episodes = [
            episode
            for copy in range(costs.shape[1])
            for episode in np.split(costs[:, copy, index], np.flatnonzero(ends[:, copy]) + 1)
        ]
        if is_running_total(episodes):
            key = "cost" if limits.keys is None else limits.keys[index]
            warnings.warn(
                f"{limits.name_cost(index)} never fell within an episode of the first rollout, as a running total does not: "
                "the limit bounds the sum over the steps, which counts a total again and again. If it is one, "
                f"safe_envs.CostWrapper(env, total_key={key!r}) makes it a cost per step (sb3_cpo.check_cost_env shows more)"
            )


def warn_of_skipped_steps(
    costs: np.ndarray, ends: np.ndarray, episodes: Iterable[tuple[int, int, dict[str, Any]]], limits: CostLimits
) -> None:
    """
    Warn where a wrapper around the monitor makes several steps of one and passes on only the costs of the last of them.

    :param costs: (n_steps, n_envs, n_costs) of the first rollout
    :param ends: (n_steps, n_envs), whether an episode ended in that step
    :param episodes: step, environment and ``info["episode"]`` of the episodes that ended
    """
    for step, env, episode in episodes:
        begin = int(np.flatnonzero(ends[:step, env])[-1]) + 1 if ends[:step, env].any() else 0
        sums = costs[begin : step + 1, env].sum(axis=0).tolist()
        if text := skipped_costs(step + 1 - begin, dict(zip(limits.keys or ("cost",), sums, strict=False)), episode):
            warnings.warn(text)
            return


def skipped_costs(n_steps: int, costs: Mapping[str, float], episode: Mapping[str, Any]) -> str | None:
    """
    What to say of an episode that has cost something else for its monitor, in more steps; None: nothing.

    :param n_steps: steps of it that are seen outside of all wrappers
    :param costs: what these have cost
    :param episode: what the monitor says of it, ``info["episode"]``
    """
    for key, seen in costs.items():
        inside = episode.get(key)
        if inside is not None and episode.get("l", 0) > n_steps and not np.isclose(seen, inside, rtol=1e-3):
            return (
                f"an episode of {episode['l']} steps has cost {inside:g} by its monitor, and {seen:g} in the {n_steps} steps "
                "that an algorithm sees: a wrapper around the monitor repeats actions (MaxAndSkipEnv, for instance) and "
                "passes on the info of the last step only. The limit is on what the algorithm sees. Put the wrapper inside of "
                "the one that adds the cost, or add the costs up in it"
            )
    return None


def is_running_total(episodes: Iterable[np.ndarray]) -> bool:
    """
    Whether costs look like totals: they never fall within an episode, and rise more than once in one.

    :param episodes: (n_steps,) each
    """
    rises = [np.diff(costs) for costs in episodes if len(costs) > 1]
    if not rises or any((rise < 0).any() for rise in rises):
        return False
    return max(int((rise > 0).sum()) for rise in rises) >= 2


def warn_of_negative_limits(limit: np.ndarray, costs: np.ndarray, limits: CostLimits) -> None:
    """
    Warn of limits below zero where nothing has cost less than nothing.

    :param limit: (n_costs,)
    :param costs: (n_steps, n_envs, n_costs) of the first rollout
    """
    for index in np.flatnonzero((limit < 0) & (costs >= 0).all(axis=(0, 1))).tolist():
        warnings.warn(
            f"{limits.name_limit(index)} is {limit[index]:g}, but none of the {costs[..., index].size} costs of the first "
            "rollout was negative: if this cost never is, no policy satisfies the limit"
        )
