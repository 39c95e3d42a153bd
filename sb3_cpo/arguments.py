"""Checks of the algorithms' arguments, as a table."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sb3_cpo.buffers import CostRolloutBuffer
from sb3_cpo.policies import CostActorCriticPolicy


class Rule(NamedTuple):
    """What the numbers given for some arguments must be."""

    holds: Callable[[float], bool]
    message: str
    names: tuple[str, ...]


RULES = (
    Rule(
        lambda value: value > 0,
        "must be positive",
        (
            "target_kl",
            "cg_max_steps",
            "line_search_max_iter",
            "sub_sampling_factor",
            "fisher_sub_sampling_factor",
            "n_cost_rollouts",
            "n_critic_updates",
            "batch_size",
            "n_steps",
        ),
    ),
    Rule(
        lambda value: 0 <= value <= 1,
        "must lie in [0, 1]",
        ("gamma", "gae_lambda", "cost_gamma", "cost_gae_lambda", "cost_gae_gamma"),
    ),
    Rule(
        lambda value: value >= 0 and bool(np.isfinite(value)),
        "must be a finite number >= 0",
        ("cg_damping", "cost_confidence", "cost_margin_lr", "n_noise_draws"),
    ),
    Rule(lambda value: value >= 0 and bool(np.isfinite(value)), "must be finite and not negative", ("penalty_lr",)),
    Rule(lambda value: 0 < value < 1, "must lie in (0, 1)", ("line_search_shrinking_factor",)),
)
# None means that the algorithm chooses
OPTIONAL = ("cost_gae_gamma", "cost_confidence", "n_cost_rollouts")
WHOLE_NUMBERS = (
    "n_steps",
    "batch_size",
    "cg_max_steps",
    "line_search_max_iter",
    "n_critic_updates",
    "sub_sampling_factor",
    "fisher_sub_sampling_factor",
    "n_cost_rollouts",
    "n_noise_draws",
)
# Parts that the user may bring
PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cost_shaping": (
        lambda value: hasattr(value, "fit_to") and not isinstance(value, type),
        "an object, sb3_cpo.FailurePredictor(horizon=20) for instance",
    ),
    "bootstrap_time_limits": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    "cost_estimator": (callable, "a function such as sb3_cpo.episode_costs.mean_cost"),
}


class OtherModel(ValueError):
    """A policy or a rollout buffer is that of an algorithm without costs."""


def check_whole_numbers(arguments: dict[str, Any]) -> None:
    """
    :param arguments: by name; None: not chosen yet
    :raises ValueError: a number of steps, of samples, ... is not whole, or no number
    """
    for name in WHOLE_NUMBERS:
        value = arguments.get(name)
        if value is None or callable(value) or (isinstance(value, int | np.integer) and not isinstance(value, bool)):
            # Others are worked out from these before the rules are read
            if name in ("n_steps", "batch_size") and isinstance(value, int | np.integer) and value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
            continue
        is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
        raise ValueError(f"{name} must be a whole number, not {value!r}{f': write {int(value)}' if is_whole else ''}")


def check_arguments(arguments: dict[str, Any], n_envs: int | None) -> None:
    """
    :param arguments: by name; those without a rule are passed over
    :param n_envs: number of environments; None: not known yet
    :raises ValueError: a number is out of its range, or is none
    """
    for rule in RULES:
        for name in rule.names:
            if name not in arguments or (arguments[name] is None and name in OPTIONAL):
                continue
            value = arguments[name]
            if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
                hint = "; only learning_rate and cost_limit can be schedules" if callable(value) else ""
                raise ValueError(f"{name} {rule.message}, not {value!r}{hint}")
            if not rule.holds(float(value)):
                raise ValueError(f"{name} {rule.message}, not {value}")
    for name, (is_part, example) in PARTS.items():
        if arguments.get(name) is not None and not is_part(arguments[name]):
            raise ValueError(f"{name} is {arguments[name]!r}: expected {example}")
    if isinstance(learning_rate := arguments.get("learning_rate"), str):
        raise ValueError(
            f"learning_rate is {learning_rate!r}: expected a number, or a function of the remaining progress that returns one "
            "(names of schedules are for the zoo: write stable_baselines3.common.utils.LinearSchedule(1e-3, 0.0, 1.0))"
        )
    missing_cost = arguments.get("missing_cost", "error")
    if missing_cost not in ("error", "zero"):
        raise ValueError(f'missing_cost must be "error" or "zero", not {missing_cost!r}')
    cost_gae_gamma = arguments.get("cost_gae_gamma")
    if cost_gae_gamma is not None and cost_gae_gamma > arguments["cost_gamma"]:
        raise ValueError(
            f"cost_gae_gamma must not exceed cost_gamma={arguments['cost_gamma']}, not {cost_gae_gamma}: the cost advantages "
            "would include costs that J no longer counts"
        )
    if n_envs is not None:
        _check_batch(arguments, n_envs)


def _check_batch(arguments: dict[str, Any], n_envs: int) -> None:
    n_steps, batch_size = arguments["n_steps"], arguments["batch_size"]
    buffer_size = n_steps * n_envs
    if buffer_size < 2 and arguments["normalize_advantage"]:
        raise ValueError(
            "`n_steps * n_envs` must be greater than 1, because advantages are normalised. "
            f"Currently n_steps={n_steps} and n_envs={n_envs}"
        )
    if buffer_size % batch_size > 0:
        warnings.warn(
            f"batch_size={batch_size} does not divide n_steps * n_envs = {buffer_size}: "
            f"the last minibatch of each epoch has {buffer_size % batch_size} samples "
            f"(n_steps={n_steps}, n_envs={n_envs})"
        )


def check_classes(name: str, policy_class: type, rollout_buffer_class: type | None, has_cost_critic: bool) -> None:
    """
    :param name: of the algorithm
    :raises OtherModel: the policy has no critic for the costs, or the buffer no room for them
    """
    if has_cost_critic and not issubclass(policy_class, CostActorCriticPolicy):
        raise OtherModel(
            f"{name} needs a policy with a cost critic, a subclass of sb3_cpo.policies.CostActorCriticPolicy; "
            f'{policy_class.__name__} has none. Pass "MlpPolicy", "CnnPolicy" or "MultiInputPolicy"'
        )
    if rollout_buffer_class is not None and not issubclass(rollout_buffer_class, CostRolloutBuffer):
        raise OtherModel(
            f"{name} needs a rollout buffer that holds costs, a subclass of sb3_cpo.buffers.CostRolloutBuffer; "
            f"{rollout_buffer_class.__name__} holds none"
        )
