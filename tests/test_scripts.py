"""The scripts: what plot.py reads and computes, and each script's way from files to files."""

import importlib.util
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_cpo import CPO, make_vec_env
from sb3_cpo.callbacks import CostEvalCallback

pytest.importorskip("matplotlib")
pd = pytest.importorskip("pandas")

from sb3_cpo import plot_runs, plotting  # noqa: E402

SCRIPTS = Path(__file__).parent.parent / "scripts"


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plot():
    """What the command line and its module know."""
    return SimpleNamespace(**{**vars(plotting), "main": plot_runs.main})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that leaves everything that plot.py reads, and the model behind it with J of each rollout."""
    folder = tmp_path_factory.mktemp("run")
    env = make_vec_env("SafePointCircle-v0", n_envs=2, seed=0, monitor_dir=str(folder))
    model = CPO("MlpPolicy", env, cost_limit=7.0, n_steps=130, batch_size=130, n_critic_updates=1, seed=0)
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    means = []
    eval_env = make_vec_env("SafePointCircle-v0", seed=1)
    evaluation = CostEvalCallback(eval_env, n_eval_episodes=2, eval_freq=130, log_path=str(folder), verbose=0)

    class Note(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            means.append((self.num_timesteps, float(self.model.ep_cost_mean[0])))

    model.learn(780, callback=[evaluation, Note()])
    model.save(folder / "model.zip")
    return folder, means


def test_progress_and_tensorboard_give_the_cost_of_each_rollout(plot, trained):
    folder, means = trained
    assert len(means) == 3
    for source in ("progress", "tensorboard"):
        run = plot.read_run(folder, source)
        np.testing.assert_array_equal(run.steps, [steps for steps, _ in means])
        np.testing.assert_allclose(run.costs[""], [mean for _, mean in means], rtol=1e-5)
        np.testing.assert_array_equal(run.limits[""], [7, 7, 7])
    np.testing.assert_allclose(
        plot.read_run(folder, "progress").returns, plot.read_run(folder, "tensorboard").returns, rtol=1e-5
    )


def test_evaluations_are_averaged(plot, trained):
    folder, _ = trained
    run = plot.read_run(folder)
    with np.load(folder / "evaluations.npz") as file:
        np.testing.assert_array_equal(run.costs[""], file["costs"][:, :, 0].mean(axis=1))
        np.testing.assert_array_equal(run.returns, file["results"].mean(axis=1))
    np.testing.assert_array_equal(run.steps, [260, 520, 780])
    np.testing.assert_array_equal(run.limits[""], [7, 7, 7])


def test_the_picture_of_a_training_is_of_its_own_episodes(plot, trained, tmp_path):
    folder, means = trained
    figure = plot.plot_training(folder)
    (curve,) = (line for line in figure.axes[1].lines if line.get_label() == "mean of each rollout")
    np.testing.assert_allclose(curve.get_ydata(), [mean for _, mean in means])
    plot.plt.close(figure)
    write_monitor(tmp_path, [(1, 5, 0.1, 4), (3, 5, 0.3, 2)])
    shutil.copy(folder / "evaluations.npz", tmp_path)
    figure = plot.plot_training(tmp_path)
    (curve,) = (line for line in figure.axes[1].lines if line.get_label() == "mean of 100 episodes")
    assert curve.get_ydata() == [3]
    plot.plt.close(figure)


def write_monitor(folder, episodes, name="0"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(",".join(map(str, episode)) for episode in episodes)
    (folder / f"{name}.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "None"}\nr,l,t,cost\n' + rows + "\n")


def test_monitor_is_averaged_over_a_window_in_the_order_of_time(plot, tmp_path):
    # Two copies; by time: costs 0, 10, 2, 4 after 5, 10, 15 and 20 steps
    write_monitor(tmp_path, [(1, 5, 0.1, 0), (3, 5, 0.3, 2)], "0")
    write_monitor(tmp_path, [(2, 5, 0.2, 10), (4, 5, 0.4, 4)], "1")
    (tmp_path / "Env-v0").mkdir()
    (tmp_path / "Env-v0/config.yml").write_text("cost_limit: 3.5\n")
    run = plot.read_run(tmp_path, "monitor", window=2)
    np.testing.assert_array_equal(run.steps, [10, 15, 20])
    np.testing.assert_array_equal(run.returns, [1.5, 2.5, 3.5])
    np.testing.assert_array_equal(run.costs[""], [5, 6, 3])
    # Of two numbers, the standard error of the mean is half of their distance
    np.testing.assert_allclose(run.errors[""], [5, 4, 1])
    np.testing.assert_array_equal(run.limits[""], [3.5, 3.5, 3.5])


@pytest.mark.parametrize(
    ("names", "expected"), [(["file", "cost_b"], ["file", "cost_b"]), (None, ["0", "1"]), (np.zeros(0, str), ["0", "1"])]
)
def test_constraints_of_evaluations_are_read_under_their_names(names, expected, plot, tmp_path):
    np.savez(
        tmp_path / "evaluations.npz",
        timesteps=[1, 2],
        results=np.zeros((2, 1)),
        ep_lengths=np.ones((2, 1)),
        costs=np.array([[[1.0, 30.0]], [[2.0, 40.0]]]),
        cost_limits=[[3.0, 50.0], [3.0, 45.0]],
        # As for a name that the file has for something else
        cost_of_file=np.array([[1.0], [2.0]]),
        cost_b=np.array([[30.0], [40.0]]),
        **({} if names is None else {"cost_names": names}),
    )
    run = plot.read_run(tmp_path)
    assert list(run.costs) == expected
    np.testing.assert_array_equal(run.costs[expected[1]], [30, 40])
    np.testing.assert_array_equal(run.limits[expected[1]], [50, 45])
    table = pd.DataFrame(
        {
            "time/total_timesteps": [9],
            "rollout/ep_rew_mean": [1.0],
            "rollout/ep_cost_mean/cost_a": [5.0],
            "rollout/ep_cost_mean/cost_b": [6.0],
            "rollout/cost_limit/cost_a": [7.0],
            "rollout/cost_limit/cost_b": [8.0],
        }
    )
    run = plot.from_log(table)
    assert ({name: values.tolist() for name, values in run.costs.items()}) == {"cost_a": [5.0], "cost_b": [6.0]}
    assert run.limits["cost_b"].tolist() == [8.0]


def test_folder_without_numbers_is_named(plot, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no evaluations or progress or tensorboard or monitor to read"):
        plot.read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no progress to read"):
        plot.read_run(tmp_path, "progress")


def test_interquartile_mean_leaves_the_outer_quarters_out(plot):
    # Of 8 seeds the middle 4
    values = np.array([0, 1, 2, 3, 4, 5, 6, 1000.0])[::-1, None]
    np.testing.assert_array_equal(plot.interquartile_mean(values), [3.5])


def test_bootstrap_interval_is_that_of_scipy(plot):
    """A second implementation: scipy's percentile bootstrap of the same statistic."""
    from scipy import stats

    values = np.random.default_rng(1).normal(3.0, 2.0, size=(9, 1))
    band = plot.bootstrap_band(values, n_resamples=20000)
    expected = stats.bootstrap(
        (values[:, 0],),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=20000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert band.low[0] == pytest.approx(expected.low, abs=0.08)
    assert band.high[0] == pytest.approx(expected.high, abs=0.08)
    assert band.low[0] < band.iqm[0] < band.high[0]
    one = plot.bootstrap_band(values[:1])
    assert one.low == one.iqm == one.high


def test_runs_are_compared_on_the_steps_that_they_share(plot):
    def run(steps, factor):
        steps = np.array(steps, dtype=float)
        return plot.Run(steps, factor * steps, {"": steps}, {"": np.full(len(steps), 5.0)})

    aligned = plot.align([run([0, 10, 20, 30], 1), run([10, 30, 50], 2)])
    for one, factor in zip(aligned, (1, 2), strict=True):
        np.testing.assert_allclose(one.steps, [10, 10 + 20 / 3, 10 + 40 / 3, 30])
        np.testing.assert_allclose(one.returns, factor * one.steps)
    with pytest.raises(ValueError, match="share no steps: one begins at 40"):
        plot.align([run([0, 10], 1), run([40, 50], 1)])


def test_plot_draws_a_curve_per_algorithm_and_the_limit(plot, tmp_path, capsys):
    for algo, level in [("cpo", 4.0), ("trpo", 40.0)]:
        for seed in range(3):
            folder = tmp_path / f"logs/{algo}/SafePointCircle-v0_{seed + 1}"
            (folder / "SafePointCircle-v0").mkdir(parents=True)
            costs = np.full((5, 2, 1), level) + seed
            np.savez(
                folder / "evaluations.npz",
                timesteps=np.arange(5) * 1000,
                results=costs[:, :, 0] * 2,
                ep_lengths=costs[:, :, 0],
                costs=costs,
                cost_limits=np.full((5, 1), 5.0),
            )
    folders = [str(path) for path in sorted(tmp_path.glob("logs/*/*"))]
    (tmp_path / "failed").mkdir()
    plot.main([*folders, str(tmp_path / "failed"), "-o", str(tmp_path / "image.png"), "--log-cost"])
    out = capsys.readouterr().out
    assert f"nothing to read in {tmp_path / 'failed'}: skipped" in out
    cost_lines = {line.split()[0]: line for line in out.splitlines() if " cost " in line}
    # Seeds at 4, 5, 6: one of three above 5
    assert "  5  [4, 6]" in " ".join(cost_lines["cpo"].split()).replace(" 5 [", "  5  [")
    assert "limit 5, over it at 33% of the points" in cost_lines["cpo"]
    assert "limit 5, over it at 100% of the points" in cost_lines["trpo"]
    assert (tmp_path / "image.png").stat().st_size > 10000

    groups = {"cpo": [plot.read_run(Path(folder)) for folder in folders[:3]]}
    figure = plot.draw(groups)
    returns, costs = figure.axes
    np.testing.assert_allclose(returns.lines[0].get_ydata(), 10.0)
    np.testing.assert_allclose(costs.lines[0].get_ydata(), 5.0)
    np.testing.assert_array_equal(costs.lines[1].get_ydata(), 5.0)
    assert [text.get_text() for text in costs.get_legend().get_texts()] == ["cpo (3 seeds)", "limit 5"]
    plot.plt.close("all")


def test_wrong_command_lines_are_explained(plot, tmp_path, capsys):
    for args, message in [
        ([str(tmp_path)], "has no evaluations or"),
        ([str(tmp_path), str(tmp_path), "-l", "one"], "2 folders need as many labels, not 1"),
    ]:
        with pytest.raises(SystemExit):
            plot.main(args)
        assert message in capsys.readouterr().err


def test_video_of_a_saved_model(trained, tmp_path, capsys):
    moviepy = pytest.importorskip("moviepy")
    pytest.importorskip("rl_zoo3")
    folder, _ = trained
    record_video = pytest.importorskip("sb3_cpo.record_video")
    output = tmp_path / "video.mp4"
    arguments = ["--model", str(folder / "model.zip"), "--env", "SafePointCircle-v0", "-o", str(output), "--max-frames", "6"]
    record_video.main([*arguments, "--stochastic"])
    out = capsys.readouterr().out
    assert "limit 7" in out
    clip = moviepy.VideoFileClip(str(output))
    frames = [frame.astype(int) for frame in clip.iter_frames()]
    assert len(frames) == 6
    # The picture is not blank, and something moves
    assert frames[0].std() > 5
    assert abs(frames[-1] - frames[0]).max() > 50
    clip.close()
    gif = tmp_path / "video.gif"
    record_video.main([*arguments, "-o", str(gif)])
    assert Image.open(gif).n_frames == 6
    (tmp_path / "text.zip").write_text("no model")
    for wrong, message in [
        (["--folder", str(tmp_path)], "folder was not found"),
        ([*arguments, "-o", "video.doc"], "the video is 'video.doc': expected a name that ends in .mp4"),
        ([*arguments, "--env", "SafeAntCircle-v0"], "was trained in another environment than SafeAntCircle-v0"),
        ([*arguments, "--model", str(tmp_path / "text.zip")], "expected a file that model.save wrote"),
        ([*arguments, "--model", str(tmp_path / "missing")], "there is no file"),
    ]:
        with pytest.raises(SystemExit):
            record_video.main(["--env", "SafePointCircle-v0", *wrong])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "enjoy", "plot", "record_video"])
