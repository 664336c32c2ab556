"""The agents' network of deep multi-agent Q-learning: Linear, ReLU, GRU, Linear (as in QMIX, Rashid et al. 2018).

Shapes: T steps, R rows (one agent of one episode each), I inputs, H hidden units, A actions; M steps of all rows together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.networks import gru_kernel


class RecurrentAgent(nn.Module):
    """Individual Qs of each row from its history of inputs; all rows share the parameters.

    On the CPU in float32 it runs the compiled kernel where that could be built (see gru_kernel.py), otherwise torch's own
    operations. The two agree up to rounding. The compiled kernel gives a row the same bits in `step` and `unroll`, and in
    every call.

    Args:
        n_inputs: Number of inputs I.
        n_actions: Number of outputs A.
        hidden: Hidden units H.
        layer_norm: Whether the first layer's outputs are normalised before the ReLU.
    """

    def __init__(self, n_inputs: int, n_actions: int, hidden: int, layer_norm: bool = False) -> None:
        super().__init__()
        self.fc_in = nn.Linear(n_inputs, hidden)
        self.norm = nn.LayerNorm(hidden) if layer_norm else nn.Identity()
        self.gru = nn.GRUCell(hidden, hidden)
        self.fc_out = nn.Linear(hidden, n_actions)

    def initial_hidden(self, rows: int, device: torch.device | str) -> Tensor:
        """Hidden state [R, H] before the first step of an episode: zeros."""
        return torch.zeros(rows, self.gru.hidden_size, dtype=self.fc_in.weight.dtype, device=device)

    @torch.no_grad()
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step for acting, without gradients.

        Args:
            inputs: [R, I].
            hidden: [R, H].

        Returns:
            Individual Qs [R, A] and the next hidden state [R, H].
        """
        if self._uses_kernel(inputs):
            return gru_kernel.step(inputs, hidden, self._kernel_parameters())
        states, next_hidden = self._run_gru(self._features(inputs)[None], hidden)
        return self.fc_out(states[0]), next_hidden

    def unroll(self, inputs: Tensor) -> Tensor:
        """Individual Qs [T, R, A] along whole sequences [T, R, I] from a zero hidden state, differentiable."""
        if self._uses_kernel(inputs):
            steps, rows = inputs.shape[:2]
            return self.unroll_packed(inputs.flatten(0, 1), torch.full((steps,), rows)).view(steps, rows, -1)
        states, _ = self._run_gru(self._features(inputs), self.initial_hidden(inputs.shape[1], inputs.device))
        q: Tensor = self.fc_out(states)
        return q

    def unroll_packed(self, inputs: Tensor, sizes: Tensor) -> Tensor:
        """`unroll` of sequences of different lengths, packed as in packing.py.

        Args:
            inputs: [M, I].
            sizes: Number of rows that have each step, [T] int64 on the CPU, not increasing.

        Returns:
            [M, A].
        """
        if self._uses_kernel(inputs):
            return gru_kernel.unroll(inputs, sizes, self._kernel_parameters())
        hidden = self.initial_hidden(int(sizes[0]), inputs.device)[None]
        states, _ = torch.gru(
            self._features(inputs), sizes, hidden, self._gru_parameters(), True, 1, 0.0, self.training, False
        )
        q: Tensor = self.fc_out(states)
        return q

    def _features(self, inputs: Tensor) -> Tensor:
        """Outputs [..., H] of the first layer, after normalisation if there is one and ReLU, of inputs [..., I]."""
        return F.relu(self.norm(self.fc_in(inputs)))

    def _uses_kernel(self, inputs: Tensor) -> bool:
        """Whether the compiled kernel can handle this call. The kernel does not compute gradients of the inputs."""
        return (
            inputs.device.type == "cpu"
            and inputs.dtype == self.fc_in.weight.dtype == torch.float32
            and inputs.numel() > 0
            and not (inputs.requires_grad and torch.is_grad_enabled())
            and gru_kernel.available()
        )

    def _kernel_parameters(self) -> list[Tensor]:
        """All parameters in the order that the compiled kernel expects."""
        first, last = self.fc_in, self.fc_out
        parameters = [first.weight, first.bias, *self._gru_parameters(), last.weight, last.bias]
        if isinstance(self.norm, nn.LayerNorm):
            parameters += [self.norm.weight, self.norm.bias]
        return parameters

    def _gru_parameters(self) -> list[Tensor]:
        cell = self.gru
        return [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]

    def _run_gru(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run the cell along x [T, R, H] in one call (cuDNN on CUDA).

        Returns:
            Hidden states [T, R, H] after each step, and the last of them [R, H].
        """
        if x.is_cuda:
            self._flatten_parameters()
        states, last = torch.gru(x, hidden[None], self._gru_parameters(), True, 1, 0.0, self.training, False, False)
        return states, last[0]

    def _flatten_parameters(self) -> None:
        """Lay out the cell's weights in one block of memory, as cuDNN expects, unless they already are."""
        weight_ih, weight_hh = self.gru.weight_ih, self.gru.weight_hh
        if weight_hh.data_ptr() == weight_ih.data_ptr() + weight_ih.numel() * weight_ih.element_size():
            return
        layer = nn.GRU(self.gru.input_size, self.gru.hidden_size, device="meta")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(layer, f"{name}_l0", getattr(self.gru, name))
        layer.flatten_parameters()
