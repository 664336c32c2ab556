"""Verdicts on functions, kept in a folder: a verification takes seconds, since its sandbox imports torch."""

import hashlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

from qllm_exp.envs import TeamEnv
from qllm_exp.generation.verify import Accepted, Refused, verify_all


class Verdicts:
    """`verify_all`, which verifies the same sources for the same task once, in whichever process.

    Args:
        folder: where verdicts are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, sources: Sequence[str], env: TeamEnv, enforce: bool, timeout_s: float = 60
    ) -> list[Accepted | Refused]:
        key = repr((list(sources), env.task, enforce, timeout_s))
        path = self._folder / hashlib.sha256(key.encode()).hexdigest()
        if not path.exists():
            written = path.with_suffix(f".{os.getpid()}")
            written.write_bytes(pickle.dumps(verify_all(sources, env, enforce, timeout_s)))
            written.rename(path)
        verdicts: list[Accepted | Refused] = pickle.loads(path.read_bytes())
        return verdicts
