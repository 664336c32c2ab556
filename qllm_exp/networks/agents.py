"""Networks of a team: recurrent or feed-forward, shared by all agents or separate for each agent.

Shapes: T steps, N environment copies or episodes, n agents, R rows (one agent of one episode each), I inputs, O outputs,
H hidden units; M steps of all rows or episodes together.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qllm_exp.config.schema import TrainConfig
from qllm_exp.networks.packing import Packing
from qllm_exp.networks.recurrent import RecurrentAgent


class FeedForwardAgent(nn.Module):
    """Network without memory: Linear, ReLU, Linear, ReLU, Linear. Its hidden state is empty.

    Args:
        n_inputs: Number of inputs I.
        n_outputs: Number of outputs O.
        hidden: Width of both hidden layers.
        layer_norm: Whether the outputs of both hidden layers are normalised before the ReLU.
    """

    def __init__(self, n_inputs: int, n_outputs: int, hidden: int, layer_norm: bool = False) -> None:
        super().__init__()
        self.fc_in = nn.Linear(n_inputs, hidden)
        self.fc_hidden = nn.Linear(hidden, hidden)
        self.fc_out = nn.Linear(hidden, n_outputs)
        self.norm_in, self.norm_hidden = (nn.LayerNorm(hidden) if layer_norm else nn.Identity() for _ in range(2))

    def initial_hidden(self, rows: int, device: torch.device | str) -> Tensor:
        """Empty hidden state [R, 0]."""
        return torch.zeros(rows, 0, dtype=self.fc_in.weight.dtype, device=device)

    @torch.no_grad()
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step for acting, without gradients.

        Args:
            inputs: [R, I].
            hidden: Empty hidden state [R, 0].

        Returns:
            Outputs [R, O] and the unchanged hidden state.
        """
        return self.unroll(inputs), hidden

    def unroll(self, inputs: Tensor) -> Tensor:
        """Outputs [..., O] of inputs [..., I], differentiable."""
        first = F.relu(self.norm_in(self.fc_in(inputs)))
        outputs: Tensor = self.fc_out(F.relu(self.norm_hidden(self.fc_hidden(first))))
        return outputs

    @torch.no_grad()
    def outputs_and_gradient(self, inputs: Tensor, output_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """Outputs of few rows; also writes the parameters' gradients, without autograd, whose overhead dominates for
        few rows.

        For a network without layer normalisation.

        Args:
            inputs: [R, I].
            output_gradient: Gradient [R, O] of a loss, from the outputs [R, O].

        Returns:
            [R, O].
        """
        first = torch.relu_(self.fc_in(inputs))
        second = torch.relu_(self.fc_hidden(first))
        outputs: Tensor = self.fc_out(second)
        gradient = output_gradient(outputs)
        for layer, layer_inputs in ((self.fc_out, second), (self.fc_hidden, first), (self.fc_in, inputs)):
            torch.mm(gradient.T, layer_inputs, out=layer.weight.grad)
            torch.sum(gradient, 0, out=layer.bias.grad)
            if layer is not self.fc_in:
                gradient = torch.mm(gradient, layer.weight).mul_(layer_inputs > 0)
        return outputs

    def unroll_packed(self, inputs: Tensor, sizes: Tensor) -> Tensor:
        """Outputs [M, O] of packed inputs [M, I]; the number of rows that have each step does not matter."""
        return self.unroll(inputs)


class TeamNetwork(nn.Module):
    """Outputs of every agent from its own inputs.

    Args:
        n_agents: Number of agents n.
        n_inputs: Inputs I of each agent.
        n_outputs: Outputs O of each agent.
        train: The `train` group: kind and width of the network, and whether the agents share its parameters.
        layer_norm: Whether hidden layers are normalised before each ReLU.
    """

    def __init__(
        self, n_agents: int, n_inputs: int, n_outputs: int, train: TrainConfig, layer_norm: bool = False
    ) -> None:
        super().__init__()
        network_class = RecurrentAgent if train.network == "gru" else FeedForwardAgent
        count = 1 if train.share_parameters else n_agents
        self.n_agents = n_agents
        self.members = nn.ModuleList(network_class(n_inputs, n_outputs, train.hidden, layer_norm) for _ in range(count))

    def initial_hidden(self, num_envs: int, device: torch.device | str) -> Tensor:
        """Hidden states [N, n, H] before the first step of an episode."""
        hidden = self._networks()[0].initial_hidden(num_envs * self.n_agents, device)
        return hidden.view(num_envs, self.n_agents, -1)

    @torch.no_grad()
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step for acting, without gradients.

        Args:
            inputs: [N, n, I].
            hidden: [N, n, H].

        Returns:
            Outputs [N, n, O] and the next hidden states [N, n, H].
        """
        networks = self._networks()
        if len(networks) == 1:
            leading = inputs.shape[:-1]
            outputs, next_hidden = networks[0].step(inputs.flatten(0, 1), hidden.flatten(0, 1))
            return outputs.view(*leading, -1), next_hidden.view(*leading, -1)
        results = [
            network.step(inputs[:, i].contiguous(), hidden[:, i].contiguous()) for i, network in enumerate(networks)
        ]
        all_outputs, all_hidden = zip(*results, strict=True)
        return torch.stack(all_outputs, 1), torch.stack(all_hidden, 1)

    def unroll(self, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Outputs along whole episodes, differentiable.

        Args:
            inputs: [T, N, n, I]; or packed, [1, M, n, I].
            packing: How the inputs were packed; None if they were not.

        Returns:
            [T, N, n, O]; or packed as the inputs are, [1, M, n, O].
        """
        networks = self._networks()
        if packing is not None and packing.index is not None:
            return self._unroll_packed(inputs[0], packing.sizes).unsqueeze(0)
        if len(networks) == 1:
            return networks[0].unroll(inputs.flatten(1, 2)).view(*inputs.shape[:-1], -1)
        outputs = [network.unroll(inputs[:, :, i].contiguous()) for i, network in enumerate(networks)]
        return torch.stack(outputs, 2)

    def _unroll_packed(self, inputs: Tensor, sizes: Tensor) -> Tensor:
        """Outputs [M, n, O] of packed inputs [M, n, I], with the number of episodes that have each step, [T] int64."""
        networks = self._networks()
        if len(networks) == 1:
            outputs = networks[0].unroll_packed(inputs.flatten(0, 1), sizes * self.n_agents)
            return outputs.view(*inputs.shape[:-1], -1)
        each = [network.unroll_packed(inputs[:, i].contiguous(), sizes) for i, network in enumerate(networks)]
        return torch.stack(each, 1)

    def _networks(self) -> list[RecurrentAgent | FeedForwardAgent]:
        """One shared network, or one per agent."""
        return list(self.members)  # type: ignore[arg-type]  # nn.ModuleList does not know the type of its modules
