"""The zoo: rl_zoo3's scripts, run in this process with small numbers."""

import os
import pickle
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from zoo_scripts import ALGORITHMS, POINT, TINY, PricelessEnv, make_manager, registered, run_in_folder  # noqa: F401

import safe_envs
from safe_envs import BatchVecEnv
from sb3_cpo import CPO
from sb3_cpo.zoo import ConstrainedExperimentManager
from sb3_cpo.zoo.arguments import is_mistake
from sb3_cpo.zoo.enjoy import enjoy
from sb3_cpo.zoo.experiment_manager import parse_limit_schedule
from sb3_cpo.zoo.train import train

TASKS = [f"Safe{robot}{task}-v0" for robot, task in safe_envs._TASKS]
# Achiam et al. 2017, supplement 10.3; Safety-Gymnasium's 25 elsewhere
LIMITS = {
    "SafePointCircle-v0": 5.0,
    "SafeAntCircle-v0": 10.0,
    "SafeHumanoidCircle-v0": 10.0,
    "SafePointGather-v0": 0.1,
    "SafeAntGather-v0": 0.2,
}


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("env_id", [*TASKS, "default"])
def test_every_entry_builds_its_model_and_learns(algo, env_id, tmp_path):
    # The default entry, on an environment that has none
    name = "Priceless-v0" if env_id == "default" else env_id
    small = {"n_envs": 2, "n_steps": 120, "batch_size": 60, "n_timesteps": 240}
    if env_id == "default" and algo != "trpo":
        # Who brings an environment without a limit says one
        with pytest.raises(ValueError, match="needs a cost_limit"):
            make_manager(algo, name, tmp_path, small).setup_experiment()
        small["cost_limit"] = 25.0
    manager = make_manager(algo, name, tmp_path, small)
    model, _ = manager.setup_experiment()
    assert type(model) is ALGORITHMS[algo]
    expected = LIMITS.get(env_id, 25.0)
    if algo != "trpo" or env_id != "default":
        np.testing.assert_array_equal(model.current_cost_limit, [expected])
    assert isinstance(model.env.unwrapped if not isinstance(model.env, VecNormalize) else model.env.venv, BatchVecEnv) == (
        env_id != "default"
    )
    assert model.policy.normalize_observations == (model.get_vec_normalize_env() is None)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    manager.learn(model)
    assert model.num_timesteps == 240
    # Not the reward critic, perhaps: in so few steps of Gather, nothing is earned
    assert any((value != before[name]).any() for name, value in model.policy.state_dict().items())
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


@pytest.mark.parametrize("algo", [*ALGORITHMS, "paper"])
def test_every_algorithm_has_an_entry_per_registered_task(algo):
    assert len(TASKS) == 11
    hyperparams = import_module(f"sb3_cpo.zoo.hyperparams.{algo}").hyperparams
    assert set(hyperparams) == {"default", *TASKS}
    # rl_zoo3 writes into what it reads
    hyperparams["SafeAntCircle-v0"]["n_envs"] = 1
    assert hyperparams["SafeAntCircle-v0"]["n_envs"] > 1


def test_cpo_as_in_the_paper_is_run_by_name(tmp_path):
    small = {"n_envs": 2, "n_steps": 130, "batch_size": 65, "n_timesteps": 260}
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path, small, config="sb3_cpo.zoo.hyperparams.paper")
    model, _ = manager.setup_experiment()
    assert (model.n_noise_draws, model.cost_confidence, model.cost_gae_gamma) == (0, None, None)
    assert (model.target_kl, model.cg_damping, model.gamma, model.cost_limit) == (0.01, 1e-5, 0.995, 5.0)


@pytest.mark.parametrize("ending", ["yml", "py"])
def test_a_file_of_ones_own_and_the_command_line_come_before_the_table(tmp_path, ending):
    own = {"SafePointCircle-v0": {"n_timesteps": 260, "policy": "MlpPolicy", "n_envs": 2, "n_steps": 130, "gamma": 0.9}}
    path = tmp_path / f"own.{ending}"
    path.write_text(yaml.dump(own) if ending == "yml" else f"hyperparams = {own}")
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path, {"batch_size": 65, "cost_limit": 7.0}, config=str(path))
    model, saved = manager.setup_experiment()
    assert (model.gamma, model.n_steps, model.batch_size, model.cost_limit) == (0.9, 130, 65, 7.0)
    # Nothing of the table: it has another kind of VecEnv
    assert type(model.env) is DummyVecEnv
    assert "vec_env" not in saved