def test_help_of_each_script_is_a_page(name, monkeypatch, capsys):
    if name != "plot":
        pytest.importorskip("rl_zoo3")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"{name}.py" in out
    assert "%(prog)s" not in out


def predictions_of_a_process(kept, n_updates=20_000):
    """Rows of a run in which every update changes the true J by ``kept`` of what is predicted, and drifts upwards."""
    rng = np.random.default_rng(0)
    errors, chance = rng.uniform(1.5, 3.6, n_updates), rng.normal(size=(3, n_updates))
    true_cost, margin, estimate, rows = 10.0, 0.0, 10.0, []
    for error, noise, drift, whim in zip(errors, *chance, strict=True):
        violation = estimate - 10
        predicted = min(max(-(violation + margin), -6), 0.6) + 0.3 * whim
        margin = max(0.0, margin + 0.2 * min(max(violation, -6), 6))
        true_cost += kept * predicted + 1.7 + drift
        before, estimate = estimate, true_cost + error * noise
        rows.append((estimate, error, predicted, estimate - before, margin))
    names = ("rollout/ep_cost_mean", "rollout/ep_cost_std_error", "train/predicted_cost_change", "train/actual_cost_change")
    return pd.DataFrame(rows, columns=[*names, "train/cost_margin"])


@pytest.mark.parametrize("kept", [0.5, 1.0])
def test_share_of_predictions_that_come_true_is_not_flattered_by_the_noise_of_the_estimate(kept, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS / "experiments"))
    rows = predictions_of_a_process(kept)
    plain_slope = np.polyfit(rows["train/predicted_cost_change"], rows["train/actual_cost_change"], 1)[0]
    assert plain_slope > kept + 0.5
    assert load_script("experiments/calibration").slope_without_noise(rows) == pytest.approx(kept, abs=0.05)


