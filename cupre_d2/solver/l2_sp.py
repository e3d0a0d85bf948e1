"""L2-SP (Li et al. 2018): a penalty that pulls weights to where they started rather than to zero."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from cupre_d2.errors import CheckpointError, ConfigError


class L2SP:
    """Ω(w) = λ (α ‖w − w⁰‖² + (1 − α) ‖w‖²), CUPre §III.

    λ = weight / 2, so that `weight` has the unit of weight decay: torch's decay of strength d adds d·w to the gradient,
    the gradient of d/2 ‖w‖². With α = 0 the loss does the same to plain SGD or Adam. AdamW's decay is decoupled from the
    gradient, this loss is not. The paper gives neither α nor λ. Li et al. weigh shared and new parameters apart; here
    new parameters keep the optimizer's weight decay.

    Args:
        parameters: any set of parameters by name, a mapping or pairs as of `named_parameters()`; their present values are
            the first anchor weights w⁰.
        alpha: in [0, 1].
        weight: not negative.

    Raises:
        ConfigError: no parameter, or a value outside its range.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter] | Iterable[tuple[str, nn.Parameter]], alpha: float, weight: float
    ) -> None:
        self._parameters = dict(parameters)
        if not self._parameters:
            raise ConfigError("SOLVER.L2SP: no parameter to regularise; is the backbone frozen?")
        if not 0 <= alpha <= 1:
            raise ConfigError(f"SOLVER.L2SP.ALPHA {alpha}: expected a number from 0 to 1")
        if not weight >= 0:
            raise ConfigError(f"SOLVER.L2SP.WEIGHT {weight}: expected a number that is not negative")
        self._alpha = alpha
        self._weight = weight
        self.set_anchor_weights()

    def set_anchor_weights(self) -> None:
        """Takes the present values of the parameters as w⁰, in their own dtype."""
        self._anchors = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def loss(self) -> torch.Tensor:
        """Ω of the present values, a scalar with gradients."""
        total = torch.zeros((), device=next(iter(self._anchors.values())).device)
        for name, parameter in self._parameters.items():
            to_anchor = (parameter - self._anchors[name]).square().sum()
            total = total + self._alpha * to_anchor + (1 - self._alpha) * parameter.square().sum()
        return self._weight / 2 * total

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The anchor weights by name."""
        return dict(self._anchors)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes anchor weights from a checkpoint.

        Raises:
            CheckpointError: other names or shapes than this set of parameters.
        """
        unknown = sorted(set(state) - set(self._parameters))
        if unknown:
            raise CheckpointError(
                f"anchor weights of {', '.join(unknown)}: not under L2-SP here; expected a checkpoint of the same config"
            )
        for name, parameter in self._parameters.items():
            found = tuple(state[name].shape) if name in state else None
            if found != tuple(parameter.shape):
                raise CheckpointError(f"anchor weights of {name}: found {found}, expected {tuple(parameter.shape)}")
        self._anchors = {name: state[name].to(parameter) for name, parameter in self._parameters.items()}
