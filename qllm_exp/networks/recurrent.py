"""The agents' network of deep multi-agent Q-learning: Linear and ReLU, a GRU, Linear (as in QMIX, Rashid et al. 2018).

Shapes: T steps, R rows (each one agent of one episode), I inputs, H hidden units, A actions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.networks import gru_kernel


class RecurrentAgent(nn.Module):
    """Individual Q of each row from its history of inputs, with parameters that all rows share.

    On CPU in float32 it runs compiled code where that could be built (see `native`), else torch's own operations. The
    two agree up to rounding. The compiled code gives a row the same bits in `step` and `unroll`, and in every call.
    """

    def __init__(self, n_inputs: int, n_actions: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(n_inputs, hidden)
        self.gru = nn.GRUCell(hidden, hidden)
        self.fc_out = nn.Linear(hidden, n_actions)

    def initial_hidden(self, rows: int, device: torch.device | str) -> Tensor:
        """Hidden state [R, H] before the first step of an episode: zeros."""
        return torch.zeros(rows, self.gru.hidden_size, dtype=self.fc_in.weight.dtype, device=device)

    @torch.no_grad()
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step for acting, without gradients: inputs [R, I], hidden [R, H] -> q [R, A], next hidden [R, H]."""
        if self._runs_natively(inputs):
            return gru_kernel.step(inputs, hidden, self._weights())
        x, last = self._sequence(F.relu(self.fc_in(inputs))[None], hidden)
        return self.fc_out(x[0]), last

    def unroll(self, inputs: Tensor) -> Tensor:
        """q [T, R, A] for whole sequences inputs [T, R, I] from the zero hidden state, differentiable."""
        if self._runs_natively(inputs):
            return gru_kernel.unroll(inputs, self._weights())
        x, _ = self._sequence(F.relu(self.fc_in(inputs)), self.initial_hidden(inputs.shape[1], inputs.device))
        q: Tensor = self.fc_out(x)
        return q

    def _runs_natively(self, inputs: Tensor) -> bool:
        """Whether the compiled code can do this call: it knows no gradient of the inputs."""
        return (
            inputs.device.type == "cpu"
            and inputs.dtype == self.fc_in.weight.dtype == torch.float32
            and inputs.numel() > 0
            and not (inputs.requires_grad and torch.is_grad_enabled())
            and gru_kernel.available()
        )

    def _weights(self) -> list[Tensor]:
        first, last = self.fc_in, self.fc_out
        return [first.weight, first.bias, *self._cell_weights(), last.weight, last.bias]

    def _cell_weights(self) -> list[Tensor]:
        cell = self.gru
        return [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]

    def _sequence(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [T, R, H] after each step of x [T, R, H], and the last of them, in one call (cuDNN on CUDA)."""
        if x.is_cuda:
            self._flatten()
        states, last = torch.gru(x, hidden[None], self._cell_weights(), True, 1, 0.0, self.training, False, False)
        return states, last[0]

    def _flatten(self) -> None:
        """Lay the cell's weights out in one block of memory, as cuDNN wants them, unless they are already."""
        weight_ih, weight_hh = self.gru.weight_ih, self.gru.weight_hh
        if weight_hh.data_ptr() == weight_ih.data_ptr() + weight_ih.numel() * weight_ih.element_size():
            return
        layer = nn.GRU(self.gru.input_size, self.gru.hidden_size, device="meta")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(layer, f"{name}_l0", getattr(self.gru, name))
        layer.flatten_parameters()