# ---------------------------------------------------------------- sb3-cpo plot


def write_evaluations(folder, steps=(0, 1000), cost=3.0, names=()):
    folder.mkdir(parents=True)
    costs = np.full((len(steps), 2, max(len(names), 1)), cost)
    np.savez(
        folder / "evaluations.npz",
        timesteps=steps,
        results=costs[:, :, 0],
        ep_lengths=costs[:, :, 0],
        costs=costs,
        cost_limits=np.tile(5.0 + np.arange(costs.shape[2]), (len(steps), 1)),
        cost_names=np.array(names, dtype=np.str_),
    )


def test_runs_are_found_below_the_folders_that_are_given(plot, tmp_path, capsys):
    for path in ("cpo/SafePointCircle-v0_1", "cpo/SafePointCircle-v0_2", "trpo/SafePointCircle-v0_1"):
        write_evaluations(tmp_path / "logs" / path)
        (tmp_path / "logs" / path / "SafePointCircle-v0").mkdir()
    # What lies inside of a run is part of it
    write_evaluations(tmp_path / "logs/cpo/SafePointCircle-v0_1/inner")
    assert [run.relative_to(tmp_path / "logs").as_posix() for run in plot.find_runs(tmp_path / "logs")] == [
        "cpo/SafePointCircle-v0_1",
        "cpo/SafePointCircle-v0_2",
        "trpo/SafePointCircle-v0_1",
    ]
    plot.main([str(tmp_path / "logs"), "-o", str(tmp_path / "image.png")])
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.splitlines() if " return " in line} == {"cpo", "trpo"}
    plot.main([str(tmp_path / "logs"), "-l", "all", "-o", str(tmp_path / "image.png")])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if " return " in line] == ["all"]


