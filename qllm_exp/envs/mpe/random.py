"""A private random stream for a simulator that draws from torch's global generators."""

from typing import Any

import torch
from torch import Tensor

from qllm_exp.errors import UserError


class RandomStream:
    """A private random stream that is swapped into torch's global generators.

    Inside `with stream:` the global generators of the CPU and of the device continue this stream. Afterwards they are
    as if nothing had been drawn. VMAS's scenarios draw neither from numpy nor from `random`.

    Args:
        seed: seed of the stream.
        device: device of the simulator.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generators = {"cpu": torch.default_generator}
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # creates the default generators
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators["cuda"] = torch.cuda.default_generators[index]
        self._outer_states: dict[str, Tensor] = {}
        self._stream_states: dict[str, Tensor] = {}
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restart the stream."""
        self._stream_states = {
            name: torch.Generator(generator.device).manual_seed(seed).get_state()
            for name, generator in self._generators.items()
        }

    def __enter__(self) -> None:
        """Swap the stream into the global generators."""
        for name, generator in self._generators.items():
            self._outer_states[name] = generator.get_state()
            generator.set_state(self._stream_states[name])

    def __exit__(self, *_: object) -> None:
        """Give the global generators their former states back."""
        for name, generator in self._generators.items():
            self._stream_states[name] = generator.get_state()
            generator.set_state(self._outer_states[name])

    def state_dict(self) -> dict[str, Any]:
        """State of the stream by kind of device: 'cpu' and, where the simulator uses it, 'cuda'."""
        return {name: state.clone() for name, state in self._stream_states.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the stream from a `state_dict`.

        Args:
            saved: what `state_dict` returned.

        Raises:
            UserError: the state was saved on another kind of device.
        """
        missing = set(self._stream_states) - set(saved)
        if missing:
            raise UserError(
                f"env=mpe: the saved random state has no stream for {', '.join(sorted(missing))}: it was saved on "
                "another kind of device. Resume on the kind of device that the run started on."
            )
        self._stream_states = {name: saved[name].cpu().clone() for name in self._stream_states}
