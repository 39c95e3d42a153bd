"""A safety report: what fresh episodes say about a policy and its limits, with bounds, and what training has cost."""

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_cpo.cost_limits import CostLimit, CostLimits, parse_cost_limit
from sb3_cpo.cost_signal import CostSignal
from sb3_cpo.env_facts import max_episode_steps, registered_cost_limit
from sb3_cpo.mistakes import check_model
from sb3_cpo.report_env import env_id_of, episode_env
from sb3_cpo.seeded_episodes import SeededEpisode, play_episode, seeds_apart
from sb3_cpo.training_record import TrainingRecord, training_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sb3_cpo.constraint_report import ConstraintReport

INSTALL = "{} needs packages that are not installed ({}): in a clone of the repository, pip install -e '.[report]'"
PACKAGES = ("sb3-cpo", "stable-baselines3", "gymnasium", "mujoco", "numpy", "scipy", "torch")


@dataclass(frozen=True)
class PolicyReport:
    """What the episodes of one policy say. Arrays have an entry per episode."""

    policy: str
    """"stochastic" or "deterministic"."""
    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    costs: np.ndarray
    """(n_episodes, n_costs)"""
    constraints: "tuple[ConstraintReport, ...]"

    @property
    def verdict(self) -> str:
        """Of all constraints: "satisfied", "not satisfied" (one is not), or "inconclusive"."""
        verdicts = {constraint.verdict for constraint in self.constraints}
        return next(verdict for verdict in ("not satisfied", "inconclusive", "satisfied") if verdict in verdicts)

    @property
    def n_more_episodes(self) -> int | None:
        """About as many more would decide; 0: it is decided; None: more than 100,000."""
        if self.verdict != "inconclusive":
            return 0
        more = [constraint.n_more_episodes for constraint in self.constraints]
        return None if None in more else max(number for number in more if number is not None)


@dataclass(frozen=True, repr=False)
class SafetyReport:
    """What :func:`sb3_cpo.safety_report` returns: numbers, and ways to write them down."""

    env_id: str
    algorithm: str
    alpha: float
    cost_gamma: float
    policies: tuple[PolicyReport, ...]
    """The stochastic policy, which the limit is for, first."""
    training: TrainingRecord | None
    versions: dict[str, str]
    hashes: dict[str, str]
    """What was hashed -> SHA-256."""
    command: str
    date: str
    model_path: str | None = field(default=None)

    @property
    def verdict(self) -> str:
        """Of the first policy, the stochastic one unless it was left out."""
        return self.policies[0].verdict

    def to_markdown(self) -> str:
        from sb3_cpo.report_rendering import to_markdown

        return to_markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, the episodes too, in JSON's types."""
        from sb3_cpo.report_rendering import to_dict

        return to_dict(self)

    def plot(self) -> "Figure":
        """Histograms of the episodes' costs with the limits."""
        from sb3_cpo.report_rendering import draw

        return draw(self)

    def save(self, folder: str | Path) -> Path:
        """
        Write ``report.md``, ``report.json`` and ``costs.png``.

        :return: the folder
        """
        from sb3_cpo.report_rendering import save

        return save(self, Path(folder))

    def save_model_card(self, folder: str | Path, license: str | None = None) -> Path:
        """
        The same files, and a model card for the Hugging Face Hub (``README.md``), with the model beside it if ``model_path``
        was given. Nothing is uploaded: ``hf upload user/name folder`` does that.

        :param license: of the model, as the Hub names it
        :return: the folder
        """
        from sb3_cpo.model_card import save_model_card

        return save_model_card(self, Path(folder), license)

    def __str__(self) -> str:
        return self.to_markdown()

    def __repr__(self) -> str:
        return f"<SafetyReport of {self.algorithm} on {self.env_id}: {self.verdict}>"


def safety_report(
    model: BaseAlgorithm,
    env: GymEnv | str,
    n_episodes: int = 100,
    *,
    cost_limit: CostLimit | None = None,
    alpha: float = 0.05,
    max_episode_cost: float | Sequence[float] | Mapping[str, float] | None = None,
    policies: Sequence[str] = ("stochastic", "deterministic"),
    seed: int | None = None,
    model_path: str | Path | None = None,
    vec_normalize_path: str | Path | None = None,
    training_folder: str | Path | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    command: str | None = None,
    progress_bar: bool = False,
) -> SafetyReport:
    """
    Play fresh episodes, and say with which confidence the policy satisfies its limits.

    The episodes are seeded one by one, apart from the seeds of training; :func:`sb3_cpo.replay_episode` plays the worst once
    more. The environment must not be the one in which the model trains.

    :param model: a model of ours or of SB3
    :param env: an id, an environment, or a ``VecEnv`` of one copy. Statistics of a ``VecNormalize`` are not changed, and taken
        from the training environment where the model still has it
    :param n_episodes: of each policy
    :param cost_limit: limits as for the algorithms. None: those of the model (of a schedule, its end), else the environment's
    :param alpha: probability of error of each bound and verdict
    :param max_episode_cost: what an episode costs at most (and 0 at least), one number or one per constraint: the bounds on
        the mean are then exact
    :param policies: which are judged
    :param seed: of the first episode; the others follow. None: a million
    :param model_path: the model's file, for its hash and for the model card
    :param vec_normalize_path: file with the statistics of the ``VecNormalize`` that the model was trained with
    :param training_folder: of the run, with ``progress.csv`` or monitor files: what training has cost
    :param env_kwargs: arguments of ``gym.make``, for an id
    :param command: what to write down as the command; None: the call
    :param progress_bar: show one
    :raises ValueError: no limit is known, ``env`` is the training environment, or has more than one copy
    :raises ImportError: the extra ``report`` is not installed
    """
    try:
        from sb3_cpo.constraint_report import report_constraint
    except ImportError as error:
        raise ImportError(INSTALL.format("safety_report", error)) from error

    check_model(model)
    if n_episodes < 2:
        raise ValueError(f"n_episodes={n_episodes}: a bound needs two at least")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")
    policies = [policies] if isinstance(policies, str) else policies
    if not policies or not set(policies) <= {"stochastic", "deterministic"}:
        raise ValueError(f"policies must be among 'stochastic' and 'deterministic', got {policies!r}")
    seeds = seeds_apart(n_episodes, model, seed)
    reports = []
    with episode_env(model, env, env_kwargs, vec_normalize_path) as vec_env:
        limits, gamma = _limits_of(model, vec_env, cost_limit)
        final_limit = limits.at(0.0)
        names = limits.names or limits.keys or ("cost",)
        largest = _as_list(max_episode_cost, names, "max_episode_cost")
        time_limit = max_episode_steps(vec_env)
        for policy in policies:
            episodes = [
                play_episode(model, vec_env, one, policy == "deterministic", _signal(model, limits), gamma)
                for one in _with_progress(seeds, policy, progress_bar)
            ]
            constraints = tuple(
                report_constraint(episodes, index, name, final_limit[index], alpha, len(names), largest[index], time_limit)
                for index, name in enumerate(names)
            )
            reports.append(_policy_report(policy, episodes, constraints))
        env_id = env if isinstance(env, str) else env_id_of(vec_env)
    return SafetyReport(
        env_id=env_id,
        algorithm=type(model).__name__,
        alpha=alpha,
        cost_gamma=gamma,
        policies=tuple(reports),
        training=training_record(model, training_folder, limits, final_limit),
        versions=_versions(),
        hashes=_hashes(model, model_path, vec_normalize_path),
        command=command or f"safety_report(model, {env_id!r}, {n_episodes}, seed={seeds[0]})",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model_path=None if model_path is None else str(model_path),
    )