def test_runs_without_common_steps_are_named_in_a_sentence(plot, tmp_path, capsys):
    write_evaluations(tmp_path / "cpo/Env-v0_1", (0, 1000))
    write_evaluations(tmp_path / "cpo/Env-v0_2", (4000, 5000))
    for name in ("1", "2"):
        (tmp_path / f"cpo/Env-v0_{name}/Env-v0").mkdir()
    with pytest.raises(SystemExit):
        plot.main([str(tmp_path)])
    err = capsys.readouterr().err
    assert "the runs of 'cpo' share no steps" in err
    assert "Env-v0_1 ends at 1,000" in err
    assert "Env-v0_2 begins at 4,000" in err
    plot.main(
        [str(tmp_path / "cpo/Env-v0_1"), str(tmp_path / "cpo/Env-v0_2"), "-l", "a", "b", "-o", str(tmp_path / "image.png")]
    )


def test_each_panel_has_its_own_limit_in_its_legend(plot, tmp_path):
    write_evaluations(tmp_path / "run", names=("cost_a", "cost_b"))
    groups = {"cpo": [plot.read_run(tmp_path / "run")]}

    def legends(cost_limit=None):
        figure = plot.draw(groups, cost_limit=cost_limit)
        texts = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]
        plot.plt.close(figure)
        return texts

    assert legends() == [["cpo"], ["cpo", "limit 5"], ["cpo", "limit 6"]]
    assert legends({"cost_b": 7.0}) == [["cpo"], ["cpo", "limit 5"], ["cpo", "limit 7"]]


