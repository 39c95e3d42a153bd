"""
What can go wrong with the environments while a model learns: values that are no numbers, processes that die.

SB3's VecEnvs are watched from inside, below all their wrappers: a NaN is an error before ``VecNormalize`` takes it into its
statistics, which would never be rid of it.
"""

import selectors
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_cpo.cost_signal import LARGEST_COST
from sb3_cpo.env_facts import check_finite, innermost, keeps_steps, name_env, replaced

# Seconds without an answer of a process after which a user is told, and after which an interrupted step is given up
PATIENCE, LAST_PATIENCE = 60.0, 5.0
# Wrappers keep sums of squares in double precision, whose largest number is 1.8e308
LARGEST_WRAPPED = 1e100


class EnvWatch:
    """
    While it is entered, a ``VecEnv`` returns finite values only, and says which of its processes has died. Nor are they larger
    than can be squared: in single precision, or in double where a wrapper may bring them down.

    :param env: wrapped or not
    :param num_timesteps: steps played so far, for messages
    :param on_reset: called before every reset: within a rollout, only others reset the environments, an evaluation perhaps
    """

    def __init__(self, env: VecEnv, num_timesteps: Callable[[], int], on_reset: Callable[[], None] = lambda: None):
        self.env, self._inner = env, innermost(env)
        self._on_reset = on_reset
        self._largest = LARGEST_COST if self._inner is env else LARGEST_WRAPPED
        self._num_timesteps = num_timesteps
        self.is_step_lost = False
        """Whether a step is under way, or was interrupted: the environments have taken it, or some, and nobody has seen it."""
        self.steps = Counter[int]()
        """
        Steps of the environments, whoever made them and at whichever wrapper, by what ``num_timesteps`` was. None are counted
        below a wrapper that may make several of one.
        """
        self._is_counting = keeps_steps(env)

    def __enter__(self) -> "EnvWatch":
        inner: Any = self._inner
        self._step_wait, self._reset = inner.step_wait, inner.reset
        self._replaced = ExitStack()
        self._replaced.enter_context(replaced(inner, "step_wait", self._watched_step))
        self._replaced.enter_context(replaced(inner, "reset", self._watched_reset))
        self._remotes: list[_Remote] = []
        if isinstance(inner, SubprocVecEnv):
            self._remotes = [_Remote(*pair) for pair in enumerate(zip(inner.remotes, inner.processes, strict=True))]
            inner.remotes = tuple(self._remotes)
        return self

    def __exit__(self, *error: Any) -> None:
        inner: Any = self._inner
        self._replaced.close()
        if self._remotes:
            inner.remotes = tuple(remote.connection for remote in self._remotes)
        if self._remotes and error[0] is not None:
            for remote in self._remotes:
                remote.forget_answers()
            inner.waiting = False

    def _watched_reset(self, *args: Any, **kwargs: Any) -> Any:
        self._on_reset()
        obs = self._reset(*args, **kwargs)
        check_finite("observation", obs, self.env, self._num_timesteps())
        return obs

    def _watched_step(self) -> Any:
        self.is_step_lost = True
        if self._is_counting:
            self.steps[self._num_timesteps()] += 1
        step = self._num_timesteps() + self.env.num_envs
        try:
            obs, rewards, dones, infos = self._step_wait()
        except (TypeError, ValueError) as error:
            error.add_note(
                f"raised in step {step} of {name_env(self.env)}. An environment's step returns an observation of its space, a "
                "number, two booleans and a dictionary"
            )
            raise
        check_finite("reward", rewards, self.env, step, largest=self._largest)
        check_finite("observation", obs, self.env, step, largest=self._largest)
        for index in np.flatnonzero(dones[: len(infos)]).tolist():
            terminal_obs = infos[index].get("terminal_observation")
            check_finite("terminal observation", terminal_obs, self.env, step, index, self._largest)
        self.is_step_lost = False
        return obs, rewards, dones, infos


class _Remote:
    """
    A pipe to a worker of ``SubprocVecEnv``. With SB3's, one would wait for a dead worker for ever: where processes are forked,
    the others hold its end of the pipe open.
    """

    def __init__(self, index: int, connection_and_process: tuple[Any, BaseProcess]):
        self.index = index
        self.connection, self.process = connection_and_process
        # One for all steps: to make it takes longer than to ask it. Windows has none for pipes
        self._selector = selectors.PollSelector() if hasattr(selectors, "PollSelector") else None
        if self._selector is not None:
            for source in (self.connection, self.process.sentinel):
                self._selector.register(source, selectors.EVENT_READ)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionError) as error:
            raise self._is_dead() from error

    def recv(self) -> Any:
        if not self._has_answer(PATIENCE):
            warnings.warn(f"environment {self.index} of SubprocVecEnv has not answered for {PATIENCE:g} s; still waiting")
            self._has_answer(None)
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._is_dead() from error

    def _has_answer(self, timeout: float | None) -> bool:
        """Whether there is one after this number of seconds at most; an error if there will be none."""
        ready: list[Any]
        if self._selector is None:
            ready = wait([self.connection, self.process.sentinel], timeout)
        else:
            ready = [key.fileobj for key, _ in self._selector.select(timeout)]
        if ready == [self.process.sentinel] and not self.connection.poll(0):
            raise self._is_dead()
        return bool(ready)

    def forget_answers(self) -> None:
        """
        After an interruption: an answer that is left in the pipe would be taken for that to the next question, for ever. Ask
        for something that nobody else asks for, and throw away what comes before.
        """
        try:
            self.connection.send(("get_spaces", None))
            while self._has_answer(LAST_PATIENCE):
                answer = self.connection.recv()
                if isinstance(answer, tuple) and isinstance(answer[-1], spaces.Space):
                    return
        except (EOFError, OSError, RuntimeError):
            # Dead; the next question says so
            return
        warnings.warn(
            f"environment {self.index} of SubprocVecEnv does not answer after an interruption: make the environments anew "
            "before you go on"
        )

    def _is_dead(self) -> RuntimeError:
        self.process.join(timeout=1.0)
        return RuntimeError(
            f"the process of environment {self.index} of SubprocVecEnv has ended (exit code {self.process.exitcode}). An "
            "error of the environment stands above, printed by the process; Ctrl-C ends the processes too. Make the "
            "environments anew, and go on with model.set_env(env)"
        )
