"""
Change the code in one place at a time, and see whether a test notices.

    python scripts/mutation_test.py --modules cpo dual --n-mutants 40

A mutant is one operator, number, comparison, condition, keyword or function name that is another, in a function or in a
constant of the module. It is killed if a test of its module that calls the function fails, or runs far longer than without it.
Each is tried in a copy of the package; the tree is left as it is. The survivors are printed as differences: a missing test, or
a change that changes nothing.

A survivor of a short ``--max-seconds``, or in a function whose results are cached for later tests, is to be looked at by hand.

Left out, because no test should hold it: docstrings, annotations, what is written into messages, and how a scene is drawn
(colours, camera, sizes of boxes that nothing touches; where the boxes stand is not left out).
"""

import argparse
import ast
import contextlib
import copy
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[1]

# The tests of each module, those that are fast and near first
TESTS = {
    "sb3_cpo/dual.py": ["test_dual"],
    "sb3_cpo/trust_region.py": ["test_trust_region", "test_gradient_noise"],
    "sb3_cpo/trust_region_algorithm.py": ["test_enforced_limits", "test_cpo", "test_trpo"],
    "sb3_cpo/gradient_noise.py": ["test_gradient_noise"],
    "sb3_cpo/cost_filter.py": ["test_cost_filter"],
    "sb3_cpo/buffers.py": ["test_buffers", "test_replaced_parts", "test_on_policy_algorithm"],
    "sb3_cpo/critics.py": [
        "test_critics",
        "test_enforced_limits",
        "test_policies",
        "test_on_policy_algorithm",
        "test_interruptions",
    ],
    "sb3_cpo/standardized_head.py": ["test_standardized_head", "test_policies"],
    "sb3_cpo/episode_costs.py": ["test_episode_costs"],
    "sb3_cpo/cost_ledger.py": ["test_episode_costs", "test_enforced_limits", "test_cost_ledger", "test_on_policy_algorithm"],
    "sb3_cpo/cost_limits.py": ["test_cost_limits", "test_enforced_limits", "test_callbacks", "test_mistakes"],
    "sb3_cpo/cost_surrogates.py": ["test_cost_surrogates", "test_cpo"],
    "sb3_cpo/cost_signal.py": ["test_bad_input", "test_mistakes", "test_on_policy_algorithm"],
    "sb3_cpo/cost_rollouts.py": [
        "test_env_watch",
        "test_enforced_limits",
        "test_bad_input",
        "test_on_policy_algorithm",
        "test_cost_ledger",
        "test_log_keys",
        "test_tabular_env",
    ],
    "sb3_cpo/cost_model.py": ["test_defaults", "test_save_load", "test_on_policy_algorithm", "test_mistakes", "test_monitor"],
    "sb3_cpo/on_policy_algorithm.py": ["test_enforced_limits", "test_on_policy_algorithm", "test_interruptions"],
    "sb3_cpo/watchdog.py": ["test_watchdog"],
    "sb3_cpo/cpo.py": ["test_cpo", "test_enforced_limits"],
    "sb3_cpo/pdo.py": ["test_enforced_limits", "test_pdo", "test_bad_input"],
    "safe_envs/mujoco/circle.py": ["test_circle"],
    "safe_envs/mujoco/gather.py": ["test_gather"],
    "safe_envs/mujoco/velocity.py": ["test_velocity", "test_vec_env_access"],
    "safe_envs/mujoco/robots.py": ["test_robots", "test_robot_env", "test_circle", "test_gather", "test_vec_env_access"],
    "safe_envs/mujoco/robot_env.py": ["test_robot_env", "test_robots", "test_envs_contract"],
    "safe_envs/mujoco/simulations.py": ["test_vec_env_access", "test_vec_env"],
    "safe_envs/mujoco/task.py": ["test_robot_env", "test_circle", "test_envs_contract"],
    "safe_envs/mujoco/vec_env.py": ["test_vec_env_access", "test_vec_env"],
}

