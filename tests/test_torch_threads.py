import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from safe_envs import BatchVecEnv
from sb3_cpo import CPO, critics, evaluate_policy, make_vec_env
from sb3_cpo.torch_threads import leave_cores_to


@pytest.fixture(autouse=True)
def three_threads():
    before = th.get_num_threads()
    th.set_num_threads(3)
    yield
    assert th.get_num_threads() == 3
    th.set_num_threads(before)


def make_env(n_threads):
    kwargs = {"vec_env_cls": BatchVecEnv, "vec_env_kwargs": {"n_threads": n_threads}}
    return make_vec_env("SafeAntCircle-v0", n_envs=2, **kwargs)


@pytest.mark.parametrize(("n_threads", "expected"), [(1, 3), (2, 1)])
def test_torch_takes_one_thread_while_physics_takes_several(n_threads, expected):
    env = make_env(n_threads)
    seen = []

    def look(*_):
        seen.append(th.get_num_threads())
        return True

    model = CPO("MlpPolicy", env, n_steps=500, batch_size=500, n_critic_updates=1, policy_kwargs={"net_arch": [4]})
    step = model._trust_region_step
    model._trust_region_step = lambda *args, **kwargs: (look(), step(*args, **kwargs))[1]
    model.learn(1000, callback=look)
    assert set(seen[:-1]) == {expected}
    # An update has them all
    assert seen[-1] == 3
    seen.clear()
    evaluate_policy(model, env, n_eval_episodes=2, callback=look)
    assert set(seen) == {expected}


@pytest.mark.parametrize(("width", "expected"), [(64, 1), (512, 3)])
def test_torch_takes_one_thread_for_the_critics_of_small_networks_only(monkeypatch, width, expected):
    seen, fit = [], critics.fit_critics
    monkeypatch.setattr(critics, "fit_critics", lambda *args: (seen.append(th.get_num_threads()), fit(*args))[1])
    env, kwargs = make_env(2), {"net_arch": [width, width]}
    model = CPO("MlpPolicy", env, n_steps=500, batch_size=500, n_critic_updates=1, policy_kwargs=kwargs, device="cpu")
    model.learn(1000)
    assert seen == [expected]


def test_wrappers_do_not_hide_the_threads_and_errors_do_not_keep_them():
    def interrupted():
        with leave_cores_to(VecNormalize(make_env(2))):
            assert th.get_num_threads() == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_other_environments_step_on_no_threads():
    with leave_cores_to(make_vec_env("SafeAntCircle-v0", n_envs=2, vec_env_cls=DummyVecEnv)):
        assert th.get_num_threads() == 3


def test_all_cores_are_as_many_as_there_are(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert make_env(0).n_threads == 7