@pytest.mark.parametrize(("cost", "limit"), [(0.5, 0.1), (30.0, 5.0)])
def test_logarithmic_axis_has_several_ticks(plot, cost, limit):
    """Costs below 1 had one: 0.1."""
    steps = np.arange(3.0)
    run = plot.Run(steps, steps, {"": np.array([0.0, limit, cost])}, {"": np.full(3, limit)})
    figure = plot.draw({"cpo": [run]}, log_cost=True)
    axis = figure.axes[1]
    figure.draw_without_rendering()
    low, high = axis.get_ylim()
    ticks = [
        text.get_text() for value, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True) if low <= value <= high
    ]
    assert len(ticks) >= 4
    assert f"{limit:g}" in ticks
    plot.plt.close(figure)


def test_runs_of_several_tasks_are_curves_of_their_own(plot, tmp_path, capsys):
    for task, steps in (("Circle-v0", (0, 1000)), ("Gather-v0", (4000, 5000))):
        write_evaluations(tmp_path / f"logs/cpo/{task}_1", steps)
        (tmp_path / f"logs/cpo/{task}_1/{task}").mkdir()
    plot.main([str(tmp_path / "logs"), "-o", str(tmp_path / "image.png")])
    out = capsys.readouterr().out
    assert [line.partition("  ")[0] for line in out.splitlines() if " return " in line] == ["cpo Circle-v0", "cpo Gather-v0"]


def test_limits_that_differ_look_different(plot):
    steps = np.arange(3.0)
    runs = [plot.Run(steps, steps, {"": steps}, {"": np.full(3, limit)}) for limit in (5.0, 20.0)]
    figure = plot.draw({"a": [runs[0]], "b": [runs[1]]})
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    styles = [(line.get_linestyle(), line._dash_pattern) for line in (lines["limit 5"], lines["limit 20"])]
    assert styles[0] != styles[1]
    plot.plt.close(figure)


