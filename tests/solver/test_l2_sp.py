import pytest
import torch
from torch import nn

from cupre_d2.errors import CheckpointError, ConfigError
from cupre_d2.solver.l2_sp import L2SP


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def shifted(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weight", [0.0, 1e-4, 2.0])
def test_against_the_formula(alpha: float, weight: float) -> None:
    model = network()
    anchors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    l2_sp = L2SP(dict(model.named_parameters()), alpha, weight)
    shifted(model)
    expected = 0.0
    for name, parameter in model.named_parameters():
        for value, anchor in zip(parameter.flatten().tolist(), anchors[name].flatten().tolist(), strict=True):
            expected += weight / 2 * (alpha * (value - anchor) ** 2 + (1 - alpha) * value**2)
    assert l2_sp.loss().item() == pytest.approx(expected, rel=1e-12)
    l2_sp.loss().backward()
    for name, parameter in model.named_parameters():
        gradient = weight * (alpha * (parameter - anchors[name]) + (1 - alpha) * parameter)
        assert torch.allclose(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_alpha_zero_is_weight_decay(optimizer: str) -> None:
    kind = {"SGD": lambda p, wd: torch.optim.SGD(p, 0.1, 0.9, weight_decay=wd), "Adam": None}[optimizer] or (
        lambda p, wd: torch.optim.Adam(p, 0.01, weight_decay=wd)
    )
    with_loss, with_decay = network(), network()
    l2_sp = L2SP(dict(with_loss.named_parameters()), alpha=0.0, weight=0.05)
    optimizers = kind(with_loss.parameters(), 0.0), kind(with_decay.parameters(), 0.05)
    for step in range(20):
        inputs = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        losses = with_loss(inputs).square().mean() + l2_sp.loss(), with_decay(inputs).square().mean()
        for loss, stepper in zip(losses, optimizers, strict=True):
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    for ours, theirs in zip(with_loss.parameters(), with_decay.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_alpha_one_is_at_rest_at_the_anchor_weights() -> None:
    model = network()
    l2_sp = L2SP(dict(model.named_parameters()), alpha=1.0, weight=1.0)
    l2_sp.loss().backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in model.parameters())
    shifted(model)
    assert l2_sp.loss().item() > 0
    l2_sp.set_anchor_weights()
    assert l2_sp.loss().item() == 0


def test_any_set_of_parameters() -> None:
    model = network()
    l2_sp = L2SP({"first": model[0].weight}, alpha=0.5, weight=1.0)
    shifted(model)
    l2_sp.loss().backward()
    assert model[0].weight.grad is not None
    assert model[0].bias.grad is None and model[2].weight.grad is None


def test_takes_named_parameters() -> None:
    model = network()
    l2_sp = L2SP(model.named_parameters(), alpha=0.5, weight=1.0)
    assert list(l2_sp.state_dict()) == [name for name, _ in model.named_parameters()]


def test_anchor_weights_survive_a_checkpoint() -> None:
    model = network()
    l2_sp = L2SP(dict(model.named_parameters()), alpha=0.7, weight=1.0)
    shifted(model)
    other = L2SP(dict(model.named_parameters()), alpha=0.7, weight=1.0)
    assert other.loss().item() != l2_sp.loss().item()
    other.load_state_dict(l2_sp.state_dict())
    assert other.loss().item() == l2_sp.loss().item()


@pytest.mark.parametrize("state", [{}, {"w": torch.zeros(3)}])
def test_other_anchor_weights_are_refused(state: dict[str, torch.Tensor]) -> None:
    l2_sp = L2SP({"w": nn.Parameter(torch.zeros(2))}, 0.5, 1.0)
    with pytest.raises(CheckpointError, match=r"anchor weights of w: found .*, expected \(2,\)"):
        l2_sp.load_state_dict(state)


def test_anchor_weights_of_unknown_parameters_are_refused() -> None:
    l2_sp = L2SP({"w": nn.Parameter(torch.zeros(2))}, 0.5, 1.0)
    before = l2_sp.loss().item()
    with pytest.raises(CheckpointError, match="anchor weights of v: not under L2-SP here"):
        l2_sp.load_state_dict({"w": torch.ones(2), "v": torch.ones(2)})
    assert l2_sp.loss().item() == before


@pytest.mark.parametrize(("alpha", "weight"), [(-0.1, 1.0), (1.1, 1.0), (0.5, -1.0), (float("nan"), 1.0)])
def test_bad_values(alpha: float, weight: float) -> None:
    with pytest.raises(ConfigError, match="SOLVER.L2SP"):
        L2SP({"w": nn.Parameter(torch.zeros(2))}, alpha, weight)


@pytest.mark.parametrize("nothing", [{}, nn.ReLU().named_parameters()])
def test_nothing_to_regularise(nothing: dict[str, nn.Parameter]) -> None:
    with pytest.raises(ConfigError, match="no parameter"):
        L2SP(nothing, 0.5, 1.0)
