"""What is told about a run, and to whom, before the client of Weights & Biases is ever imported."""

import json
import os
from pathlib import Path

import pytest

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.results.__main__ import main
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import run_folders
from qllm_exp.tracking import sidecar, wandb_login, wandb_payload


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """An empty home, and nothing that is known from before."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for known in (wandb_login.logged_in, wandb_login.server):
        known.cache_clear()
    yield
    for known in (wandb_login.logged_in, wandb_login.server):
        known.cache_clear()


def refused(*tags, **tracking):
    with pytest.raises(UserError) as caught:
        wandb_login.check(schema.WandbConfig(**tracking), tags)
    return str(caught.value)


def test_nobody_is_logged_in_to_begin_with_and_nobody_need_be_offline():
    assert "https://api.wandb.ai" in refused()
    for mode in ("offline", "disabled"):
        wandb_login.check(schema.WandbConfig(mode=mode), ())


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_a_key_or_a_token_in_the_environment_is_a_login(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    wandb_login.check(schema.WandbConfig(), ())


@pytest.mark.parametrize("place", [".netrc", "_netrc", "elsewhere"])
def test_a_netrc_entry_is_a_login_for_its_own_server(tmp_path, monkeypatch, place):
    (tmp_path / place).write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / place).chmod(0o600)
    if place == "elsewhere":
        monkeypatch.setenv("NETRC", str(tmp_path / place))
    wandb_login.check(schema.WandbConfig(), ())
    for known in (wandb_login.logged_in, wandb_login.server):
        known.cache_clear()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert "https://wandb.example.org here" in refused()


def test_the_server_that_somebody_logged_in_to_is_the_one_that_counts(tmp_path):
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert "https://wandb.example.org here" in refused()
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password x\n")
    wandb_login.logged_in.cache_clear()
    wandb_login.check(schema.WandbConfig(), ())


def test_a_sweep_asks_once(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    for _ in range(100):
        wandb_login.check(schema.WandbConfig(), ())
    assert wandb_login.logged_in.cache_info().misses == 1


def test_names_that_the_service_refuses_are_refused_before_training():
    assert "tracking.project='a/b'" in refused(mode="offline", project="a/b")
    assert "has 65 characters" in refused("x" * 65, mode="offline")


def test_the_client_sees_none_of_the_environment_but_its_own_login(monkeypatch):
    for name in ("OPENAI_API_KEY", "WANDB_NOTES", "WANDB_RUN_ID", "SLURM_JOB_ID", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "no")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("https_proxy", "proxy")
    given = sidecar.environment()
    assert "no" not in given.values() and (given["WANDB_API_KEY"], given["https_proxy"]) == ("key", "proxy")


def test_rows_come_once_each_and_only_when_they_are_complete(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = wandb_payload.Rows(path)
    assert rows.new() == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert rows.new() == [{"a": 1}, {"a": 2}] and rows.new() == []
    with path.open("a") as file:
        file.write(": 3}\n")
    assert rows.new() == [{"a": 3}] and rows.count == 3


def test_kinds_of_rows_have_names_of_their_own():
    row = {"kind": "evaluation", "env_step": 5, "return_mean": 1.0}
    again = {"tasks/lbf/8x8/return_mean": 1.0}  # for a dashboard
    assert wandb_payload.logged(row, "tasks/lbf/8x8") == {"env_step": 5, "evaluation/return_mean": 1.0, **again}


def test_the_configuration_is_flat_and_tells_no_path_and_no_address(tmp_path):
    llm = OnlineConfig(name="openai", api_base="http://user:secret@host", key_env="MY_KEY")
    run = schema.RunConfig(llm=llm, mixer=TfcafConfig(file="/home/me/f.json"), dir="/home/me/runs", device="cuda:1")
    for tfcaf in ('{"hash": "0123456789abcdef"}', None):
        directory = RunDirectory(tmp_path / str(tfcaf is None))
        directory.create(run, tfcaf)
        flat = wandb_payload.flat_config(directory)
        text = json.dumps(flat)
        assert not [word for word in ("secret", "MY_KEY", "/home/me") if word in text]
        assert not [value for value in flat.values() if isinstance(value, dict)]
        assert (flat["env"], flat["env.task"], flat["device"]) == ("lbf", "8x8-2p-2f-coop-2s", "cuda")
        assert (flat.get("function"), "llm.model" in flat) == (("01234567", True) if tfcaf else (None, False))


def test_an_id_is_made_of_the_folders_name_wherever_it_lies(monkeypatch, tmp_path):
    one = wandb_payload.run_id(RunDirectory(tmp_path / "name"))
    monkeypatch.chdir(tmp_path)
    assert (
        one == wandb_payload.run_id(RunDirectory(Path("name"))) == wandb_payload.run_id(RunDirectory(Path("/x/name")))
    )
    assert one != wandb_payload.run_id(RunDirectory(Path("other"))) and len(one) == 16


def test_folders_of_runs_of_sweeps_and_of_several_runs_are_understood(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "sweep").mkdir()
    record = {"runs": ["a", "c", "not_yet"], "launcher": {"name": "local"}, "max_failures": 0}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(record))
    names = [[path.name for path in run_folders(tmp_path / one)] for one in (".", "b", "sweep")]
    assert names == [["a", "b", "c", "not_yet"], ["b"], ["a", "c", "not_yet"]]
    with pytest.raises(UserError, match=r"is no folder\. Give the folder of a run"):
        run_folders(tmp_path / "a" / "nothing")
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    assert [path.name for path in run_folders(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"sweep\.json cannot be read"):
        run_folders(tmp_path / "sweep")


def test_sync_without_a_login_is_one_clear_error(tmp_path, capsys):
    RunDirectory(tmp_path / "run").create(schema.RunConfig(), None)
    assert main(["sync", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "`wandb login`" in said
