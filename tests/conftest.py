import os
import subprocess
import sys
from functools import lru_cache

import pytest
import torch as th

# Two test processes with as many threads each as there are cores are slower than one core alone
th.set_num_threads(1)


@lru_cache
def has_opengl(backend):
    """A failing OpenGL may end the process, so ask another one."""
    code = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).close()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=120, env={**os.environ, "MUJOCO_GL": backend}
    )
    return result.returncode == 0


@pytest.fixture
def can_draw(monkeypatch):
    """Render without a display, or skip where that is impossible."""
    backend = os.environ.get("MUJOCO_GL", "egl" if sys.platform == "linux" else "glfw")
    monkeypatch.setenv("MUJOCO_GL", backend)
    if not has_opengl(backend):
        pytest.skip("no OpenGL here")
