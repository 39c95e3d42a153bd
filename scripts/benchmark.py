"""
How fast is it? Each subcommand measures one thing and prints a table.

    python scripts/benchmark.py envs
    python scripts/benchmark.py stepping --envpool path/to/python --mjbatch path/to/another/python
    python scripts/benchmark.py train --against HEAD~1
    python scripts/benchmark.py collect
    python scripts/benchmark.py update
    python scripts/benchmark.py memory
    python scripts/benchmark.py scaling --output scaling.png
    python scripts/benchmark.py processes
"""

import argparse

from benchmarks import collect, envs, memory, processes, scaling, stepping, train, update

BENCHMARKS = {
    "envs": envs,
    "stepping": stepping,
    "train": train,
    "collect": collect,
    "update": update,
    "memory": memory,
    "scaling": scaling,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = subcommands.add_parser(name, help=benchmark.__doc__, description=benchmark.__doc__)
        benchmark.add_arguments(command)
        command.set_defaults(run=benchmark.run)
    # What `train` starts for each code that it compares
    worker = subcommands.add_parser("worker")
    train.add_worker_arguments(worker)
    worker.set_defaults(run=train.train_on_demand)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
