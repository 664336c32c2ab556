"""The process from which the runs of a sweep are forked."""

import pytest

from qllm_exp.runs import versions
from qllm_exp.sweep import fork_server


def test_workers_record_the_source_as_the_fork_server_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.software.cache_clear()
    fork_server._import_what_runs_need()
    imported = versions.software()["source"]
    monkeypatch.setattr(versions, "training_files", list)  # the files are edited while the sweep is running
    assert versions.software()["source"] == imported
