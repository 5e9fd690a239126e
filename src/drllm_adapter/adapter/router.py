"""The router: windowed pooling of the prompt's hidden states and a bottleneck MLP (Dr.LLM, section 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..decisions import EXECUTE


def window_shares(used: Tensor, num_windows: int) -> Tensor:
    """`[batch, num_windows]` float32: 1 / used for each of the `used` `[batch]` windows of a row, zero for the rest."""
    holds = torch.arange(num_windows, device=used.device) < used[:, None]
    return holds.float() / used.clamp(min=1)[:, None]


@dataclass(frozen=True)
class Windows:
    """How each row's prompt is cut into windows.

    weights: `[batch, windows, tokens]` float32, row-stochastic over the tokens of a window, zero elsewhere.
    padding: `[batch, tokens]` bool, true where a token is not part of the prompt; None when there is no such token.
    used: `[batch]` int64, how many windows hold tokens (fewer than asked for when the prompt is shorter).
    shares: `[batch, windows]` float32, the weight of each window in a router's answer.
    """

    weights: Tensor
    padding: Tensor | None
    used: Tensor
    shares: Tensor

    @classmethod
    def cut(cls, prompt: Tensor, num_windows: int) -> "Windows":
        """Cut the prompt tokens, `prompt` `[batch, tokens]` bool, into contiguous windows that cover all of them.

        Window sizes differ by one token at most, and neither side nor amount of padding matters.
        """
        length = prompt.sum(dim=1, keepdim=True)
        used = length.clamp(max=num_windows)
        rank = prompt.cumsum(dim=1) - 1
        window = (rank * used).div(length.clamp(min=1), rounding_mode="floor")
        member = (window[:, None, :] == torch.arange(num_windows, device=prompt.device)[:, None]) & prompt[:, None, :]
        weights = member.float() / member.sum(dim=2, keepdim=True).clamp(min=1)
        used = used.squeeze(1)
        padding = None if bool(prompt.all()) else ~prompt
        return cls(weights=weights, padding=padding, used=used, shares=window_shares(used, num_windows))

    def mean(self, hidden_states: Tensor, rms_norm: bool = False) -> Tensor:
        """Mean of each window in float32: `[batch, tokens, width]` to `[batch, windows, width]`.

        Args:
            rms_norm: divide each token's states by their root mean square first. In trained models the first token's
                are hundreds of times larger than the others', in a few channels, and are all that a plain mean shows.
        """
        states = hidden_states.float()
        if rms_norm:
            states = F.rms_norm(states, states.shape[-1:], eps=1e-6)
        if self.padding is not None:
            # Zeroed rather than only weighted by zero: states at padding may be infinite or NaN.
            states = torch.where(self.padding[:, :, None], 0.0, states)
        with torch.autocast(states.device.type, enabled=False):
            return torch.bmm(self.weights, states)


class Router(nn.Module):
    """Linear(width, bottleneck) - GELU(tanh) - Linear(bottleneck, 3), averaged over the windows, in float32.

    A fresh router answers "execute" whatever it reads: its last layer is zero but for the bias of that class.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, width, dtype=torch.float32)
        self.up = nn.Linear(width, 3, dtype=torch.float32)
        if self.down.weight.device.type != "meta":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make the router the identity: every block executes."""
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        self.up.bias.copy_(F.one_hot(torch.tensor(EXECUTE), 3))

    def forward(self, means: Tensor, shares: Tensor) -> Tensor:
        """Logits over skip, execute, repeat.

        Args:
            means: `[batch, windows, width]` float32.
            shares: `[batch, windows]` float32, the weight of each window: see `window_shares`.

        Returns:
            `[batch, 3]` float32; zeros for a row without any prompt token.
        """
        with torch.autocast(means.device.type, enabled=False):
            logits = self.up(F.gelu(self.down(means), approximate="tanh"))
            return torch.bmm(shares[:, None], logits)[:, 0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `model.half()` or `model.to(torch.bfloat16)` move the base to another precision; the routers only follow to
        # another device, since their arithmetic is float32 by promise.
        def keep_float32(tensor: Tensor) -> Tensor:
            try:
                moved = fn(tensor)
            except NotImplementedError:
                if tensor.device.type != "meta":
                    raise
                return tensor  # weights that are still to be loaded have nothing to move
            if moved.dtype == tensor.dtype or not tensor.is_floating_point():
                return moved
            return tensor.to(moved.device) if moved.device.type != "meta" else moved.to(tensor.dtype)

        return super()._apply(keep_float32, recurse)
