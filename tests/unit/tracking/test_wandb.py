"""What is uploaded about a run, and the checks before it, without the Weights & Biases client."""

import json
import os
from pathlib import Path

import pytest
from run_folders import run_config

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.results.__main__ import main
from qllm_exp.runs.metrics import MetricsReader
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import run_folders
from qllm_exp.runs.versions import resumed_record
from qllm_exp.sweep import prepare
from qllm_exp.tracking import sidecar, wandb_login, wandb_payload


@pytest.fixture(autouse=True)
def no_credentials(tmp_path, monkeypatch):
    """An empty home and empty caches."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget_login()
    yield
    forget_login()


def forget_login():
    wandb_login.logged_in.cache_clear()
    wandb_login.server.cache_clear()
    wandb_login._log_once.cache_clear()


def error_of(*tags, **tracking):
    with pytest.raises(UserError) as caught:
        wandb_login.check(schema.WandbConfig(**tracking), tags)
    return str(caught.value)


def test_credentials_are_needed_online_only():
    assert "https://api.wandb.ai" in error_of()
    for mode in ("offline", "disabled"):
        wandb_login.check(schema.WandbConfig(mode=mode), ())


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_a_key_or_a_token_in_the_environment_is_enough(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    wandb_login.check(schema.WandbConfig(), ())


@pytest.mark.parametrize("place", [".netrc", "_netrc", "elsewhere"])
def test_a_netrc_entry_is_for_its_own_server(tmp_path, monkeypatch, place):
    (tmp_path / place).write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / place).chmod(0o600)
    if place == "elsewhere":
        monkeypatch.setenv("NETRC", str(tmp_path / place))
    wandb_login.check(schema.WandbConfig(), ())
    forget_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert "no W&B credentials for https://wandb.example.org are stored" in error_of()


def test_the_settings_of_wandb_login_name_the_server(tmp_path):
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert "no W&B credentials for https://wandb.example.org are stored" in error_of()
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password x\n")
    wandb_login.logged_in.cache_clear()
    wandb_login.check(schema.WandbConfig(), ())


@pytest.mark.parametrize(
    ("mode", "variables", "expected"),
    [
        ("online", {}, "online"),
        ("online", {"WANDB_MODE": "online"}, "online"),
        ("online", {"WANDB_MODE": ""}, "online"),
        ("online", {"WANDB_DISABLED": "false"}, "online"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "Disabled"}, "disabled"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_MODE": "offline", "WANDB_DISABLED": "1"}, "disabled"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("disabled", {"WANDB_MODE": "offline"}, "disabled"),
    ],
)
def test_the_clients_variables_are_obeyed_where_they_upload_less(tmp_path, monkeypatch, mode, variables, expected):
    """At planning, without credentials unless they are needed, and by a run that is resumed elsewhere."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracking = schema.WandbConfig(mode=mode)
    assert wandb_login.obey_environment(tracking).mode == expected
    if expected == "online":
        monkeypatch.setenv("WANDB_API_KEY", "x")
    checked = prepare.check(run_config("vdn", tracking=tracking, device="cpu"))
    assert checked.tracking.mode == mode  # a run that is resumed without the variable uploads
    directory = RunDirectory(tmp_path / "run")
    directory.create(run_config("vdn", tracking=tracking), None)
    started = []
    monkeypatch.setattr(sidecar.subprocess, "Popen", lambda *arguments, **options: started.append(arguments))
    sidecar.Sidecar(directory, tracking).start()
    assert len(started) == (expected == "online")


def test_what_the_variables_change_is_logged_once_and_an_unknown_mode_is_refused(monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with caplog.at_level("INFO"):
        for _ in range(10):
            wandb_login.obey_environment(schema.WandbConfig())
    (message,) = caplog.messages
    assert "WANDB_MODE=offline is set" in message and "sync" in message
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"WANDB_MODE='ofline' is not supported\. Did you mean 'offline'"):
        wandb_login.obey_environment(schema.WandbConfig())


