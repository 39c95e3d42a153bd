"""How many threads torch takes, beside environments that step on threads of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

from sb3_cpo.env_facts import innermost


@contextmanager
def leave_cores_to(env: Any) -> Iterator[None]:
    """
    Within it, torch takes one thread where the environments step on several, as those of ``BatchVecEnv`` do. Of the small
    networks that choose actions it makes nothing faster, and threads of torch that wait for work take cores from the physics.
    """
    n_threads = th.get_num_threads()
    if n_threads == 1 or getattr(innermost(env), "n_threads", 1) == 1:
        yield
        return
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)
