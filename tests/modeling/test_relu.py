"""ReLU whose gradient is written over the one that comes in."""

import pytest
import torch

from cupre_d2.modeling.relu import relu_


def gradients(relu, x: torch.Tensor, outgoing: torch.Tensor) -> torch.Tensor:  # noqa: ANN001
    leaf = x.clone().requires_grad_()
    # In place on what is not a leaf.
    relu(leaf * 1).backward(outgoing)
    return leaf.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_as_torch_has_it(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x, outgoing = (torch.randn(2, 3, 5, 7).contiguous(memory_format=layout) for _ in range(2))
    x[0, 0] = 0
    expected = gradients(torch.relu_, x, outgoing.clone())
    found = gradients(relu_, x, outgoing)
    assert torch.equal(found, expected)
    assert torch.equal(relu_(x.clone()), torch.relu(x))
    # It is where the incoming one was.
    assert torch.equal(outgoing, expected)


def test_a_gradient_that_holds_one_value_for_many_is_left_alone() -> None:
    x = torch.randn(2, 3, 5, 7)
    outgoing = torch.tensor(2.0)
    found = gradients(relu_, x, outgoing.expand_as(x))
    assert outgoing == 2 and torch.equal(found, 2.0 * (x > 0))


def test_gradients_of_gradients() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: relu_(x * x - 0.5) ** 2, x)


def test_without_gradients() -> None:
    x = torch.randn(4)
    with torch.no_grad():
        assert relu_(x) is x
    assert not relu_(torch.randn(3)).requires_grad
