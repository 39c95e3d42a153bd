"""Training on several processes, connected by gloo through a file: no network, no GPU."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
import torch.distributed as dist
import torch.multiprocessing as mp
from episode_gradients import assert_signs_measure_episodes, balanced_signs, watch_gradients
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import RiskyEnv, vec_env

from sb3_cpo import CPO, PDO, TRPO, FailurePredictor, cost_surrogates, distributed, make_vec_env
from sb3_cpo.policies import CostActorCriticPolicy

N_ENVS, N_STEPS, LENGTH, N_UPDATES = 4, 24, 4, 5
ALGORITHMS = {"CPO": CPO, "PDO": PDO, "TRPO": TRPO}


class OwnDiceEnv(RiskyEnv):
    """Its observations follow from its number and its steps."""

    def __init__(self, number: int):
        super().__init__(length=LENGTH)
        self.dice = np.random.default_rng(number)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.dice.normal(size=3).astype(np.float32) + 2, {}

    def step(self, action):
        _, *rest = super().step(action)
        return (self.dice.normal(size=3).astype(np.float32) + 2, *rest)


class Double(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations).double()


class OwnDicePolicy(CostActorCriticPolicy):
    """The noise of an environment's actions follows from its number."""

    first_env = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # What is left between one process and two is then the order of sums, not magnified by conjugate gradients
        self.double()
        self.optimizer = th.optim.Adam(self.parameters(), lr=1e-3)

    def forward(self, obs, deterministic=False):
        if not hasattr(self, "dice"):
            self.dice = [np.random.default_rng(100 + self.first_env + index) for index in range(len(obs))]
        noise = th.as_tensor(np.stack([dice.normal(size=2) for dice in self.dice]), dtype=th.float32)
        distribution = self.get_distribution(obs)
        actions = distribution.distribution.mean + distribution.distribution.stddev * noise
        return actions.float(), self.predict_values(obs), distribution.log_prob(actions)


def signs_of_all(episodes, n_draws, generator):
    """As if one process had drawn the signs of all episodes."""
    n_episodes = int(episodes.max()) + 1
    table = 2.0 * th.as_tensor(np.random.default_rng(7).integers(0, 2, (n_draws, 1000)), dtype=th.float32) - 1
    return table[:, distributed.rank() * n_episodes + episodes]


def make_model(name, is_normalized, **kwargs):
    n_envs = N_ENVS // distributed.world_size()
    OwnDicePolicy.first_env = distributed.rank() * n_envs
    env = vec_env(lambda index: OwnDiceEnv(OwnDicePolicy.first_env + index), n_envs)
    env = VecNormalize(env, norm_reward=False) if is_normalized else env
    limit = {} if name == "TRPO" else {"cost_limit": 2.0}
    settings = {"n_steps": N_STEPS, "batch_size": N_ENVS * N_STEPS, "device": "cpu", "seed": 3, **kwargs}
    # The first standard deviation of 1: smaller ones make more of the rounding of rewards and costs
    return ALGORITHMS[name](
        OwnDicePolicy,
        env,
        **limit,
        **settings,
        policy_kwargs={"net_arch": [8], "features_extractor_class": Double, "log_std_init": 0.0},
    )


def train(name, folder, **kwargs):
    th.set_num_threads(1)
    cost_surrogates.random_signs = signs_of_all
    shaping = {"cost_shaping": FailurePredictor(horizon=2)} if kwargs.pop("shaping", False) else {}
    model = make_model(name, kwargs.pop("is_normalized", False), **shaping, **kwargs)
    model.learn(N_UPDATES * N_ENVS * N_STEPS)
    result = {
        "policy": {key: value.clone() for key, value in model.policy.state_dict().items()},
        "numbers": [model.num_timesteps, model.safety.n_steps, model.cost_estimate.n_episodes],
        "J": [model.ep_cost_mean, model.cost_estimate.standard_error, model.safety.cumulative_cost, model.ep_rew_mean],
        "sent": distributed.n_bytes_sent,
    }
    th.save(result, folder / f"{distributed.rank()}_of_{distributed.world_size()}.pt")


def in_process(rank, folder, function, *args):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    function(*args)
    dist.destroy_process_group()
    sys.stdout.flush()
    # An interpreter that ends so soon after a message may be aborted by gloo's thread, which still holds tensors of it
    os._exit(0)


def on_two(folder, function, *args):
    mp.spawn(in_process, (folder, function, *args), nprocs=2)


CASES = {
    "CPO": ("CPO", {}, 1e-6),
    "PDO": ("PDO", {}, 1e-6),
    "TRPO": ("TRPO", {}, 1e-6),
    # The network of the shaping counts in single precision, and Adam's first steps hardly depend on the size of a gradient
    "shaping": ("CPO", {"shaping": True, "cost_gamma": 0.9}, 1e-3),
}


def train_all(folder):
    for case, (name, kwargs, _) in CASES.items():
        (folder / case).mkdir(exist_ok=True)
        train(name, folder / case, **kwargs)