def replay_episode(
    model: BaseAlgorithm,
    env: GymEnv | str,
    seed: int,
    deterministic: bool = False,
    *,
    cost_limit: CostLimit | None = None,
    vec_normalize_path: str | Path | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    on_step: Callable[[VecEnv, np.ndarray, float, bool], None] | None = None,
) -> SeededEpisode:
    """
    Play an episode of a :func:`safety_report` once more, the worst perhaps. Arguments that both have are the same.

    :param seed: of the episode
    :param deterministic: whether it was one of the deterministic policy
    :param on_step: called after each step with the environment (to render it), the costs and the return so far, and whether
        the episode is over; the environment shows the next one then
    """
    with episode_env(model, env, env_kwargs, vec_normalize_path) as vec_env:
        limits, gamma = _limits_of(model, vec_env, cost_limit)
        watch = None if on_step is None else partial(on_step, vec_env)
        return play_episode(model, vec_env, seed, deterministic, _signal(model, limits), gamma, watch)


# ---------------------------------------------------------------- limits


def _limits_of(model: BaseAlgorithm, env: VecEnv, cost_limit: CostLimit | None) -> tuple[CostLimits, float]:
    """The limits to judge by, and the discount factor of the costs: limits that are not the model's are on plain sums."""
    own: CostLimits | None = getattr(model, "cost_limits", None)
    if cost_limit is None and own is not None and own.is_limited:
        return own, getattr(model, "cost_gamma", 1.0)
    if cost_limit is None:
        cost_limit = registered_cost_limit(env)
    if cost_limit is None:
        raise ValueError("no limit is known, neither by the model nor by the environment: pass cost_limit")
    limits = parse_cost_limit(cost_limit)
    if limits.n_costs == 0:
        raise ValueError(f"cost_limit={cost_limit!r} limits nothing: there is nothing to report")
    return limits, 1.0


def _signal(model: BaseAlgorithm, limits: CostLimits) -> CostSignal:
    return CostSignal(limits.keys, limits.n_costs, getattr(model, "missing_cost", "error"))


def _as_list(value: Any, names: Sequence[str], what: str) -> list[float | None]:
    """One number for all constraints, one for each, or a mapping that may leave some out."""
    if value is None:
        return [None] * len(names)
    if isinstance(value, Mapping):
        unknown = set(value) - set(names)
        if unknown:
            raise ValueError(f"{what} names {sorted(unknown)}, but the constraints are {list(names)}")
        return [float(value[name]) if name in value else None for name in names]
    values = np.ravel(value).astype(float).tolist()
    if len(values) not in (1, len(names)):
        raise ValueError(f"{what} has {len(values)} entries for {len(names)} constraints")
    return values * len(names) if len(values) == 1 else values


# ---------------------------------------------------------------- report


def _with_progress(seeds: Sequence[int], policy: str, progress_bar: bool) -> Any:
    from tqdm import tqdm

    return tqdm(seeds, f"{policy} policy", unit="episode") if progress_bar else seeds


def _policy_report(policy: str, episodes: Sequence[SeededEpisode], constraints: Any) -> PolicyReport:
    return PolicyReport(
        policy=policy,
        seeds=np.array([episode.seed for episode in episodes]),
        returns=np.array([episode.reward for episode in episodes]),
        lengths=np.array([episode.length for episode in episodes]),
        costs=np.array([episode.costs for episode in episodes]),
        constraints=constraints,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _hashes(model: BaseAlgorithm, model_path: str | Path | None, vec_normalize_path: str | Path | None) -> dict[str, str]:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    hashes = {"parameters of the policy": digest.hexdigest()}
    for what, path in (("model file", model_path), ("statistics of VecNormalize", vec_normalize_path)):
        if path is not None:
            hashes[what] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return hashes


__all__ = ["PolicyReport", "SafetyReport", "replay_episode", "safety_report"]