# A test that waits for ever takes no time of the processor: it may take as many times that by the clock
CLOCK_LIMIT = 10.0

# What the tests import and is not ours
LIBRARIES = ("gymnasium.envs.mujoco", "hypothesis", "pandas", "pytest", "scipy.optimize", "stable_baselines3", "torch")

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
# Calls and keywords that only decide on a picture
DRAWING = {"set_camera", "add_visual_box", "rgba"}
NAMES = {"mean": "median", "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    module: str
    line: int
    source: str
    before: str
    after: str


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes of constants, functions and methods, without what the beginning of this file says."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            yield from _inside(statement)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                yield from _inside(statement)


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if is_text or _draws(node) or isinstance(node, ast.Raise | ast.JoinedStr | ast.FunctionDef | ast.ClassDef):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name != "annotation":
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _inside(child)


def _draws(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return getattr(node.func, "attr", getattr(node.func, "id", None)) in DRAWING
    return isinstance(node, ast.keyword) and node.arg in DRAWING


def change(node: ast.AST) -> bool:
    """Make a node another, in place; False: this kind stays as it is."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        node.attr = NAMES[node.attr]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        return False
    return True


def candidates(tree: ast.Module) -> list[int]:
    """Numbers of the places that can be changed."""
    return [
        index
        for index, node in enumerate(places(tree))
        if isinstance(node, ast.expr | ast.stmt) and change(copy.deepcopy(node))
    ]


def make_mutant(module: str, tree: ast.Module, index: int) -> Mutant:
    mutated = copy.deepcopy(tree)
    place: Any = next(place for number, place in enumerate(places(mutated)) if number == index)
    before = ast.unparse(place).splitlines()[0]
    change(place)
    after = ast.unparse(ast.fix_missing_locations(place)).splitlines()[0]
    return Mutant(module, place.lineno, ast.unparse(mutated), before, after)


class Calls:
    """
    A plugin of pytest that notes which functions of some files each test calls, and how long it takes.

    :param folder: that the files are in
    :param modules: the files
    """

    def __init__(self, folder: Path, modules: Sequence[str]):
        self.modules = {str(folder / module): module for module in modules}
        self.tests: dict[str, tuple[float, list[str]]] = {}
        """By test: seconds, and functions as "file:first line"."""

    def pytest_runtest_setup(self, item: Any) -> None:
        self.start, self.called = time.process_time(), set[str]()
        sys.settrace(self._trace)

    def pytest_runtest_teardown(self, item: Any) -> None:
        sys.settrace(None)
        self.tests[item.nodeid] = (time.process_time() - self.start, sorted(self.called))

    def _trace(self, frame: Any, event: str, _: Any) -> None:
        module = self.modules.get(frame.f_code.co_filename)
        if module is not None:
            self.called.add(f"{module}:{frame.f_code.co_firstlineno}")


def first_line(tree: ast.Module, line: int) -> int | None:
    """First line of the innermost function around a line; None: there is none."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= line <= (node.end_lineno or line)]
    return min(node.lineno for node in [around[-1], *around[-1].decorator_list]) if around else None


def find_calls(folder: Path, modules: Sequence[str]) -> dict[str, tuple[float, list[str]]]:
    """
    What each test of some modules calls.

    :raises SystemExit: a test fails
    """
    found = folder / "calls.json"
    names = dict.fromkeys(name for module in modules for name in TESTS[module])
    if not run_tests(folder, [f"tests/{name}.py" for name in names], 3600, modules):
        raise SystemExit(f"a test fails without a mutant: {' '.join(names)}")
    return json.loads(found.read_text())


def choose_tests(
    calls: dict[str, tuple[float, list[str]]], mutant: Mutant, first: int | None, max_seconds: float
) -> tuple[list[str], float]:
    """
    The tests that call the mutated function, those of its module's own files first and of each file the fast ones, as many as
    fit into some seconds.

    :param first: first line of the function; None: it is a constant of the module, and all tests of it may tell
    :return: the tests, and the seconds that they take
    """
    prefix = f"{mutant.module}:" if first is None else f"{mutant.module}:{first}"
    files = [f"tests/{name}.py" for name in TESTS[mutant.module]]
    of_function = [
        (files.index(file) if (file := test.split("::")[0]) in files else len(files), seconds, test)
        for test, (seconds, called) in calls.items()
        if any(call == prefix or (first is None and call.startswith(prefix)) for call in called)
    ]
    chosen, total = [], 0.0
    for _, seconds, test in sorted(of_function):
        if chosen and total + seconds > max_seconds:
            break
        chosen.append(test)
        total += seconds
    return chosen, total


def run_tests(folder: Path, tests: list[str], time_limit: float, traced: Sequence[str] = ()) -> bool:
    """
    Whether these tests pass with the packages in this folder. They run in a fork of this process, which has imported the
    libraries already, and not ours: that takes longer than most tests.

    :param time_limit: seconds of the processor; others may use the machine, too
    :param traced: modules whose calls are written into calls.json
    """
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time_limit), resource.RLIM_INFINITY))
        _be_the_tests(folder, tests, traced)
    end = time.monotonic() + CLOCK_LIMIT * time_limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def _be_the_tests(folder: Path, tests: list[str], traced: Sequence[str]) -> NoReturn:
    import pytest

    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    code = 1
    calls = Calls(folder, traced)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        with contextlib.suppress(BaseException):
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            code = int(pytest.main([*options, *tests], plugins=[calls] if traced else None))
    if traced:
        (folder / "calls.json").write_text(json.dumps(calls.tests))
    os._exit(code)