def test_two_processes_with_half_the_copies_train_like_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_surrogates, "random_signs", signs_of_all)
    train_all(tmp_path)
    on_two(tmp_path, train_all, tmp_path)
    for case, (name, _, tolerance) in CASES.items():
        files = (tmp_path / case / f"{file}.pt" for file in ("0_of_1", "0_of_2", "1_of_2"))
        alone, first, second = (th.load(file, weights_only=False) for file in files)
        start = make_model(name, False).policy.state_dict()
        assert max((alone["policy"][key].double() - value.double()).abs().max().item() for key, value in start.items()) > 0.01
        for key, value in alone["policy"].items():
            assert th.equal(first["policy"][key], second["policy"][key]), (case, key)
            th.testing.assert_close(
                first["policy"][key], value, rtol=0, atol=tolerance, msg=lambda text, at=(case, key): f"{at}: {text}"
            )
        assert alone["numbers"] == first["numbers"] == second["numbers"]
        for mine, theirs, others in zip(alone["J"], first["J"], second["J"], strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-5)
            np.testing.assert_array_equal(theirs, others)
        assert alone["sent"] == 0
        assert first["sent"] == second["sent"] > 0


def measure_noise():
    """Three episodes of five steps here and five of three steps there: the signs of production, then all that they may be."""
    numbers = [3, 5]
    own, others = numbers[distributed.rank()], numbers[1 - distributed.rank()]
    env = vec_env(lambda index: RiskyEnv(length=15 // own, n_costs=2), 1)
    limits, policy_kwargs = [1.0, 2.0], {"net_arch": [3]}
    model = CPO("MlpPolicy", env, limits, n_steps=15, batch_size=30, device="cpu", seed=3, n_cost_rollouts=1,
                n_noise_draws=20, policy_kwargs=policy_kwargs)  # fmt: skip
    seen, draw, seeds = watch_gradients(model), cost_surrogates.random_signs, []

    def drawn_signs(episodes, n_draws, generator):
        seeds.append(generator.initial_seed())
        signs = draw(episodes, n_draws, generator)
        of_episodes = th.stack([signs[:, episodes == episode][:, 0] for episode in range(own)], dim=1)
        assert (of_episodes.sum(dim=1).abs() == 1).all()
        return signs

    cost_surrogates.random_signs = drawn_signs
    model.learn(30)
    assert [len(gradients) for gradients in seen.contributions] == numbers
    assert (seen.probe.n_episodes, seen.probe.n_unpaired, len(seen.draws)) == (8, 2, 20)
    # The same signs on both would be those of fewer episodes
    assert len(set(distributed.gather(seeds[0]))) == 2

    def all_signs(episodes, n_draws, generator):
        """Each draw of this process with each of the other one."""
        draws, n_others = balanced_signs(own), len(balanced_signs(others))
        draws = draws.repeat_interleave(n_others, dim=0) if distributed.rank() == 0 else draws.repeat(n_others, 1)
        return draws[:, episodes]

    cost_surrogates.random_signs = all_signs
    model.learn(30, reset_num_timesteps=False)
    assert (seen.probe.n_unpaired, len(seen.draws)) == (2, 6 * 20)
    assert_signs_measure_episodes(seen, atol=1e-4)


def test_signs_that_each_process_draws_measure_what_single_episodes_contribute(tmp_path):
    on_two(tmp_path, measure_noise)


def train_alike(folder):
    """Different environments, seeds and order of minibatches; VecNormalize; several rollouts."""
    th.set_num_threads(1)
    env = VecNormalize(vec_env(lambda index: OwnDiceEnv(10 * distributed.rank() + index), 2))
    model = CPO("MlpPolicy", env, 2.0, n_steps=N_STEPS, batch_size=16, n_cost_rollouts=2, device="cpu", seed=3)
    model.learn(N_UPDATES * 4 * N_STEPS)
    statistics = [env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var, env.obs_rms.count]
    th.save((model.policy.state_dict(), statistics, model.num_timesteps), folder / f"{distributed.rank()}.pt")


def test_processes_stay_alike(tmp_path):
    on_two(tmp_path, train_alike, tmp_path)
    (first, statistics, n_steps), (second, others, _) = (th.load(tmp_path / f"{i}.pt", weights_only=False) for i in (0, 1))
    assert all(th.equal(value, second[key]) for key, value in first.items())
    for mine, theirs in zip(statistics, others, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # All observations but those that came after the last update; VecNormalize begins with a count of 1e-4
    assert n_steps == N_UPDATES * 4 * N_STEPS
    assert statistics[-1] == pytest.approx(n_steps + 4, abs=4.1)


def merge(folder):
    rank = distributed.rank()
    samples = np.random.default_rng(rank).normal(rank, 1 + rank, size=(50 * (rank + 1), 3))
    rms, env = RunningMeanStd(shape=(3,)), SimpleNamespace(norm_obs=False)
    rms.update(np.full((20, 3), 5.0))
    env.ret_rms = rms
    before = distributed._statistics(env)
    rms.update(samples)
    distributed.merge_statistics(env, before)
    together = RunningMeanStd(shape=(3,))
    together.update(np.full((20, 3), 5.0))
    for values in distributed.gather(samples):
        together.update(values)
    np.testing.assert_allclose(rms.mean, together.mean, rtol=1e-10)
    np.testing.assert_allclose(rms.var, together.var, rtol=1e-10)
    assert rms.count == pytest.approx(together.count)
    values = th.as_tensor(distributed.concatenate(samples[:50]))
    mean, variance, n = distributed.moments(th.as_tensor(samples[:50]))
    th.testing.assert_close(mean, values.mean(dim=0))
    th.testing.assert_close(variance, values.var(dim=0, unbiased=False))
    assert n == 100


def test_moments_of_all_processes_are_those_of_all_samples(tmp_path):
    on_two(tmp_path, merge, tmp_path)


class StopAfter(BaseCallback):
    def _on_step(self):
        return self.n_calls < 30


def stop(folder):
    model = make_model("CPO", False, verbose=1)
    # Only the first process asks its callback
    model.learn(1000, callback=StopAfter())
    (folder / f"{distributed.rank()}.txt").write_text(f"{model.num_timesteps} {model._n_updates} {model.safety.n_steps}")


def test_a_callback_stops_all_processes(tmp_path, capfd):
    on_two(tmp_path, stop, tmp_path)
    first, second = ([int(n) for n in (tmp_path / f"{i}.txt").read_text().split()] for i in (0, 1))
    assert first[1] == second[1] == 1
    assert first[0] == 4 * 30
    # The second one has finished its rollout
    assert first[2] == second[2] == 2 * 30 + 2 * 48
    assert capfd.readouterr().out.count("total_timesteps") == 1


def differ(folder, what):
    kwargs, message = {
        "size": ({"n_steps": 24 + 4 * distributed.rank()}, "processes differ"),
        "batch": ({"batch_size": 15}, "cannot be divided"),
        "seed": ({"seed": distributed.rank()}, r"differ in their seed: \[0, 1\]"),
    }[what]
    with pytest.raises(ValueError, match=message):
        make_model("CPO", False, **kwargs).learn(10)


@pytest.mark.parametrize("what", ["size", "batch", "seed"])
def test_processes_that_do_not_fit_together_say_so(what, tmp_path):
    on_two(tmp_path, differ, tmp_path, what)


def lose(folder):
    model = make_model("CPO", False)
    if distributed.rank() == 1:
        model._update_info_buffer = lambda *args: os._exit(9)
        model.learn(1000)
    with pytest.raises(RuntimeError, match="has lost another process"):
        model.learn(1000)
    (folder / "said").touch()
    dist.destroy_process_group = lambda: None


def test_a_lost_process_ends_the_others_with_a_message(tmp_path):
    context = mp.spawn(in_process, (tmp_path, lose, tmp_path), nprocs=2, join=False)
    for process in context.processes:
        process.join(240)
    assert (tmp_path / "said").exists()
    assert [process.exitcode for process in context.processes] == [0, 9]


SCRIPT = """
import sys

import torch.distributed as dist

from sb3_cpo import CPO

dist.init_process_group("gloo")
model = CPO("MlpPolicy", "SafePointGather-v0", seed=0, n_steps=15, verbose=1).learn(6_000)
if dist.get_rank() == 0:
    model.save(sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_hosts_meet_at_a_rendezvous(tmp_path):
    """Two agents of torchrun, as on two hosts, at two addresses of this one; what they save goes on in one process."""
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    program = [str(tmp_path / "train.py"), str(tmp_path / "model.zip")]
    hosts = [
        subprocess.Popen([*torchrun, *meeting, "--local-addr", address, *program], stdout=subprocess.PIPE, text=True)
        for address in ("127.0.0.1", "127.0.0.2")
    ]
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0]
    assert "".join(outputs).count("Safety during training") == 1
    model = CPO.load(tmp_path / "model.zip", env=make_vec_env("SafePointGather-v0", n_envs=100), device="cpu")
    assert model.num_timesteps == 6_000
    assert model.learn(1_500, reset_num_timesteps=False).num_timesteps == 7_500


@pytest.mark.slow
def test_the_zoo_trains_on_two_processes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "sb3_cpo.zoo.train",
    ]
    options = ["--algo", "cpo", "--env", "SafePointGather-v0", "-n", "6000", "--eval-freq", "-1", "-params", "n_steps:15"]
    result = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    runs = [path.name for path in (tmp_path / "logs" / "cpo").iterdir()]
    assert runs == ["SafePointGather-v0_1"]
    model = CPO.load(tmp_path / "logs" / "cpo" / runs[0] / "SafePointGather-v0.zip", device="cpu")
    assert model.num_timesteps == 6000
    assert model.n_envs == 50
