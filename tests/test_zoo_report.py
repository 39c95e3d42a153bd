"""``sb3-cpo report``: the safety report of a run of the zoo."""

import hashlib
import json

import gymnasium as gym
import pytest
from stable_baselines3 import PPO
from zoo_scripts import POINT, TINY, registered, run_in_folder  # noqa: F401

pytest.importorskip("scipy")

from sb3_cpo.zoo import report, train


def test_report_of_a_normalised_run(run, tmp_path, capsys):
    run(train.train, *POINT, "-n", "200", "--eval-freq", "100", "--seed", "3", *TINY, "normalize:True")
    folder = tmp_path / "logs/cpo/SafePointCircle-v0_1"
    arguments = [*POINT, "--load-best", "-n", "4", "--max-episode-cost", "65"]
    report.main([*arguments, "--model-card", str(tmp_path / "card"), "--license", "mit"])
    out = capsys.readouterr().out
    assert "stochastic policy, cost: mean" in out
    assert "deterministic policy, cost: mean" in out
    (written,) = folder.glob("report-best-model-*")
    numbers = json.loads((written / "report.json").read_text())
    assert numbers["environment"] == "SafePointCircle-v0"
    assert numbers["command"].startswith("sb3-cpo report --algo cpo --env SafePointCircle-v0 --load-best")
    assert numbers["sha256"]["model file"] == hashlib.sha256((folder / "best_model.zip").read_bytes()).hexdigest()
    assert numbers["policies"]["stochastic"]["episodes"]["seeds"] == [1_000_000, 1_000_001, 1_000_002, 1_000_003]
    (one,) = numbers["policies"]["stochastic"]["constraints"]
    assert (one["limit"], one["exact_upper"]) == (5.0, one["upper"])
    # The best model is of the middle of the first rollout, in which it had counted nothing yet
    assert "monitor files" in numbers["training"]["source"]
    assert (tmp_path / "card/cpo-SafePointCircle-v0.zip").is_file()
    # The same again, by its seeds
    report.main([*arguments, "--policy", "stochastic", "-o", "again", "--cost-limit", "60"])
    again = json.loads((tmp_path / "again/report.json").read_text())["policies"]
    assert again["stochastic"]["episodes"] == numbers["policies"]["stochastic"]["episodes"]
    assert (list(again), again["stochastic"]["constraints"][0]["limit"]) == (["stochastic"], 60.0)


def test_errors_are_those_of_a_command_line(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in [
        ([], "folder was not found"),
        (["--cost-limit", "much"], "is neither a number nor name:number"),
    ]:
        with pytest.raises(SystemExit) as exit_info:
            report.main([*POINT, *arguments])
        assert exit_info.value.code == 2
        assert message in capsys.readouterr().err


def test_a_file_and_an_environment_without_cost(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gym.registry, "Pendulum-v1", gym.spec("Pendulum-v1"))
    PPO("MlpPolicy", "Pendulum-v1", n_steps=10, batch_size=10, device="cpu").save("ppo.zip")
    arguments = ["--algo", "ppo", "--env", "Pendulum-v1", "--model", "ppo.zip", "--cost-limit", "500", "-n", "2"]
    with pytest.raises(SystemExit, match="--cost my_module:my_function"):
        report.main(arguments)
    (tmp_path / "costs_of_a_report.py").write_text("def every_step():\n    return 1.0\n")
    report.main([*arguments, "--cost", "costs_of_a_report:every_step", "--policy", "stochastic"])
    assert "stochastic policy, cost: mean 200, at most" in capsys.readouterr().out