def import_libraries() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", default=[Path(module).stem for module in TESTS], help="names without .py")
    parser.add_argument("--n-mutants", type=int, default=20, help="drawn per module; 0: all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--max-seconds", type=float, default=300.0, help="of tests for one mutant")
    parser.add_argument("--calls", type=Path, help="file for what each test calls; read where it exists, else written")
    arguments = parser.parse_args()
    known = {Path(module).stem: module for module in TESTS}
    if unknown := set(arguments.modules) - set(known):
        parser.error(f"no tests are known of {sorted(unknown)}; there are {sorted(known)}")

    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    import_libraries()
    n_killed, survivors = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("sb3_cpo", "safe_envs", "tests", "scripts", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if arguments.calls is not None and arguments.calls.exists():
            calls = json.loads(arguments.calls.read_text())
        else:
            calls = find_calls(folder, [known[name] for name in arguments.modules])
        if arguments.calls is not None:
            arguments.calls.write_text(json.dumps(calls))
        for name in arguments.modules:
            module = known[name]
            original, n_killed_here = (folder / module).read_text(), 0
            tests, seconds = [f"tests/{name}.py" for name in TESTS[module]], 300.0
            tree = ast.parse(original)
            drawn = candidates(tree)
            if 0 < arguments.n_mutants < len(drawn):
                drawn = random.Random(arguments.seed).sample(drawn, arguments.n_mutants)
            for index in drawn:
                mutant = make_mutant(module, tree, index)
                (folder / module).write_text(mutant.source)
                tests, seconds = choose_tests(calls, mutant, first_line(tree, mutant.line), arguments.max_seconds)
                if not tests or run_tests(folder, tests, 3 * seconds + 30):
                    survivors.append(mutant)
                    print(f"survives: {module}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
                else:
                    n_killed_here += 1
            (folder / module).write_text(original)
            # A test that fails by itself, or an installation that broke meanwhile, would have killed every mutant
            if not run_tests(folder, tests, 3 * seconds + 30):
                raise SystemExit(f"tests of {module} fail without a mutant now: {' '.join(tests)}")
            n_killed += n_killed_here
            print(f"{module}: {n_killed_here} of {len(drawn)} killed", flush=True)
    n_mutants = n_killed + len(survivors)
    print(f"{n_killed} of {n_mutants} killed ({n_killed / max(n_mutants, 1):.0%})")


if __name__ == "__main__":
    main()
