"""The command `cancel`."""

import errno
import os
from pathlib import Path

import pytest
from run_folders import make_unfinished_run, run_config

from qllm_exp.cluster.cancel import main


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run = make_unfinished_run(tmp_path, run_config("vdn"), "new")
    monkeypatch.setattr(Path, "touch", full)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: Cannot write {run / 'stop'}: No space left on device.")