def test_one_call_draws_a_training(plot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"n_steps": 65, "batch_size": 65, "n_critic_updates": 1, "device": "cpu"}
    model = CPO("MlpPolicy", make_vec_env("SafePointCircle-v0", seed=0), tensorboard_log="tb", **arguments)
    with pytest.raises(ValueError, match="has logged to no folder: learn with tensorboard_log"):
        plot.plot_training(model)
    unlogged = CPO("MlpPolicy", "SafePointCircle-v0", **arguments).learn(65)
    with pytest.raises(ValueError, match="has logged to no folder: learn with tensorboard_log"):
        plot.plot_training(unlogged)
    model.learn(130)
    figure = plot.plot_training(model, tmp_path / "images" / "training.png", "Point")
    assert (tmp_path / "images" / "training.png").stat().st_size > 10_000
    assert [axis.get_ylabel() for axis in figure.axes] == ["return of an episode", "cost of an episode"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["mean of each rollout", "limit 5"]
    assert figure.axes[1].get_ylim()[0] == 0  # although an interval reaches below
    figure.draw_without_rendering()
    plot.plt.close(figure)
    # The folder of the run, and one above it, as long as there is no other
    for folder in ("tb/CPO_1", "tb"):
        again = plot.plot_training(folder)
        np.testing.assert_allclose(again.axes[1].lines[0].get_ydata(), figure.axes[1].lines[0].get_ydata())
        plot.plt.close(again)
    model.learn(65)
    with pytest.raises(ValueError, match=r"tb holds 2 runs \(tb/CPO_1, tb/CPO_2\): name one"):
        plot.plot_training("tb")
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        plot.plot_training("nowhere")
    with pytest.raises(FileNotFoundError, match="no evaluations or progress or tensorboard or monitor to read"):
        plot.plot_training(tmp_path / "images")


def test_steps_are_written_in_thousands(plot):
    steps = np.linspace(0, 500_000, 6)
    figure = plot.draw({"cpo": [plot.Run(steps, steps, {"": steps}, {})]})
    figure.draw_without_rendering()
    assert "200k" in [text.get_text() for text in figure.axes[1].get_xticklabels()]
    plot.plt.close(figure)


def test_predictions_of_kept_runs_are_judged_as_those_of_a_log(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS / "experiments"))
    calibration = load_script("experiments/calibration")
    log = predictions_of_a_process(0.5, 2000).drop(columns="train/cost_margin")
    names = {"rollout/ep_cost_mean": "J cost", "rollout/ep_cost_std_error": "error cost"}
    names |= {"train/predicted_cost_change": "predicted cost", "train/actual_cost_change": "actual cost"}
    kept = log.rename(columns=names).assign(**{"limit cost": 10.0, "noise cost": 0.25})
    for folder, task in (("CPO", "SafePointCircle-v0"), ("CPO", "unknown"), ("plain CPO", "SafePointCircle-v0")):
        (tmp_path / folder).mkdir(exist_ok=True)
        kept.to_csv(tmp_path / folder / f"{task}_seed0.csv", index=False)
    # A run that says nothing of predictions
    kept[["J cost"]].to_csv(tmp_path / "CPO" / "SafeAntCircle-v0_seed0.csv", index=False)
    folders = [str(tmp_path / folder) for folder in ("CPO", "plain CPO")]
    monkeypatch.setattr(sys, "argv", ["calibration.py", *folders, "--output", str(tmp_path / "picture.png")])
    calibration.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    late = log.iloc[1000:]
    slope = f"{calibration.slope_without_noise(late):.2f}"
    changes = [f"{late[name].mean():+.3g}" for name in ("train/predicted_cost_change", "train/actual_cost_change")]
    assert rows == [["SafePointCircle-v0", name, "1", "10.0", *changes, slope, "0.25"] for name in ("CPO", "plain CPO")]
    assert (tmp_path / "picture.png").exists()
    for arguments, message in (
        ([str(tmp_path)], "no run that has logged its predictions"),
        ([*folders, "--tasks", "SafeAntCircle-v0"], "no run that has logged its predictions"),
        ([folders[0], folders[0]], "two folders of the same name"),
    ):
        monkeypatch.setattr(sys, "argv", ["calibration.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            calibration.main()
