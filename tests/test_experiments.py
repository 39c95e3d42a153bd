"""The scripts behind the results run from beginning to end, in small, and leave what they promise."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from sb3_cpo import find_checkpoint

SCRIPTS = Path(__file__).parent.parent / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(script: str, *args: str) -> list[str]:
    return [sys.executable, "-W", "ignore", str(SCRIPTS / script), *args]


def run(script: str, *args: str, folder: Path) -> str:
    result = subprocess.run(command(script, *args), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_demo_leaves_log_model_and_picture_and_says_where_training_ended(tmp_path):
    output = run("demo.py", "--total-timesteps", "40000", "--output", "out", folder=tmp_path)
    assert {"model.zip", "training.png", "progress.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert list((tmp_path / "out").glob("events.out.tfevents*"))
    last = output.strip().splitlines()[-1]
    assert last.startswith("CPO ends with a return of")
    assert "limit of 5" in last


@pytest.mark.slow
def test_comparison_does_not_repeat_what_is_there(tmp_path):
    tasks = ("--tasks", "SafePointGather-v0")
    args = ("run", *tasks, "--algorithms", "CPO", "CPO + shaping", "TRPO", "--seeds", "0")
    output = run("experiments/comparison.py", *args, "--steps", "42000", folder=tmp_path)
    results = tmp_path / "results"
    rows = pd.read_csv(results / "compared" / "TRPO" / "SafePointGather-v0_seed0.csv")
    # 14 whole episodes of 15 steps in each of 100 copies
    assert rows["steps"].tolist() == [21_000, 42_000]
    of_cpo = results / "promise" / "SafePointGather-v0_seed0.csv"
    assert {"predicted cost", "actual cost", "noise cost"} <= set(pd.read_csv(of_cpo))
    # What is predicted is of the shaped cost, and J is not
    assert "predicted cost" not in pd.read_csv(results / "compared" / "CPO + shaping" / "SafePointGather-v0_seed0.csv")
    assert "there already" not in output
    again = run("experiments/comparison.py", *args, "--steps", "42000", folder=tmp_path)
    assert again.count("there already") == 3
    # Runs of promise.py are used as they are, others are made longer
    before = of_cpo.read_bytes()
    longer = run("experiments/comparison.py", *args[:-2], "--seeds", "0", "--steps", "63000", folder=tmp_path)
    assert longer.count("there already") == 1
    assert of_cpo.read_bytes() == before
    table = run("experiments/comparison.py", "draw", folder=tmp_path).splitlines()
    assert [line.split(" | ")[1:3] for line in table[2:]] == [
        ["CPO", "0.042M"],
        ["TRPO", "0.042M"],
        ["CPO + shaping", "0.042M"],
    ]
    assert {path.name for path in (results / "compared").glob("*.png")} == {
        "SafePointGather-v0-figure1.png",
        "SafePointGather-v0-figure3.png",
    }


@pytest.mark.slow
def test_comparison_under_the_conditions_of_the_paper(tmp_path):
    conditions = ("--tasks", "SafePointGather-v0", "--conditions", "paper")
    args = ("--algorithms", "PDO 1000", "CPO", "--seeds", "0", "--steps", "49500")
    run("experiments/comparison.py", "run", *conditions, *args, folder=tmp_path)
    folder = tmp_path / "results" / "as-in-the-paper"
    # 33 whole episodes of 15 steps in each of 100 copies
    assert pd.read_csv(folder / "PDO 1000" / "SafePointGather-v0_seed0.csv")["steps"].tolist() == [49_500]
    names = ("PDO 1000", "CPO")
    pdo, cpo = (json.loads((folder / name / "SafePointGather-v0_seed0.json").read_text())["settings"] for name in names)
    assert (pdo["gamma"], pdo["penalty_coef"], pdo["n_envs"]) == (0.995, 1000, 100)
    assert "n_noise_draws" not in pdo
    assert cpo == {"gamma": 0.995, "n_envs": 100}
    assert not (tmp_path / "results" / "promise").exists()
    table = run("experiments/comparison.py", "draw", *conditions, folder=tmp_path)
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["CPO", "PDO 1000"]


def test_comparison_measures_all_over_the_same_steps(promise, tmp_path, monkeypatch, capfd):
    import comparison

    def write(folder: str, j: list[float], returns: list[float]) -> None:
        steps = 10 * np.arange(1, len(j) + 1)
        log = pd.DataFrame(
            {"steps": steps, "return": returns, "episodes": 50, "J cost": j, "error cost": 1.0, "limit cost": 5.0}
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        log.to_csv(tmp_path / folder / "SafePointCircle-v0_seed0.csv", index=False)

    write("CPO", [4, 6, 8, 4, 5, 4, 4, 4, 4, 6, 100], [*range(10), 1000])
    write("FPO 1", [9, 1, 1, 1, 1, 1, 1, 1, 1, 1], [7] * 10)
    common = ["--output", str(tmp_path), "--cpo", str(tmp_path / "CPO")]
    monkeypatch.setattr(sys, "argv", ["comparison.py", "draw", *common])
    comparison.main()
    rows = [line.strip("| ").split(" | ") for line in capfd.readouterr().out.splitlines()[2:]]
    # Task, algorithm, steps, seeds, return, cost, over in all, over late, highest J, regret
    assert rows == [
        ["SafePointCircle-v0", "CPO", "0.0001M", "1", "8.5", "5", "30%", "50%", "8", "5"],
        ["SafePointCircle-v0", "FPO 1", "0.0001M", "1", "7", "1", "10%", "0%", "9", "4"],
    ]
    assert {path.name for path in tmp_path.glob("*.png")} == {"SafePointCircle-v0-figure4.png"}
    drawn = comparison.curve(comparison.read_run(tmp_path / "FPO 1" / "SafePointCircle-v0_seed0.csv"))
    assert (drawn.costs[""][0], drawn.limits[""][0]) == (9, 5)

    import readme_figure

    picture = ["--runs", str(tmp_path), "--cpo", str(tmp_path / "CPO"), "-o", str(tmp_path / "readme.png")]
    monkeypatch.setattr(sys, "argv", ["readme_figure.py", *picture, "--algorithms", "CPO", "FPO 1"])
    readme_figure.main()
    assert "CPO: 1 seeds, last fifth 8.5 at a cost of 5\n" in capfd.readouterr().out
    assert (tmp_path / "readme.png").exists()
    monkeypatch.setattr(sys, "argv", ["readme_figure.py", *picture])
    with pytest.raises(SystemExit, match="no run of PDO, TRPO"):
        readme_figure.main()
    monkeypatch.setattr(sys, "argv", ["comparison.py", "draw", *common, "--tasks", "SafeAntCircle-v0"])
    with pytest.raises(SystemExit, match="no finished run"):
        comparison.main()


# ---------------------------------------------------------------- runs

# Rollouts of one episode
SETTINGS = {"n_steps": 100, "batch_size": 50, "n_critic_updates": 1}
PROMISE = ("run", "--group", "small", "--seeds", "0", "--output", "out", "--settings", json.dumps(SETTINGS))


@pytest.fixture
def as_function(monkeypatch, tmp_path, capfd):
    """A script as a function of its command line, which returns what was printed."""
    # Scripts import their neighbours by name, as Python does where one of them is started
    monkeypatch.syspath_prepend(str(SCRIPTS / "experiments"))
    monkeypatch.chdir(tmp_path)

    def of_script(name):
        def main(*args: str) -> str:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
            importlib.import_module(name).main()
            return capfd.readouterr().out

        importlib.import_module(name)
        return main

    return of_script


@pytest.fixture
def promise(as_function):
    return as_function("promise")


def test_promise_runs_what_is_not_done_and_shows_a_table(promise, monkeypatch):
    monkeypatch.setattr("promise.missing_package", lambda task: "the moon" if "Lander" in task else None)
    args = (*PROMISE, "--only", "double integrator", "LunarLander engine", "--steps")
    out = promise(*args, "200")
    assert "LunarLander engine: skipped, needs the moon" in out
    table = promise("show", "out")
    assert out.endswith(table)
    summary, runs = (part.splitlines() for part in table.split("\n\n"))
    assert [line.split(" | ")[1] for line in summary[2:]] == ["cost_speed", "cost_force"]
    assert [line.split(" | ")[2] for line in runs[2:]] == ["cost_speed", "cost_force"]
    path = Path("out") / "double integrator_seed0.csv"
    written = path.read_bytes()
    assert {"J cost_speed", "error cost_speed", "limit cost_speed"} <= {*pd.read_csv(path)}
    assert f"{path}: there already" in promise(*args, "200")
    # Other settings under the same name, or less
    for others in (("100",), ("200", "--settings", "{}")):
        with pytest.raises(ValueError, match="choose another folder"):
            promise(*args, *others)
    assert path.read_bytes() == written
    with pytest.raises(SystemExit):
        promise(*PROMISE, "--only", "double integral")


def test_promise_keeps_what_updates_expected_of_each_cost(promise):
    log = {"time/total_timesteps": 100, "rollout/n_episodes": 5}
    for name, start in (("a", 1.0), ("b", 10.0)):
        keys = ("rollout/ep_cost_mean", "rollout/ep_cost_std_error", "rollout/cost_limit", "train/predicted_cost_change")
        keys += ("train/actual_cost_change", "train/cost_gradient_noise")
        log |= {f"{key}/{name}": start + index for index, key in enumerate(keys)}
    row = sys.modules["measures"].make_row(log)
    names = ("J", "error", "limit", "predicted", "actual", "noise")
    for cost, start in (("a", 1.0), ("b", 10.0)):
        assert [row[f"{name} {cost}"] for name in names] == [start + index for index in range(6)]
    shaped = sys.modules["measures"].make_row({**log, "rollout/ep_shaped_cost_mean/a": 2.0})
    assert not [name for name in shaped if name.startswith(("predicted", "actual"))]


def test_promise_averages_over_seeds(promise, tmp_path):
    for seed, level in ((0, 20), (1, 30)):
        returns = pd.DataFrame({"steps": [1, 2, 3], "return": [0, 0, level], "episodes": 50, "J cost": [30, 25, level]})
        returns.assign(**{"limit cost": 25}).to_csv(tmp_path / f"SafeAntVelocity-v0_seed{seed}.csv", index=False)
    summary = promise("show", str(tmp_path)).splitlines()[2]
    # From the second rollout on: 25 and 20, 25 and 30 of 25; the first update is before the limit is reached
    published = "published CPO 1306 / 17.7 at 1e6"
    assert summary == f"| SafeAntVelocity-v0 | cost | 3 | 2 | 1.00 | 25% |  | 50% | 25 | 20 to 30 | {published} |"


def test_what_the_error_of_j_alone_puts_over_the_limit(promise):
    share_by_error = sys.modules["measures"].share_by_error
    j, many = np.full(20, 0.8), np.full(20, 50)
    # A standard deviation below the limit, and two where a rollout has a quarter of the episodes that are averaged
    np.testing.assert_allclose(share_by_error(j, np.full(20, 0.2), many), 0.1587, atol=1e-4)
    np.testing.assert_allclose(share_by_error(j, np.full(20, 0.2), many / 4), 0.0228, atol=1e-4)
    # Over the limit itself, and without an error, nothing is by error
    assert not share_by_error(2 - j, np.full(20, 0.2), many).any()
    assert not share_by_error(j, np.zeros(20), many).any()
    # In a run, in units of its limit, from the first time that it is reached
    run = pd.DataFrame({"steps": range(20), "return": 0, "episodes": 50, "J cost": [2.5, *[2.0] * 19], "error cost": 0.5})
    (row,) = sys.modules["measures"].judge(run.assign(**{"limit cost": 2.5}))
    around = [2 + 0.5 / (6 + index) if index < 6 else 2.0 for index in range(20)]
    expected = np.mean([norm.sf((2.5 - mean) / 0.5) for mean in around])
    assert row["over by sampling error"] == pytest.approx(expected)


def test_the_tables_in_the_docs_are_those_of_the_committed_runs(promise):
    results = SCRIPTS.parent / "docs" / "results"
    summary, runs = promise("show", str(results / "promise")).strip().split("\n\n")
    assert summary in (results / "index.md").read_text()
    assert runs in (results / "promise.md").read_text()


@pytest.fixture
def velocity(as_function):
    return as_function("velocity_benchmark")


def write_run(path: Path, n_rollouts: int, returns: float, j: list[float]) -> None:
    steps = 20_000 * np.arange(1, n_rollouts + 1)
    costs = np.resize(j, n_rollouts)
    run = pd.DataFrame({"steps": steps, "return": returns, "episodes": 50, "J cost": costs, "limit cost": 25.0})
    run.to_csv(path, index=False)


def test_the_velocity_benchmark_is_measured_as_what_is_published_is(velocity, tmp_path):
    write_run(tmp_path / "SafeAntVelocity-v0_seed0.csv", 50, 1000.0, [20.0])
    write_run(tmp_path / "SafeAntVelocity-v0_seed1.csv", 100, 2000.0, [20.0, 30.0])
    write_run(tmp_path / "SafeAntVelocity-v0_seed2.csv", 100, 3000.0, [20.0, 40.0])
    way, late = velocity("show", str(tmp_path), "--output", str(tmp_path / "drawn")).strip().split("\n\n")
    rows = [line.strip("| ").split(" | ") for line in way.splitlines()]
    # Ten rollouts before a million steps of all seeds, before two of those that are as long
    assert rows[2][:5] == ["SafeAntVelocity-v0", "sb3-cpo", "3", "2000 / 25.0", "2500 / 27.5 (2)"]
    assert rows[3][:5] == ["SafeAntVelocity-v0", "CPO", "5", "1306 / 17.7", "2325 / 19.5"]
    rows = [line.strip("| ").split(" | ") for line in late.splitlines()]
    # Half of the longer runs is over the limit, by 5 and by 15; runs of another length have a row of their own
    assert rows[2] == ["SafeAntVelocity-v0", "sb3-cpo", "1M", "1", "1000", "20.0", "0%", "0%", "20", "0"]
    assert rows[3] == ["SafeAntVelocity-v0", "sb3-cpo", "2M", "2", "2500", "27.5", "50%", "50%", "40", "500"]
    assert rows[4] == ["SafeAntVelocity-v0", "CPO", "10M", "5", "3088", "19.7", "31%", "29%", "60", "1357"]
    assert (tmp_path / "drawn" / "velocity.png").exists()
    with pytest.raises(SystemExit, match="no finished run"):
        velocity("show", str(tmp_path / "nothing"))


def test_the_last_policies_are_played_without_noise(promise, velocity, tmp_path):
    settings = json.dumps({"n_steps": 100, "batch_size": 100, "n_critic_updates": 1})
    args = ("run", "--group", "velocity", "--only", "SafeHopperVelocity-v0", "--seeds", "0", "--steps", "2000")
    promise(*args, "--settings", settings, "--output", "out")
    velocity("evaluate", "out", "--episodes", "2")
    (row,) = pd.read_csv(tmp_path / "out" / "deterministic.csv").to_dict("records")
    assert (row["task"], row["seed"], row["steps"], row["episodes"]) == ("SafeHopperVelocity-v0", 0, 2000, 2)
    # The same policy from the same seed
    before = row["ep_rew_mean"]
    velocity("evaluate", "out", "--episodes", "2")
    assert pd.read_csv(tmp_path / "out" / "deterministic.csv")["ep_rew_mean"].item() == before
    *_, last = velocity("show", "out").strip().split("\n\n")
    assert last.splitlines()[2].endswith("| 1714 / 13.4 | 1716 / 7.5 (CUP) |")
    with pytest.raises(SystemExit, match="no checkpoint"):
        velocity("evaluate", str(tmp_path))


def test_the_tables_of_the_velocity_page_are_those_of_the_committed_runs(velocity):
    results = SCRIPTS.parent / "docs" / "results"
    page = (results / "velocity.md").read_text()
    for table in velocity("show", str(results / "promise")).strip().split("\n\n"):
        assert table in page


@pytest.fixture
def comparison(as_function):
    return as_function("comparison")


@pytest.mark.parametrize(("page", "group"), [("paper.md", "PAPER"), ("velocity.md", "VELOCITY")])
def test_the_tables_of_comparisons_are_those_of_the_committed_runs(comparison, tmp_path, page, group):
    results = SCRIPTS.parent / "docs" / "results"
    tasks = getattr(sys.modules["tasks"], group)
    compared = [task for task in tasks if list((results / "compared" / "plain CPO").glob(f"{task}_seed*.csv"))]
    folders = ("--output", str(results / "compared"), "--cpo", str(results / "promise"), "--pictures", str(tmp_path))
    assert comparison("draw", "--tasks", *compared, *folders).strip() in (results / page).read_text()


def test_others_are_trained_under_the_same_conditions(comparison, tmp_path):
    task = "SafeHopperVelocity-v0"
    chosen = ("--algorithms", "PPO-Lagrangian", "--tasks", task, "--seeds", "0", "--steps", "20000")
    comparison("run", *chosen, "--output", "others")
    run = pd.read_csv(tmp_path / "others" / "PPO-Lagrangian" / f"{task}_seed0.csv")
    # 20 copies, an episode of 1,000 steps each, as CPO has them
    assert run["steps"].tolist() == [20_000]
    assert run["limit cost"].tolist() == [25.0]
    write_run(tmp_path / f"{task}_seed0.csv", 5, 1000.0, [20.0])
    table = comparison("draw", "--tasks", task, "--output", "others", "--cpo", str(tmp_path)).strip()
    rows = [line.strip("| ").split(" | ")[:4] for line in table.splitlines()[2:]]
    assert rows == [[task, "CPO", "0.02M", "1"], [task, "PPO-Lagrangian", "0.02M", "1"]]
    assert (tmp_path / "others" / f"{task}-figure1.png").exists()


def test_a_run_that_fails_does_not_stop_the_others(promise, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules["promise"].GROUPS, "small", ("NoSuchTask-v0", "double integrator"))
    with pytest.raises(SystemExit, match=r"1 of 2 runs failed: out/NoSuchTask-v0_seed0\.csv"):
        promise(*PROMISE, "--steps", "100")
    assert "`NoSuchTask` doesn't exist" in capfd.readouterr().err
    assert Path("out/double integrator_seed0.csv").exists()


# promise.py whose run ends itself and everything around it, as kill -9 does, when its fifth row is dumped: a rollout after
# its fourth checkpoint. Processes of runs read this, too
KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(SCRIPTS / "experiments")!r})
import promise, runs

write = runs._Rows.write

def write_and_die(rows, *args, **kwargs):
    write(rows, *args, **kwargs)
    if len(rows.rows) == 5:
        os.killpg(0, signal.SIGKILL)

runs._Rows.write = write_and_die
if __name__ == "__main__":
    promise.main()
"""


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path):
    args = (*PROMISE, "--only", "double integrator", "--steps", "2500", "--save-every", "0")
    where = {"cwd": tmp_path, "env": ENVIRONMENT, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    killed = tmp_path / "killed.py"
    killed.write_text(KILLED)
    result = subprocess.run([sys.executable, "-W", "ignore", str(killed), *args], start_new_session=True, **where)
    assert result.returncode == -signal.SIGKILL, result.stderr
    checkpoints = tmp_path / "out" / "double integrator_seed0.checkpoints"
    assert find_checkpoint(checkpoints).state["num_timesteps"] == 400
    assert not (tmp_path / "out" / "double integrator_seed0.csv").exists()

    result = subprocess.run(command("experiments/promise.py", *args), text=True, check=True, **where)
    assert "from step 400 to 2,500" in result.stderr
    subprocess.run(command("experiments/promise.py", *args, "--output", "whole"), check=True, **where)
    resumed, whole = (tmp_path / folder / "double integrator_seed0.csv" for folder in ("out", "whole"))
    assert len(pd.read_csv(whole)) == 25
    assert resumed.read_text() == whole.read_text()


def test_a_run_that_is_done_can_be_made_longer(promise, tmp_path, capfd):
    args = (*PROMISE, "--only", "double integrator", "--save-every", "1000")
    promise(*args, "--steps", "300")
    promise(*args, "--steps", "600")
    promise(*args, "--steps", "600", "--output", "whole")
    longer, whole = (tmp_path / folder / "double integrator_seed0.csv" for folder in ("out", "whole"))
    assert len(pd.read_csv(whole)) == 6
    assert longer.read_text() == whole.read_text()
    # On its way to more, or without the checkpoint from which it would go on, it stays as it is
    description = longer.with_suffix(".json")
    description.write_text(json.dumps({**json.loads(description.read_text()), "steps": 300}))
    with pytest.raises(SystemExit):
        promise(*args, "--steps", "500")
    shutil.rmtree(longer.with_suffix(".checkpoints"))
    with pytest.raises(SystemExit):
        promise(*args, "--steps", "900")
    errors = capfd.readouterr().err
    assert "is on its way to 600 steps, 500 are fewer" in errors
    assert "no checkpoint in double integrator_seed0.checkpoints" in errors
    assert longer.read_text() == whole.read_text()


def test_variants_are_compared_in_a_table_and_two_pictures(promise, monkeypatch, tmp_path, capfd):
    import variants

    small = json.dumps({"n_steps": 200, "batch_size": 100, "n_critic_updates": 1})
    args = [
        "--task",
        "Pendulum speed",
        "--variants",
        "default",
        "plain",
        "--seeds",
        "0",
        "--steps",
        "1600",
        "--settings",
        small,
    ]
    monkeypatch.setattr(sys, "argv", ["variants.py", *args, "--output", "out"])
    variants.main()
    folder = tmp_path / "out" / "Pendulum speed"
    assert {"table.csv", "curves.png", "calibration.png"} <= {path.name for path in folder.iterdir()}
    table = pd.read_csv(folder / "table.csv").set_index("variant")
    for variant in ("default", "plain"):
        log = pd.read_csv(folder / f"{variant}_seed0.csv")
        late = log.iloc[4:]
        assert table["actual"][variant] == pytest.approx(late["train/actual_cost_change"].mean())
        # The row after an update shows the change that it made
        assert late["train/actual_cost_change"].sum() == pytest.approx(
            log["rollout/ep_cost_mean"].iloc[-1] - log["rollout/ep_cost_mean"].iloc[3], rel=1e-4, abs=1e-3
        )
    # Only the default measures the noise
    assert table["noise share"].isna().tolist() == [False, True]
    assert json.loads((folder / "plain_seed0.json").read_text())["settings"]["n_noise_draws"] == 0


def test_mistakes_are_those_that_their_names_say(promise, monkeypatch):
    import common_mistakes
    from toy_envs import RiskyEnv, vec_env

    from sb3_cpo.trust_region_algorithm import TrustRegionAlgorithm

    original, seen = TrustRegionAlgorithm._trust_region_step, []

    def record(self, rollout, batches, violation, *args, **kwargs):
        seen.append((violation, batches[-1].advantages, kwargs.get("solve"), rollout.cost.mean_length))
        return original(self, rollout, batches, violation, *args, **kwargs)

    monkeypatch.setattr(TrustRegionAlgorithm, "_trust_region_step", record)

    def train(name):
        seen.clear()
        cls, settings = common_mistakes.VARIANTS[name]
        env = vec_env(lambda rank: RiskyEnv(), 2)
        model = cls("MlpPolicy", env, 0.5, n_steps=80, batch_size=40, seed=0, device="cpu", **settings)
        costs = []
        for _ in range(4):
            model.learn(160, reset_num_timesteps=False)
            costs.append(model.raw_cost_estimate.mean.item())
        return costs, list(seen)

    costs, rows = train("plain")
    violation, advantages, solve, length = rows[0]
    np.testing.assert_allclose([row[0].item() for row in rows], np.array(costs) - 0.5)
    assert solve is None
    assert length == 4

    _, ((same_violation, per_step, _, _), *_) = train("plain, surrogate per step")
    np.testing.assert_allclose(same_violation, violation)
    np.testing.assert_allclose(per_step * 4, advantages, rtol=1e-5)

    _, ((_, _, solve, _), *_) = train("plain, wrong sign")
    problem = 2.0, np.array([0.3]), np.array([[1.0]]), np.array([0.1]), 0.01
    opposite = 2.0, np.array([-0.3]), np.array([[1.0]]), np.array([0.1]), 0.01
    np.testing.assert_allclose(solve(*problem).nu, common_mistakes.solve_dual(*opposite).nu)
    assert abs(solve(*problem).nu - common_mistakes.solve_dual(*problem).nu) > 0.1

    # 40 episodes in a rollout: the last hundred are of two and a half
    costs, rows = train("plain, old episodes")
    spread = max(costs) - min(costs)
    mixed = (40 * costs[3] + 40 * costs[2] + 20 * costs[1]) / 100
    assert rows[3][0].item() + 0.5 == pytest.approx(mixed, abs=spread / 5)
    assert rows[0][0].item() + 0.5 == pytest.approx(costs[0])
    assert rows[3][0].item() + 0.5 != pytest.approx(costs[3])


def test_several_limits_are_held_against_their_weighted_sum(promise, monkeypatch, tmp_path, capfd):
    import several_limits

    args = ["--tasks", "SafePointCircle-v0", "--seeds", "0", "--steps", "60000", "--output", "out"]
    monkeypatch.setattr(sys, "argv", ["several_limits.py", *args])
    several_limits.main()
    folder = tmp_path / "out" / "SafePointCircle-v0"
    each, summed = (pd.read_csv(folder / f"{method}_seed0.csv").iloc[0] for method in several_limits.METHODS)
    # The first rollout is the same, whatever is limited
    costs = {name: each[f"rollout/ep_cost_mean/{name}"] for name in ("cost_position", "cost_speed")}
    for name, cost in costs.items():
        assert summed[f"rollout/ep_cost_mean/{name}"] == pytest.approx(cost)
    shares = costs["cost_position"] / 5 + costs["cost_speed"] / 8
    assert summed["rollout/ep_cost_mean/cost_weighted_sum"] == pytest.approx(shares, rel=1e-5)
    assert each["rollout/cost_limit/cost_speed"] == 8
    assert summed["rollout/cost_limit/cost_weighted_sum"] == 2
    table = pd.read_csv(tmp_path / "out" / "SafePointCircle-v0.csv")
    # Judged by the limits that were set out for
    assert table["cost"].tolist() == ["cost_position", "cost_speed"] * 2
    assert table["highest J / limit after reaching it"].max() < 10
    assert (tmp_path / "out" / "SafePointCircle-v0.png").exists()


def test_half_is_noise_at_the_size_that_the_shares_were_made_with(promise):
    import noise_share

    # At three times the size at which a half is noise, a quarter is
    sizes = np.array([7_000.0, 21_000.0, 63_000.0])
    assert noise_share.size_of_half([*sizes], [1 / 2, 1 / 4, 1 / 10]) == pytest.approx(7_000, rel=1e-4)
    noise = 0.02 * np.random.default_rng(0).standard_normal((200, 3))
    shares = (noise_share.expected_share(sizes, 7_000) + noise).ravel()
    assert noise_share.size_of_half(np.tile(sizes, 200), shares) == pytest.approx(7_000, rel=0.02)


def test_the_noise_share_is_measured_and_kept(promise, monkeypatch, tmp_path, capfd):
    import noise_share

    few = ("--steps", "20000", "--sizes", "1000", "20000", "--repeats", "2")
    args = ["--tasks", "SafePointCircle-v0", *few, "--output", "out"]
    monkeypatch.setattr(sys, "argv", ["noise_share.py", *args])
    noise_share.main()
    kept = pd.read_csv(tmp_path / "out" / "SafePointCircle-v0.csv")
    shares = kept.groupby("size")["share"].mean()
    assert 0 < shares[20_000] < shares[1000] < 1.2
    (row,) = pd.read_csv(tmp_path / "out" / "noise.csv").to_dict("records")
    assert row["half is noise at"] == pytest.approx(noise_share.size_of_half(kept["size"], kept["share"]), rel=1e-2)
    assert row["in episodes"] == pytest.approx(row["half is noise at"] / 65, rel=1e-2)
    monkeypatch.setattr(noise_share, "measure", None)
    noise_share.main()
    assert (tmp_path / "out" / "noise.png").exists()


def test_the_best_return_on_frozen_lake_is_had_by_playing_its_policy(promise):
    tasks, horizon = sys.modules["tasks"], 100
    optimum, env = tasks.solve_frozen_lake(), gym.make("FrozenLake-v1")
    returns, falls, rng = [], [], np.random.default_rng(0)
    for episode in range(2000):
        state, _ = env.reset(seed=episode)
        for t in range(horizon):
            action = rng.choice(4, p=optimum.policy[16 * t + state])
            state, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        returns.append(reward)
        falls.append(terminated and reward == 0)
    error = 3 * 0.5 / np.sqrt(len(returns))
    assert np.mean(returns) == pytest.approx(optimum.ep_rew_mean, abs=error)
    assert np.mean(falls) == pytest.approx(tasks.FROZEN_LAKE_LIMIT, abs=error)
    # The limit binds
    assert optimum.nu[0] > 0


@pytest.mark.slow
def test_benchmark_prints_ratios(tmp_path):
    assert "times as fast" in run("benchmark.py", "envs", "--n-envs", "2", "--steps", "2", "--rounds", "1", folder=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (SCRIPTS.parent / ".git").exists(), reason="compares with a commit")
def test_benchmark_trains_with_the_code_of_a_commit_in_turns_with_this_code(tmp_path):
    options = ("--env", "SafePointCircle-v0", "--steps", "2000", "--rounds", "1", "--without-trpo", "--against", "HEAD")
    table = run("benchmark.py", "train", *options, folder=tmp_path)
    assert "CPO of HEAD" in table
    assert "stepping alone" in table


def test_each_benchmark_says_what_it_measures(tmp_path):
    commands = ("envs", "stepping", "train", "collect", "update", "memory", "scaling", "processes")
    out = " ".join(run("benchmark.py", "--help", folder=tmp_path).split())
    for name in commands:
        assert f"python scripts/benchmark.py {name}" in out
        assert re.search(rf" {name} (Compare|How|Peak) ", out)


def test_stepping_is_measured_without_the_libraries_that_are_not_there(tmp_path):
    args = ("--n-envs", "2", "--steps", "3", "--rounds", "1", "--threads", "1")
    out = run("benchmark.py", "stepping", *args, "--mjbatch", sys.executable, folder=tmp_path)
    for robot in ("Ant", "HalfCheetah"):
        assert f"{robot}, 2 copies, 1 thread(s)" in out
    assert len(re.findall(r"  BatchVecEnv +[\d,]+ / [\d,]+ / [\d,]+ steps/s", out)) == 2
    for library in ("envpool", "mjbatch"):
        assert (f"{library}: not in {sys.executable}" in out) == (importlib.util.find_spec(library) is None)