def test_limit_schedules():
    half = parse_limit_schedule("lin_25_5_0.5")
    assert [half(progress) for progress in (1.0, 0.75, 0.5, 0.0)] == [25.0, 15.0, 5.0, 5.0]
    assert [parse_limit_schedule("lin_25_5")(progress) for progress in (1.0, 0.5, 0.0)] == [25.0, 15.0, 5.0]
    assert [parse_limit_schedule("lin_20")(progress) for progress in (1.0, 0.5, 0.0)] == [20.0, 10.0, 0.0]
    mapping = parse_limit_schedule({"cost_a": "lin_4_2", "cost_b": 3})
    assert (mapping["cost_a"](0.5), mapping["cost_b"]) == (3.0, 3)
    assert parse_limit_schedule([1, "lin_4_2"])[1](0.0) == 2.0
    for wrong in ("lin", "lin_x", "lin_1_2_3_4", "exp_5", "5"):
        with pytest.raises(ValueError, match=f"cost_limit is '{wrong}'"):
            parse_limit_schedule(wrong)


def test_vec_env_of_the_command_line_comes_before_that_of_the_yaml_file(tmp_path):
    small = {"n_envs": 2, "n_steps": 120, "batch_size": 60}
    model, _ = make_manager("cpo", "SafePointCircle-v0", tmp_path, dict(small), vec_env_type="dummy").setup_experiment()
    assert type(model.env) is DummyVecEnv
    with pytest.raises(ValueError, match="vec_env is 'bunch': expected one of dummy, subproc, batch"):
        make_manager("cpo", "SafePointCircle-v0", tmp_path, {**small, "vec_env": "bunch"}).setup_experiment()


def test_cost_shaping_is_made_from_the_yaml_text(tmp_path):
    small = {"n_envs": 2, "n_steps": 120, "batch_size": 60, "cost_shaping": "FailurePredictor(horizon=7)"}
    model, saved = make_manager("cpo", "SafePointCircle-v0", tmp_path, small).setup_experiment()
    assert model.cost_shaping.horizon == 7
    assert saved["cost_shaping"] == "FailurePredictor(horizon=7)"


def test_train_resume_and_enjoy(run):
    """A user's way: train, continue, watch; each finds what the one before has left."""
    run(train, *POINT, "-n", "400", "--eval-freq", "200", "--save-freq", "200", "-tb", "tb", "-P", "--seed", "1", *TINY)
    folder = Path("logs/cpo/SafePointCircle-v0_1")
    files = {path.name for path in folder.rglob("*")}
    expected = {"best_model.zip", "SafePointCircle-v0.zip", "rl_model_200_steps.zip", "evaluations.npz", "monitor.csv"}
    assert expected | {"config.yml", "args.yml", "command.txt"} <= files
    # One for all copies
    assert [path.name for path in folder.glob("*monitor.csv")] == ["monitor.csv"]
    results = load_results(str(folder))
    assert (results["cost"] >= 0).all()
    assert results["cost"].sum() > 0
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["costs"].shape == (2, 5, 1)
        np.testing.assert_array_equal(evaluations["cost_limits"], [[5.0], [5.0]])
    assert list(Path("tb/SafePointCircle-v0/CPO_1").glob("events*"))

    out = run(train, *POINT, "-n", "200", "-i", str(folder / "SafePointCircle-v0.zip"), *TINY, "cost_limit:'lin_9_7'")
    assert "Loading pretrained agent" in out
    first = CPO.load(folder / "SafePointCircle-v0.zip")
    second = CPO.load("logs/cpo/SafePointCircle-v0_2/SafePointCircle-v0.zip")
    assert second._n_updates == first._n_updates + 1 == 3
    np.testing.assert_array_equal(second.current_cost_limit, [7.0])

    out = run(enjoy, "--env", "SafePointCircle-v0", "--no-render", "-n", "200", "--exp-id", "2", "--stochastic", "--seed", "4")
    costs = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("Episode Cost")]
    rewards = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("Episode Reward")]
    assert len(costs) == len(rewards) > 2
    assert f"Mean cost: {np.mean(costs):.2f} +/- {np.std(costs):.2f}" in out
    # The end of the schedule
    verdict = "within" if np.mean(costs) <= 7 else "OVER"
    assert f"Cost limit: 7.00, the mean is {verdict}" in out


