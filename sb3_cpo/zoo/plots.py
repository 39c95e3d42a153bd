"""
``python -m sb3_cpo.zoo.plots {all_plots,plot_from_file,plot_train}``: rl_zoo3's plots, of costs too.

``all_plots --key costs`` aggregates the costs of the evaluations instead of their returns.
"""

import pickle
import sys
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from sb3_cpo import zoo  # noqa: F401  (says what to install where rl_zoo3 is missing)

try:
    import rliable.library  # noqa: F401
except Exception:
    # rliable 1.2 needs arch < 8, which does not import under pandas 3. To rl_zoo3, a rliable that is missing is an option
    # that is missing; one that raises anything but ImportError ends all its plots
    sys.modules["rliable"] = None  # type: ignore[assignment]

SCRIPTS = ("all_plots", "plot_from_file", "plot_train")


def load_results(file: BinaryIO) -> dict[str, Any]:
    """What ``all_plots`` has saved; of a single run it saves a number where ``plot_from_file`` expects one per run."""
    results = pickle.load(file)
    for env_id in results.keys() - {"results_table"}:
        for entry in results[env_id].values():
            entry["last_evals"] = np.atleast_1d(entry["last_evals"])
    return results


def main() -> None:
    """Run one of rl_zoo3's plot scripts."""
    if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
        print(f"{(__doc__ or '').strip()}\n\nEach has its own --help.")
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    from rl_zoo3 import plots

    # The package has a function of the module's name
    sys.modules["rl_zoo3.plots.plot_from_file"].pickle = SimpleNamespace(load=load_results)  # type: ignore[attr-defined]
    script = sys.argv.pop(1)
    getattr(plots, script)()


if __name__ == "__main__":
    main()