def test_a_sweep_looks_for_credentials_once(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    for _ in range(100):
        wandb_login.check(schema.WandbConfig(), ())
    assert wandb_login.logged_in.cache_info().misses == 1


def test_names_that_the_service_rejects_are_rejected_before_training():
    assert "tracking.project='a/b'" in error_of(mode="offline", project="a/b")
    assert "has 65 characters" in error_of("x" * 65, mode="offline")


def test_the_client_gets_none_of_the_environment_but_its_own_login(monkeypatch):
    for name in ("OPENAI_API_KEY", "WANDB_NOTES", "WANDB_RUN_ID", "SLURM_JOB_ID", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "no")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("https_proxy", "proxy")
    variables = sidecar.environment()
    assert "no" not in variables.values()
    assert (variables["WANDB_API_KEY"], variables["https_proxy"]) == ("key", "proxy")


def test_each_complete_row_is_read_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = MetricsReader(path)
    assert rows.read_new() == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert rows.read_new() == [{"a": 1}, {"a": 2}] and rows.read_new() == []
    with path.open("a") as file:
        file.write(": 3}\n")
    assert rows.read_new() == [{"a": 3}] and rows.count == 3


def test_kinds_of_rows_have_separate_names():
    row = {"kind": "evaluation", "env_step": 5, "return_mean": 1.0}
    assert wandb_payload.history_row(row, "tasks/lbf/8x8") == {
        "env_step": 5,
        "evaluation/return_mean": 1.0,
        "tasks/lbf/8x8/return_mean": 1.0,  # for a dashboard
    }


def test_the_configuration_is_flat_and_contains_no_path_and_no_address(tmp_path):
    llm = OnlineConfig(name="openai", api_base="http://user:secret@host", key_env="MY_KEY")
    run = schema.RunConfig(llm=llm, mixer=TfcafConfig(file="/home/me/f.json"), dir="/home/me/runs", device="cuda:1")
    for tfcaf in ('{"hash": "0123456789abcdef"}', None):
        directory = RunDirectory(tmp_path / str(tfcaf is None))
        directory.create(run, tfcaf)
        before = {"host": "secret", "torch": "2.6.0", "kernel": "torch"}
        record = resumed_record(before, before | {"kernel": "native 0123456789", "system": "secret"}, 500)
        directory.versions.write_text(json.dumps(record))
        flat = wandb_payload.flat_config(directory)
        text = json.dumps(flat)
        assert not [word for word in ("secret", "MY_KEY", "/home/me") if word in text]
        assert not [value for value in flat.values() if isinstance(value, dict)]
        assert (flat["env"], flat["env.task"], flat["device"]) == ("lbf", "8x8-2p-2f-coop-2s", "cuda")
        assert (flat["versions.kernel"], flat["versions.segments"]) == ("native 0123456789", record["segments"])
        assert (flat.get("function"), "llm.model" in flat) == (("01234567", True) if tfcaf else (None, False))


def test_an_id_depends_on_the_name_of_the_folder_only(monkeypatch, tmp_path):
    absolute = wandb_payload.run_id(RunDirectory(tmp_path / "name"))
    monkeypatch.chdir(tmp_path)
    assert wandb_payload.run_id(RunDirectory(Path("name"))) == absolute
    assert wandb_payload.run_id(RunDirectory(Path("/x/name"))) == absolute
    assert wandb_payload.run_id(RunDirectory(Path("other"))) != absolute and len(absolute) == 16


def test_a_folder_is_one_of_a_run_of_a_sweep_or_of_several_runs(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "sweep").mkdir()
    record = {"runs": ["a", "c", "not_yet"], "launcher": {"name": "local"}, "max_failures": 0}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(record))
    names = [[path.name for path in run_folders(tmp_path / name)] for name in (".", "b", "sweep")]
    assert names == [["a", "b", "c", "not_yet"], ["b"], ["a", "c", "not_yet"]]
    with pytest.raises(UserError, match=r"is not a folder\..* Give a run directory"):
        run_folders(tmp_path / "a" / "nothing")
    (tmp_path / "sweep" / "sweep.json").write_text("{")
    assert [path.name for path in run_folders(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"sweep\.json cannot be read"):
        run_folders(tmp_path / "sweep")


def test_sync_without_a_login_is_one_clear_error(tmp_path, capsys):
    RunDirectory(tmp_path / "run").create(schema.RunConfig(), None)
    assert main(["sync", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "`wandb login`" in message
