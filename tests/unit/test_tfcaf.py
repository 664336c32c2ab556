"""The command `tfcaf`: where `explain` writes, what `verify` says of a function for another state, what `search` refuses."""

from pathlib import Path
from typing import Any

import pytest
from report_pages import give_function
from run_folders import make_run, run_config

from qllm_exp import tfcaf
from qllm_exp.explain import explain, policy


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that `explain` was asked to write into; nothing is played or drawn."""
    written: list[Path] = []

    def record(function: Any, env: Any, folder: Path, *others: Any) -> list[Path]:
        assert function.state_kind == env.state_kind
        written.append(folder)
        return []

    monkeypatch.setattr(explain, "explain", record)
    monkeypatch.setattr(policy, "load_policy", lambda *arguments: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return written


def test_explain_writes_into_the_run_or_into_the_folder_that_is_named(tmp_path: Path, folders: list[Path]) -> None:
    run = make_run(tmp_path / "runs", run_config("tfcaf", task="climbing", env="matrix"), 1.0)
    give_function(run)
    file = str(run / "tfcaf.json")
    assert tfcaf.main(["explain", file]) == 0
    assert tfcaf.main(["explain", "matrix/climbing", "--policy", str(run)]) == 0
    assert tfcaf.main(["explain", file, "--output", str(tmp_path / "named")]) == 0
    assert folders == [run / "explain", run / "explain", tmp_path / "named"]


def test_explain_does_not_write_into_the_current_folder(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tfcaf.main(["explain", "matrix/climbing"]) == 2
    assert "matrix/climbing is not in a run folder, so name a folder" in capsys.readouterr().err
    assert folders == [] and list(Path.cwd().iterdir()) == []


def test_explain_opens_the_state_that_a_function_was_verified_for(tmp_path: Path, folders: list[Path]) -> None:
    (tmp_path / "mean.py").write_text(
        "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(1, keepdim=True)\n"
    )
    cache = f"tfcaf.cache={tmp_path / 'cache'}"
    assert tfcaf.main(["import", str(tmp_path / "mean.py"), "env=matrix", "env.state=observations", cache]) == 0
    (file,) = (tmp_path / "cache").glob("*.json")
    assert tfcaf.main(["explain", str(file), "--output", str(tmp_path / "named")]) == 0
    assert folders == [tmp_path / "named"]


SIXTEEN_PER_AGENT = """
def QLLMNetwork(agents_q: torch.Tensor, global_state: torch.Tensor) -> torch.Tensor:
    views = global_state.view(-1, 3, 16)
    near = 1.0 / (1.0 + views[:, :, 12:14].norm(dim=-1))
    return (agents_q * torch.softmax(near, dim=1)).sum(dim=1, keepdim=True)
"""


def test_verify_says_how_wide_the_states_are_to_a_function_for_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tag.py").write_text(SIXTEEN_PER_AGENT)
    command = ["verify", str(tmp_path / "tag.py"), "env=mpe", "env.task=simple_tag"]
    assert tfcaf.main(command) == 1
    assert capsys.readouterr().err.endswith(
        "global_state has 20 columns with env.state=features; it has 48 columns with env.state=observations, 16 for each of 3 "
        "agents\n"
    )
    assert tfcaf.main([*command, "env.state=observations"]) == 0
    assert capsys.readouterr().out == "accepted for mpe/simple_tag, IGM gate on: affine in the agents' Qs\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is not the directory of a search: it has no search.json"),
        (["env=mpe"], "so env=mpe cannot change it"),
        (["hydra/launcher=local", "hydra.launcher.n_jobs=2"], "is not the directory of a search"),
    ],
)
def test_resume_refuses_options_of_a_search_and_folders_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert tfcaf.main(["search", "--resume", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