@pytest.mark.parametrize("vec_env", ["dummy", "batch"])
def test_the_monitor_file_has_every_episode_of_training_with_its_cost(tmp_path, vec_env, monkeypatch):
    """What SB3's monitors, a file per copy, say of the same training."""
    small = {"n_envs": 3, "n_steps": 130, "batch_size": 65, "n_timesteps": 780}
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path, dict(small), vec_env_type=vec_env, seed=0)
    manager.learn(manager.setup_experiment()[0])
    ours = load_results(manager.save_path)
    monkeypatch.setattr(ConstrainedExperimentManager, "_has_one_monitor_file", False)
    manager = make_manager("cpo", "SafePointCircle-v0", tmp_path / "sb3", dict(small), vec_env_type=vec_env, seed=0)
    manager.learn(manager.setup_experiment()[0])
    assert len(list(Path(manager.save_path).glob("*monitor.csv"))) == 3
    theirs = load_results(manager.save_path)
    columns = ["r", "l", "cost"]
    assert len(ours) == 12
    np.testing.assert_array_equal(ours[columns].sort_values(columns), theirs[columns].sort_values(columns))


def test_enjoy_prints_the_cost_and_says_when_it_is_over_the_limit(run):
    args = ["--algo", "cpo", "--env", "Priceless-v0"]
    run(train, *args, "-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:11.9")
    out = run(enjoy, *args, "--no-render", "-n", "8")
    assert out.count("Episode Cost: 12.00") == 2
    assert "Mean cost: 12.00 +/- 0.00\nCost limit: 11.90, the mean is OVER" in out


def test_enjoy_compares_a_discounted_limit_with_discounted_costs(run):
    args = ["--algo", "cpo", "--env", "Priceless-v0"]
    run(train, *args, "-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:6.0", "cost_gamma:0.5")
    out = run(enjoy, *args, "--no-render", "-n", "8")
    # 3 + 3 / 2 + 3 / 4 + 3 / 8, where the plain sum is 12
    assert out.count("Episode Cost: 5.62") == 2
    assert "Cost limit: 6.00, the mean is within (costs are discounted by 0.5 per step)" in out


def test_sb3s_own_algorithms_still_train_in_the_zoo(run):
    out = run(
        train,
        "--algo",
        "ppo",
        "--env",
        "Priceless-v0",
        "-n",
        "64",
        "--eval-freq",
        "64",
        "-params",
        "n_steps:32",
        "batch_size:32",
        "--conf-file",
        str(write_ppo_yaml()),
    )
    assert "Episode cost: 12.00 +/- 0.00 (limit none)" in out
    assert "New best feasible model!" in out


def write_ppo_yaml():
    path = Path("ppo.yml")
    path.write_text("default:\n  n_timesteps: 64\n  policy: MlpPolicy\n")
    return path


def test_help_is_a_page(run, capsys):
    for script in (train, enjoy):
        with pytest.raises(SystemExit) as exit_info:
            run(script, "--help")
        assert exit_info.value.code == 0
        text = capsys.readouterr().out
        assert "examples:" in text
        assert "{a2c" in text
        assert "cpo" in text
        assert f"python -m sb3_cpo.zoo.{script.__name__}" in text


# ---------------------------------------------------------------- statistics of VecNormalize

NORMALIZED = [*POINT, "--seed", "1", *TINY, "normalize:True"]


