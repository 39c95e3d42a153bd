"""Draw return and cost of runs: the same as ``sb3-cpo plot``."""

from sb3_cpo.plot_runs import main

if __name__ == "__main__":
    main(prog="python scripts/plot.py")
