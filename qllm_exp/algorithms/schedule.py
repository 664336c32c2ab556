"""What changes with the environment steps of a run."""


def linear(start: float, end: float, steps: int, env_step: int) -> float:
    """`start` at the first step, `end` from `steps` on, and on the line between them before."""
    return start + (end - start) * min(1.0, env_step / steps)