def observation_mean(path):
    """Of the statistics in a model's file, or in one of their own."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return pickle.loads(archive.read("vecnormalize.pkl")).obs_rms.mean
    return pickle.loads(Path(path).read_bytes()).obs_rms.mean


@pytest.fixture
def killed_run(run):
    """What a run leaves that was killed after its second checkpoint, with the best model of its first half."""
    run(train, *NORMALIZED, "-n", "400", "--eval-freq", "200", "--save-freq", "200")
    folder = Path("logs/cpo/SafePointCircle-v0_1")
    (folder / "SafePointCircle-v0.zip").unlink()
    return folder


@pytest.mark.parametrize("n_steps", [200, 400])
def test_a_killed_run_continues_with_the_statistics_of_its_checkpoint(killed_run, n_steps):
    statistics = observation_mean(killed_run / f"rl_model_{n_steps}_steps.zip")
    assert (statistics != observation_mean(killed_run / f"rl_model_{600 - n_steps}_steps.zip")).any()
    checkpoint = str(killed_run / f"rl_model_{n_steps}_steps.zip")
    small = {"n_steps": 100, "n_envs": 2, "batch_size": 50, "n_timesteps": 200}
    # As the command line does, and where it was forgotten that the run normalises
    for normalize in (True, False):
        manager = make_manager(
            "cpo", "SafePointCircle-v0", "logs", {**small, "normalize": normalize}, trained_agent=checkpoint
        )
        model, _ = manager.setup_experiment()
        # The reset, which counts one observation of each copy, has not come yet
        np.testing.assert_array_equal(model.get_vec_normalize_env().obs_rms.mean, statistics)
        assert model.get_vec_normalize_env().training
        eval_env = manager.create_envs(1, eval_env=True)
        np.testing.assert_array_equal(eval_env.obs_rms.mean, statistics)
        assert not eval_env.training
        manager.save_trained_model(model)
        np.testing.assert_array_equal(observation_mean(f"{manager.params_path}/vecnormalize.pkl"), statistics)


def test_the_best_model_is_continued_and_watched_with_its_own_statistics(killed_run, run):
    # As where the first evaluation was the best
    best = killed_run / "best_model.zip"
    best.write_bytes((killed_run / "rl_model_200_steps.zip").read_bytes())
    manager = make_manager(
        "cpo", "SafePointCircle-v0", "logs", {"n_timesteps": 200}, trained_agent=str(killed_run / "best_model.zip")
    )
    model, _ = manager.setup_experiment()
    np.testing.assert_array_equal(model.get_vec_normalize_env().obs_rms.mean, observation_mean(best))
    enjoyed = ["--env", "SafePointCircle-v0", "--exp-id", "1", "--no-render", "-n", "1"]
    out = run(enjoy, *enjoyed, "--load-best")
    assert f"Loading running average: {best}" in out
    assert "The stochastic policy, by which the best model was chosen" in out
    out = run(enjoy, *enjoyed, "--load-checkpoint", "400")
    assert f"Loading running average: {killed_run}/rl_model_400_steps.zip" in out
    assert "The stochastic policy" not in out
    assert "The stochastic policy" not in run(enjoy, *enjoyed, "--load-best", "--deterministic")


def test_a_model_without_its_statistics_is_not_continued_with_fresh_ones(killed_run, run):
    for path in killed_run.rglob("*vecnormalize*.pkl"):
        path.unlink()
    checkpoint = str(killed_run / "rl_model_400_steps.zip")
    # One of SB3's, which holds none
    with zipfile.ZipFile(checkpoint) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if name != "vecnormalize.pkl"}
    with zipfile.ZipFile(checkpoint, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(SystemExit, match="no statistics of VecNormalize lie in"):
        run(train, *NORMALIZED, "-n", "200", "-i", checkpoint)
    run(train, *NORMALIZED[:-1], "normalize:False", "-n", "200", "-i", checkpoint)


# ---------------------------------------------------------------- costs on the command line

COSTS = """
import gymnasium as gym

def of_action(action):
    return 2.0

class Costly(gym.Wrapper):
    def step(self, action):
        *rest, info = self.env.step(action)
        return *rest, {**info, "cost": 5.0}
