"""Saving and loading of models that see costs, parameters of other algorithms, and interrupted trainings."""

import io
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_cpo import mistakes
from sb3_cpo.arguments import OtherModel
from sb3_cpo.checkpoints import files, training
from sb3_cpo.cost_model import CostModel
from sb3_cpo.defaults import default_env
from sb3_cpo.policies import parameters_that_fit

SelfSavedModel = TypeVar("SelfSavedModel", bound="SavedModel")


class SavedModel(CostModel):
    """A model that can be saved, loaded and resumed. Arguments: see :class:`~sb3_cpo.cost_model.CostModel`."""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "cost_limits", "_cost_signal", "_resumption"]

    def _training_attributes(self) -> dict[str, Any]:
        """What ``save`` leaves out, and a training checkpoint does not."""
        return {}

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """
        SB3's. The file is written whole or not at all: if that fails, the one from before stays as it was. The statistics of
        ``VecNormalize`` are in it, see :func:`~sb3_cpo.checkpoints.load_vec_normalize`.
        """
        save = partial(super().save, exclude=exclude, include=include)
        files.save_model(save, self.get_vec_normalize_env(), path)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        SB3's. With ``exact_match=False``, the parameters can come from a PPO or TRPO policy without cost critic: actor and
        reward critic are taken over, the state of an optimizer that has other parameters is not.
        """
        if not exact_match:
            load_path_or_dict = parameters_that_fit(load_path_or_dict, self.policy.optimizer, device)
            normalizer = getattr(self.policy, "observation_normalizer", None)
            weights: Any = load_path_or_dict.get("policy", {})
            if normalizer is not None and weights and not any("observation_normalizer" in name for name in weights):
                normalizer.is_frozen.fill_(True)
        try:
            super().set_parameters(load_path_or_dict, exact_match, device)
        except RuntimeError as error:
            # torch's list of them all, and SB3's option that is for this
            if exact_match and "key(s) in state_dict" in str(error) and "size mismatch" not in str(error):
                raise RuntimeError(f"{error}\nTo take over the parameters that both have, pass exact_match=False") from error
            raise

    @classmethod
    def load(cls: type[SelfSavedModel], path: Any, *args: Any, **kwargs: Any) -> SelfSavedModel:
        """SB3's. ``cost_limit`` may name other costs than those of training: what was learned of these is then forgotten."""
        mistakes.check_load(cls.__init__, cls.__name__, kwargs)
        try:
            model = super().load(path, *args, **kwargs)
        except (OtherModel, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "key(s) in state_dict" not in str(error):
                raise
            raise ValueError(mistakes.other_algorithm(cls.__name__, path, error)) from error
        if model.has_cost_critic and model.n_costs > 0 and "cost_limit" in kwargs and model.safety.n_updates == 0:
            model.policy.reset_cost_critic()  # type: ignore[operator]
        return model

    @classmethod
    def resume(
        cls: type[SelfSavedModel], path: str | Path, env: GymEnv | str, device: th.device | str = "auto", **kwargs: Any
    ) -> SelfSavedModel:
        """
        Go on with an interrupted training from its newest checkpoint that can be read, see
        :class:`~sb3_cpo.TrainingCheckpoint`: ``learn`` with the same arguments then continues as if it had never stopped.

        The file is unpickled, which runs code that it chooses: only resume from folders that you trust.

        :param path: folder of the checkpoints, or the file of one
        :param env: environment made as for the interrupted training; it is brought to the state that it had
        :param device: Device on which the code should run
        :param kwargs: extra arguments to change the model when loading
        :raises FileNotFoundError: there is no checkpoint
        :raises ValueError: none of them can be read, or they are of other environments
        """
        if env is None:
            raise TypeError(f"{cls.__name__}.resume needs an environment, made as for the interrupted training")
        checkpoint = training.find(path)
        model = cls.load(checkpoint.path, maybe_make_env(default_env(env), 0), device, force_reset=False, **kwargs)
        model._resumption = training.Resumption(model, checkpoint)
        return model
