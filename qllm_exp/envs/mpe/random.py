"""A private stream of random numbers for a simulator that draws from torch's global generators."""

from typing import Any

import torch
from torch import Tensor

from qllm_exp.errors import UserError


class RandomStream:
    """Random numbers of one environment alone, though drawn from torch's global generators.

    Inside `with stream:` the global generators, of the CPU and of the device, hold this stream; outside of it they are
    as if nothing had been drawn. VMAS's scenarios draw neither from numpy nor from `random`.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generators = {"cpu": torch.default_generator}
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # the generators are made by it
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators["cuda"] = torch.cuda.default_generators[index]
        self._outer: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self._own = {
            name: torch.Generator(shared.device).manual_seed(seed).get_state()
            for name, shared in self._generators.items()
        }

    def __enter__(self) -> None:
        for name, shared in self._generators.items():
            self._outer[name] = shared.get_state()
            shared.set_state(self._own[name])

    def __exit__(self, *_: object) -> None:
        for name, shared in self._generators.items():
            self._own[name] = shared.get_state()
            shared.set_state(self._outer[name])

    def state_dict(self) -> dict[str, Any]:
        return {name: state.clone() for name, state in self._own.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        missing = set(self._own) - set(saved)
        if missing:
            raise UserError(
                f"env=mpe: the saved random state has no stream for {', '.join(sorted(missing))}: it was saved on "
                "another kind of device. Resume on the kind that the run started on."
            )
        self._own = {name: saved[name].cpu().clone() for name in self._own}
