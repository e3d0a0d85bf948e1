"""Split attention (Zhang et al. 2020, ResNeSt, §3.1), with the parameter names of detectron2-ResNeSt."""

import torch
from detectron2.layers import Conv2d
from torch import nn

from cupre_d2.modeling.norms import get_norm


class SplitAttention(nn.Module):
    """A 3x3 convolution into `radix` splits, and their sum weighted by attention over the splits.

    conv -> bn0 -> ReLU -> radix splits; their sum, globally pooled -> fc1 -> bn1 -> ReLU -> fc2 -> softmax over the splits
    (sigmoid when radix is 1), for each cardinal group apart -> weighted sum of the splits.

    Args:
        channels: of input and output.
        groups: cardinality.
        radix: splits of a cardinal group.
        norm, gn_groups: see `get_norm`.
    """

    def __init__(
        self, channels: int, *, stride: int = 1, groups: int = 1, radix: int = 2, norm: str = "BN", gn_groups: int = 32
    ) -> None:
        super().__init__()
        inter = max(channels * radix // 4, 32)
        use_bias = norm == ""
        self.radix = radix
        self.groups = groups
        self.conv = Conv2d(
            channels,
            channels * radix,
            kernel_size=3,
            stride=stride,
            padding=1,
            groups=groups * radix,
            bias=use_bias,
        )
        self.bn0 = get_norm(norm, channels * radix, gn_groups)
        self.fc1 = Conv2d(channels, inter, kernel_size=1, groups=groups)
        self.bn1 = get_norm(norm, inter, gn_groups)
        self.fc2 = Conv2d(inter, channels * radix, kernel_size=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N x C x H x W -> N x C x H/stride x W/stride."""
        x = self.conv(x)
        x = torch.relu(self.bn0(x) if self.bn0 else x)
        batch, channels, height, width = x.shape
        splits = x.reshape(batch, self.radix, channels // self.radix, height, width)
        attention = self.attention(splits.sum(1).mean((2, 3), keepdim=True))
        return (splits * attention).sum(1)

    def attention(self, pooled: torch.Tensor) -> torch.Tensor:
        """Weights of the splits: N x C x 1 x 1 -> N x radix x C x 1 x 1."""
        hidden = self.fc1(pooled)
        logits = self.fc2(torch.relu(self.bn1(hidden) if self.bn1 else hidden))
        if self.radix == 1:
            return torch.sigmoid(logits).unsqueeze(1)
        batch = logits.shape[0]
        # fc2's channels run over cardinal groups, then splits, then the channels of a group.
        by_group = logits.view(batch, self.groups, self.radix, -1).transpose(1, 2)
        return torch.softmax(by_group, dim=1).reshape(batch, self.radix, -1, 1, 1)
