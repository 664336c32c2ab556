"""Independent seeds for the parts of a run, derived from the seed of the run."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """Derive the seed of one part of a run, equal on every machine.

    Args:
        seed: Seed of the run.
        purpose: Name of the part, e.g. "evaluation", 3.

    Returns:
        A seed of 63 bits.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
