"""
The command sb3-cpo, also python -m sb3_cpo.

    sb3-cpo train --algo cpo --env SafePointCircle-v0      train an agent
    sb3-cpo enjoy --algo cpo --env SafePointCircle-v0      watch it, with its costs
    sb3-cpo tune --algo cpo --env SafePointCircle-v0       search hyperparameters; the cost is a constraint
    sb3-cpo report --algo cpo --env SafePointCircle-v0     say with which confidence it satisfies its limits
    sb3-cpo plot logs/cpo/SafePointCircle-v0_1             draw return and cost of runs, with the limits
    sb3-cpo video --algo cpo --env SafePointCircle-v0      record an agent

Each has its own --help; --version says the version. train, enjoy and tune are those of rl_zoo3, with costs.
"""

import sys
from importlib import import_module

from sb3_cpo import __version__

# Command -> module, function, extra that brings the packages which it needs
COMMANDS = {
    "train": ("sb3_cpo.zoo.train", "train", "zoo"),
    "enjoy": ("sb3_cpo.zoo.enjoy", "enjoy", "zoo"),
    "tune": ("sb3_cpo.zoo.train", "tune", "zoo"),
    "report": ("sb3_cpo.zoo.report", "main", "zoo,report"),
    "plot": ("sb3_cpo.plot_runs", "main", "plot"),
    "video": ("sb3_cpo.record_video", "main", "zoo,video"),
}


def main() -> None:
    """Run one of the commands with the rest of the command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    if name == "--version":
        print(f"sb3-cpo {__version__}")
        return
    if name not in COMMANDS:
        sys.exit(f"sb3-cpo: there is no command {name!r}; there are {', '.join(COMMANDS)}")
    module, function, extra = COMMANDS[name]
    try:
        command = getattr(import_module(module), function)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("sb3_cpo", "safe_envs"):
            raise
        cause = error.__cause__ or error
        sys.exit(
            f"sb3-cpo {name} needs packages that are not installed ({cause}): "
            f"in a clone of the repository, pip install -e '.[{extra}]'"
        )
    del sys.argv[1]
    command(prog=f"sb3-cpo {name}")


if __name__ == "__main__":
    main()
