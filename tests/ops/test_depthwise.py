"""A depthwise convolution whose gradients come from a kernel equals torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from kiloseg.ops import cpu, depthwise
from kiloseg.ops.depthwise import depthwise_conv2d, slow_gradient

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no compiler")


def drawn(shape, K, dtype=torch.float32, layout=torch.channels_last, bias=True):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    weights = torch.randn((shape[1], 1, K, K), generator=generator).to(dtype)
    leaves = [inputs, weights, *([torch.randn(shape[1], generator=generator).to(dtype)] if bias else [])]
    return [leaf.requires_grad_() for leaf in leaves]


def gradients(outputs, leaves):
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(outputs, leaves, weights.to(outputs.dtype))


def expected(leaves, stride, padding, dilation):
    """Torch's own outputs and gradients in float64, of the same values."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    outputs = F.conv2d(exact[0], exact[1], *exact[2:], stride, padding, dilation, len(exact[1]))
    return outputs, gradients(outputs, exact)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("shape", "K", "stride", "padding", "dilation"),
    [
        ((2, 3, 9, 7), 5, 1, 2, 1),
        ((3, 64, 8, 8), 5, 1, 2, 1),
        ((1, 130, 4, 4), 5, 1, 2, 1),  # two whole blocks of channels and a part
        ((2, 65, 11, 14), 5, 2, 0, 1),
        ((2, 7, 13, 12), 7, 1, 3, 1),
        ((2, 7, 13, 12), 7, 3, 1, 2),
        ((1, 5, 1, 1), 5, 1, 2, 1),  # most taps never meet the input
        ((2, 4, 2, 9), 9, 1, 4, 1),
        ((2, 6, 9, 9), 3, 2, 1, 1),
        ((5, 6, 10, 8), 1, 2, 0, 1),
        ((1, 2, 12, 40), 11, 1, 5, 1),
    ],
)
def test_equals_torch(shape, K, stride, padding, dilation, layout, monkeypatch):
    monkeypatch.setattr(depthwise, "WIDENED", 1)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        leaves = drawn(shape, K, dtype, layout)
        outputs = depthwise_conv2d(*leaves, stride=stride, padding=padding, dilation=dilation)
        exact, exact_gradients = expected(leaves, stride, padding, dilation)
        torch.testing.assert_close(
            outputs.double(), exact, rtol=tolerance, atol=tolerance * float(exact.detach().abs().max())
        )
        for found, wanted, leaf in zip(gradients(outputs, leaves), exact_gradients, leaves, strict=True):
            assert found.dtype == leaf.dtype
            scale = float(wanted.abs().max())
            torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(count):
    before = torch.get_num_threads()
    leaves = drawn((4, 200, 24, 24), 5)
    torch.set_num_threads(1)
    try:
        one = gradients(depthwise_conv2d(*leaves, padding=2), leaves)[1]
        torch.set_num_threads(count)
        assert torch.equal(gradients(depthwise_conv2d(*leaves, padding=2), leaves)[1], one)
    finally:
        torch.set_num_threads(before)


def test_a_long_sum_keeps_small_terms():
    """Two million equal products; one running sum in float32 would be off by more than 1 %."""
    inputs = torch.full((2, 1, 1024, 1024), 0.1).requires_grad_()
    weights = torch.zeros((1, 1, 5, 5), requires_grad=True)
    outputs = depthwise_conv2d(inputs, weights, padding=2)
    (found,) = torch.autograd.grad(outputs, weights, torch.full_like(outputs, 0.1))
    assert float(found[0, 0, 2, 2]) == pytest.approx(2 * 1024 * 1024 * 0.01, rel=1e-4)


def test_casts_under_autocast_as_torch_does():
    leaves = drawn((2, 70, 8, 8), 5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = depthwise_conv2d(*leaves, stride=2, padding=2)
        own = F.conv2d(*leaves, 2, 2, 1, 70)
    assert torch.equal(outputs, own)
    for found, wanted in zip(gradients(outputs, leaves), gradients(own, leaves), strict=True):
        assert found.dtype == wanted.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_single_gradient_can_be_asked_for(wanted):
    leaves = drawn((2, 8, 6, 6), 5)
    whole = gradients(depthwise_conv2d(*leaves, padding=2), leaves)
    alone = [leaf.detach() for leaf in leaves]
    alone[wanted].requires_grad_()
    (found,) = gradients(depthwise_conv2d(*alone, padding=2), [alone[wanted]])
    assert torch.equal(found, whole[wanted])


def test_the_gradient_itself_has_none():
    leaves = drawn((1, 2, 6, 6), 5, bias=False)
    outputs = depthwise_conv2d(*leaves, padding=2)
    (found,) = torch.autograd.grad(outputs.square().sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()


def test_fake_tensors_get_gradients_of_the_same_form():
    """Memory is planned on fake tensors."""
    for dtype, stride in ((torch.float32, 1), (torch.bfloat16, 2)):
        leaves = drawn((3, 20, 12, 12), 5, dtype)
        real = gradients(depthwise_conv2d(*leaves, stride=stride, padding=2), leaves)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(leaf) for leaf in leaves]
            outputs = depthwise_conv2d(*fakes, stride=stride, padding=2)
            planned = torch.autograd.grad(outputs, fakes, torch.empty_like(outputs))
        for one, other in zip(real, planned, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_which_gradients_are_slow():
    assert slow_gradient(5, 1)
    assert slow_gradient(3, 2)
    assert not slow_gradient(3, 1)
