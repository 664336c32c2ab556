"""TODO."""

from collections.abc import Callable
from functools import cache

from qllm_exp.errors import UserError


def resolve_device(device: str) -> str:
    """'auto' becomes 'cuda' where there is a GPU, else 'cpu'. UserError for a GPU that is not there."""
    count = _gpu_count()
    if device == "auto":
        return "cuda" if count else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        raise UserError(f"device={device}: PyTorch sees {count} GPUs here. Use device=auto or device=cpu.")
    return device


@cache
def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


DeviceResolver = Callable[[str], str]  # from a device as configured to that of the machine that a run will be on
