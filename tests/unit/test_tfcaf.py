"""The command `tfcaf`: where `explain` writes, what `verify` says of a function for another state, what `search` refuses."""

from pathlib import Path
from typing import Any

import pytest
from report_pages import give_function
from run_folders import make_run, run_config

from qllm_exp import tfcaf
from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.explain import explain, policy
from qllm_exp.generation.provide import key_for
from qllm_exp.results import __main__ as results
from qllm_exp.search.procedure import search_path
from qllm_exp.search.search_directory import SearchDirectory
from qllm_exp.sweep.prepare import check


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
        (["env=mpe"], "hydra/launcher=... and its options, tfcaf.budget_usd=...)"),
        (["hydra/launcher=local", "hydra.launcher.n_jobs=2"], "is not the directory of a search"),
    ],
)
def test_resume_refuses_options_of_a_search_and_folders_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert tfcaf.main(["search", "--resume", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def begun(tmp_path: Path) -> SearchDirectory:
    """The directory of a search that has not written anything but its configuration."""
    options = [
        "env=lbf",
        "env.task=5x5-2p-1f",
        "env.num_envs=4",
        "mixer=tfcaf",
        "llm=folder",
        f"llm.path={tmp_path / 'llm'}",
    ]
    folders = [f"dir={tmp_path / 'runs'}", f"tfcaf.cache={tmp_path / 'cache'}"]
    run = check(compose_run([*options, *folders, "tfcaf.search.method=evolve", "tfcaf.budget_usd=1"]))
    directory = SearchDirectory(search_path(run))
    directory.create(run, key_for(run))
    return directory


def test_a_search_is_resumed_with_a_higher_budget_and_only_where_its_key_puts_it(
    begun: SearchDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets: list[float | None] = []

    def search(run: schema.RunConfig, launcher: Any) -> StoredFunction:
        budgets.append(run.tfcaf.budget_usd)
        raise UserError("stopped here")

    monkeypatch.setattr("qllm_exp.search.search", search)
    for words in ([], ["tfcaf.budget_usd=2.5"], ["tfcaf.budget_usd=null"]):
        assert tfcaf.main(["search", "--resume", str(begun.path), *words]) == 2
        assert "stopped here" in capsys.readouterr().err
    assert budgets == [1.0, 2.5, None]
    renamed = begun.path.rename(begun.path.with_name("renamed"))
    assert tfcaf.main(["search", "--resume", str(renamed)]) == 2
    assert f"renamed cannot be resumed: its configuration now belongs to {begun.path}" in capsys.readouterr().err
    assert len(budgets) == 3


def test_report_writes_the_page_of_a_search_into_its_directory_or_where_it_is_told(
    begun: SearchDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tfcaf.main(["report", str(begun.path)]) == 0
    assert capsys.readouterr().out.strip() == str(begun.path / "report.html")
    assert "No training has finished yet" in (begun.path / "report.html").read_text()
    assert tfcaf.main(["report", str(begun.path), "--no-credit", "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()
    assert tfcaf.main(["report", str(begun.path), "-o", "page.txt"]) == 2
    assert "a report is a .html file" in capsys.readouterr().err
    assert tfcaf.main(["report", str(tmp_path)]) == 2
    assert "is not the directory of a search: it has no search.json" in capsys.readouterr().err


def test_the_report_of_results_names_the_command_for_a_search(
    begun: SearchDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert results.main(["report", str(begun.path)]) == 2
    assert f"Type: python -m qllm_exp.tfcaf report {begun.path}" in capsys.readouterr().err