"""


@pytest.mark.parametrize(("name", "episode_cost"), [("of_action", 8.0), ("Costly", 20.0)])
def test_an_environment_without_costs_gets_one_on_the_command_line(run, name, episode_cost, monkeypatch):
    module = f"my_costs_{name}".lower()
    Path(f"{module}.py").write_text(COSTS)
    # Where a console command does not look by itself
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    gym.register("Free-v0", PricelessEnv, kwargs={"has_cost": False})
    try:
        args = ["--algo", "cpo", "--env", "Free-v0"]
        with pytest.raises(SystemExit, match="--cost my_module:my_function"):
            run(train, *args, "-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:1")
        with pytest.raises(SystemExit, match=r"needs a cost_limit.*\n.*-params cost_limit:20.*--cost my_module:my_function"):
            run(train, *args, "-f", "other", "-n", "200", "--eval-freq", "-1", *TINY)
        with pytest.raises(SystemExit, match=r"CPO has no argument 'n_epochs': n_critic_updates.*hyperparameter file"):
            run(train, *args, "-f", "other", "-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:1", "n_epochs:3")
        out = run(train, *args, "--cost", f"{module}:{name}", "-n", "200", "--eval-freq", "100", *TINY, "cost_limit:9")
        assert f"Episode cost: {episode_cost:.2f} +/- 0.00" in out
        assert (load_results("logs/cpo/Free-v0_2")["cost"] == episode_cost).all()
        # In another process, the run says which cost it had
        gym.registry["Free-v0"].additional_wrappers = ()
        out = run(enjoy, *args, "--no-render", "-n", "8")
        assert out.count(f"Episode Cost: {episode_cost:.2f}") == 2
        assert f"Cost limit: 9.00, the mean is {'within' if episode_cost <= 9 else 'OVER'}" in out
    finally:
        gym.registry.pop("Free-v0")


def test_an_id_that_is_misspelt_is_an_error_of_the_command_line(run):
    with pytest.raises(SystemExit, match="SafePointCirle-v0 not found in gym registry, you maybe meant SafePointCircle-v0"):
        run(train, "--algo", "cpo", "--env", "SafePointCirle-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-params", "target_kl:-1"], "target_kl must be positive, not -1"),
        (["-params", "cost_limit:lin_25_x"], "cost_limit is 'lin_25_x': expected a number, or 'lin_start_end'"),
        (["-params", "vec_env:bach"], "vec_env is 'bach': expected one of dummy, subproc, batch"),
        (["--env-kwargs", "sise:2"], "unexpected keyword argument 'sise'"),
        (["-params", "cost_limit"], "expected key:value for each, with values in Python, not cost_limit"),
        (["-params", "net_arch:[64"], "expected key:value for each, with values in Python, not net_arch:"),
        (["-params", "cost_shaping:FailurePredictor(horizn=5)"], "expected FailurePredictor(horizon=20) for instance (Fail"),
        (
            ["-params", "cost_shaping:FailurePredictor(horizon=5"],
            "expected FailurePredictor(horizon=20) for instance ('(' was",
        ),
        (["-params", "cost_shaping:FailurePredictr"], "cost_shaping is 'FailurePredictr': expected FailurePredictor("),
        (["-i", "nope.zip"], "-i is 'nope.zip': expected the file of a model"),
        (["--conf-file", "nope.yml"], "--conf-file is 'nope.yml': there is no such file"),
        (["--gym-packages", "no_such_package"], "--gym-packages names no_such_package, but there is no module"),
    ],
)
def test_mistakes_on_the_command_line_are_answered_without_a_traceback(run, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(train, *POINT, "-n", "200", *arguments)
    assert message in str(exit_info.value.code) + capsys.readouterr().err
    # Nor is there a folder of a run that has not begun
    assert list(Path("logs").glob("*/*")) == []


def test_words_of_the_command_line_need_no_quotes(run):
    values = [
        "cost_limit:lin_9_3_0.5",
        "cost_shaping:FailurePredictor(horizon=7)",
        "vec_env:dummy",
        "normalize_advantage:False",
        "policy_kwargs:dict(net_arch=[8])",
    ]
    run(train, *POINT, "-n", "200", "--eval-freq", "-1", *TINY, *values)
    model = CPO.load("logs/cpo/SafePointCircle-v0_1/SafePointCircle-v0.zip")
    assert (model.cost_limits.at(1.0), model.cost_limits.at(0.5), model.cost_limits.at(0.0)) == (9.0, 3.0, 3.0)
    assert model.normalize_advantage is False
    assert model.cost_shaping.horizon == 7


def test_errors_of_a_users_own_code_keep_their_traceback():
    """And so do those of training, which no option has caused."""

    def learn():
        raise ValueError("in training")

    for mistake in (lambda: int("x"), learn, lambda: np.zeros(2).reshape(3)):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            mistake()
        assert not is_mistake(raised.value)
    with pytest.raises(ValueError, match="cost_limit") as raised:
        CPO("MlpPolicy", "SafePointCircle-v0", "5")
    assert is_mistake(raised.value)


def test_a_run_knows_the_packages_that_register_its_environment(run):
    Path("my_envs_of_a_test.py").write_text(
        "import gymnasium\nfrom zoo_scripts import PricelessEnv\ngymnasium.register('Packed-v0', PricelessEnv)"
    )
    arguments = ["--algo", "cpo", "--env", "Packed-v0"]
    train_arguments = ["-n", "200", "--eval-freq", "-1", *TINY, "cost_limit:9"]
    try:
        run(train, *arguments, "--gym-packages", "my_envs_of_a_test", *train_arguments)
        # As in another process
        del sys.modules["my_envs_of_a_test"], gym.registry["Packed-v0"]
        assert "Cost limit: 9.00, the mean is OVER" in run(enjoy, *arguments, "--no-render", "-n", "8")
    finally:
        gym.registry.pop("Packed-v0", None)
    with pytest.raises(SystemExit, match="Environment `Packed` doesn't exist"):
        run(enjoy, *arguments, "-f", "other", "--no-render")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("costs", "expected module:function"),
        ("no_such_module:cost", "there is no module 'no_such_module'"),
        ("math:speed", "math has no function 'speed'; it has"),
    ],
)
def test_a_cost_that_is_not_there_is_an_error_of_the_command_line(run, name, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(train, *POINT, "--cost", name)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
