"""The critics' output layer: statistics and predictions, by hand and in other units."""

import pytest
import torch as th

from sb3_cpo.standardized_head import StandardizedLinear

FEATURES = th.linspace(-1, 1, 12).reshape(4, 3)
PLUS_MINUS = th.tensor([[-1.0], [1.0]])


def head_after(*batches):
    head = StandardizedLinear(3, batches[0].shape[1])
    for batch in batches:
        head.update(batch)
    return head


def test_a_standard_deviation_of_one_is_a_measurement_like_any_other():
    assert head_after(PLUS_MINUS, PLUS_MINUS).std.item() == 1
    # By its half, the mean of squares is 1 / 2 + 9 / 2
    assert head_after(PLUS_MINUS, 3 * PLUS_MINUS).std.item() == pytest.approx(5**0.5)


def test_targets_that_do_not_vary_are_left_unscaled_and_count_as_no_spread():
    constant = th.tensor([[4.0, 0.1]] * 2)
    head = head_after(constant, constant)
    assert head.std.tolist() == [1, 1]
    assert head.mean.tolist() == pytest.approx([4, 0.1])
    # Half of the targets are 4, the others 4 - 3 and 4 + 3; the second signal stays as it was
    head = head_after(constant, constant + th.tensor([[-3.0, 0.0], [3.0, 0.0]]))
    assert head.std.tolist() == pytest.approx([4.5**0.5, 1])
    assert head.is_spread.tolist() == [True, False]


@pytest.mark.parametrize("unit", [1e-3, 0.5, 1e4])
def test_in_another_unit_the_same_is_learned(unit):
    """Among the units is one in which the first standard deviation is 1."""
    generator = th.Generator().manual_seed(0)
    later = [th.randn(5, 1, generator=generator) * 3 + 2 for _ in range(2)]
    heads = []
    for scale in (1.0, unit):
        head = StandardizedLinear(3, 1)
        th.nn.init.zeros_(head.weight), th.nn.init.zeros_(head.bias)
        head.update(scale * PLUS_MINUS)
        with th.no_grad():
            head.weight.copy_(th.tensor([[1.0, -2.0, 3.0]]))
        for batch in later:
            head.update(scale * batch)
        heads.append(head)
    th.testing.assert_close(heads[1](FEATURES) / unit, heads[0](FEATURES), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(heads[1].standardize(unit * later[0]), heads[0].standardize(later[0]), rtol=1e-4, atol=1e-5)


def test_new_statistics_change_no_prediction():
    head = head_after(PLUS_MINUS)
    before = head(FEATURES).detach()
    for batch in (100 * PLUS_MINUS + 7, PLUS_MINUS, th.full((2, 1), 50.0)):
        head.update(batch)
        th.testing.assert_close(head(FEATURES), before, rtol=1e-4, atol=1e-4)


def test_a_critic_without_opinion_says_the_mean_and_old_batches_count_for_nine_tenths_at_most():
    head = StandardizedLinear(3, 1)
    th.nn.init.zeros_(head.weight), th.nn.init.zeros_(head.bias)
    for _ in range(30):
        head.update(PLUS_MINUS + 5)
    assert head(FEATURES).flatten().tolist() == pytest.approx([5] * 4)
    head.update(PLUS_MINUS + 15)
    # 0.9 * 5 + 0.1 * 15; the variance within batches is 1, that between them 0.9 * 0.1 * 10^2
    assert (head.mean.item(), head.std.item()) == pytest.approx((6, 10**0.5))
