"""Tracking with Weights & Biases: the unmodified client against a stand-in for the server on this machine."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import commands
import psutil
import pytest
from hydra import compose, initialize_config_dir
from loopback_wandb import LoopbackWandb
from tracked import SHORT, environment, sync

from qllm_exp.config.compose import CONF
from qllm_exp.config.load import load_run
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep.prepare import prepare
from qllm_exp.tracking.wandb_payload import TASK_PREFIX, UploadState, run_id

SECRET = "planted-secret-4711"
HELD = [*SHORT, "env.name=held_env", "train.checkpoint.every_s=0", "train.checkpoint.max_share=1"]


def create_run(folder: Path, *overrides: str) -> RunDirectory:
    """A run directory that is ready to start."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        ready = prepare(load_run(compose("config", [*overrides, f"dir={folder}"])))
    ready.directory.create(ready.config, ready.tfcaf)
    return ready.directory


def write_run(path: Path, count: int, state: str) -> RunDirectory:
    """A run directory without a run: with `count` rows and a state."""
    directory = RunDirectory(path)
    if not directory.config.exists():
        directory.create(create_run(path.parent / "template", *SHORT, "tracking.mode=offline").read_config(), None)
    table = [{"kind": "training", "env_step": 10 * i, "loss": i / 4} for i in range(count)]
    directory.metrics.write_text("".join(json.dumps(row) + "\n" for row in table))
    directory.set_status_from_outside(state)
    return directory


RUN = """
import sys
from qllm_exp.experiment import main
code = main(sys.argv[1:])
assert 'wandb' not in sys.modules
sys.exit(code)
"""


def start(directory: RunDirectory, server: LoopbackWandb, home: Path, **variables: str) -> commands.Command:
    """Start a run's process, which fails if it imports wandb."""
    return commands.start(["-c", RUN, directory.path], env=environment(server, home) | variables, cwd=home)


def run(directory: RunDirectory, server: LoopbackWandb, home: Path, **variables: str) -> str:
    process = start(directory, server, home, **variables)
    text = "".join(process.communicate(100))
    assert process.returncode == 0, text
    return text


def rows(directory: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in directory.metrics.read_text().splitlines()]


def metrics_rows(history: list[dict]) -> list[dict]:
    """Rows of the metrics file, from the server's history."""
    metrics = []
    for logged in history:
        logged = {key: value for key, value in logged.items() if not key.startswith(TASK_PREFIX)}
        (kind,) = {key.partition("/")[0] for key in logged if "/" in key}
        values = {key.partition("/")[2]: value for key, value in logged.items() if "/" in key}
        metrics.append({"kind": kind, "env_step": logged["env_step"], **values})
    return metrics


def without_wall_time(table: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in table]


def wait_for(condition, seconds=60.0):
    """The first true result of `condition`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def upload_processes(directory: RunDirectory) -> list[psutil.Process]:
    """Processes that upload this run: the sidecar, and the client's service."""
    of_run = [p for p in psutil.process_iter(["cmdline"]) if str(directory.path) in (p.info["cmdline"] or [])]
    sidecars = [p for p in of_run if "qllm_exp.tracking.wandb_upload" in p.info["cmdline"]]
    children: list[psutil.Process] = []
    for sidecar in sidecars:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            children += sidecar.children()
    return [*sidecars, *children]


def complete(server: LoopbackWandb, directory: RunDirectory) -> bool:
    """Whether the server's one run has every row once, in order."""
    (stored,) = (run for run in server.runs.values() if run.id == run_id(directory))
    assert [row["_step"] for row in stored.history] == list(range(len(rows(directory))))
    return without_wall_time(metrics_rows(stored.history)) == without_wall_time(rows(directory))


@pytest.fixture
def server():
    with LoopbackWandb() as loopback:
        yield loopback
        assert loopback.refused == []


@pytest.fixture
def home(tmp_path):
    """An empty home and working directory: a checkout with a password in the URL of its remote."""
    path = tmp_path / "home"
    path.mkdir()
    subprocess.run(["git", "init", "-q", str(path)], check=True)
    remote = f"https://user:{SECRET}@example.org/x.git"
    subprocess.run(["git", "-C", str(path), "remote", "add", "origin", remote], check=True)
    return path


def test_a_run_is_uploaded_with_everything_that_users_look_for(server, home, tmp_path):
    overrides = ["mixer=tfcaf", "sweep.name=figure_1", "sweep.tags=[paper]", "tracking.tags=[mine]", "seed=3"]
    directory = create_run(tmp_path / "r", *SHORT, *overrides)
    text = run(directory, server, home, OPENAI_API_KEY=SECRET, AWS_SECRET_ACCESS_KEY=SECRET, WANDB_NOTES=SECRET)
    assert f"W&B has all rows: {server.url}" in text
    (stored,) = server.runs.values()
    assert (stored.id, stored.name, stored.project) == (run_id(directory), directory.path.name, "p")
    assert (stored.group, stored.job_type, stored.tags) == ("figure_1", "q_learning/tfcaf", ["mine", "paper"])
    assert (stored.state, stored.exit_code) == ("finished", 0)
    flat = {"env": "matrix", "task": "climbing", "mixer": "tfcaf", "algorithm": "q_learning", "sweep": "figure_1"}
    assert stored.config.items() >= (flat | {"seed": 3, "train.hidden": 8, "env.num_envs": 16}).items()
    assert len(rows(directory)) > 8 and metrics_rows(stored.history) == rows(directory)
    assert [metric.get("2") for metric in stored.raw_config["_wandb"]["value"]["m"]] == [
        None,
        "*",
    ]  # plotted over env_step
    result = directory.result()
    assert all(stored.summary[key] == result[key] for key in ("final_return", "absolute_return", "updates"))

    (artifact,) = server.artifacts
    function = json.loads(directory.tfcaf.read_text())
    assert json.loads(artifact.files["tfcaf.json"]) == function
    assert artifact.files["function.py"].decode() == function["source"]
    assert artifact.metadata["verdict"] == function["verdict"]
    assert artifact.metadata["provenance.model"] == function["provenance"]["model"]
    assert (artifact.type, artifact.state, artifact.runs) == ("tfcaf", "COMMITTED", [stored.id])
    assert stored.config["function"] == function["hash"][:8] and artifact.name.endswith(function["hash"][:8])

    sent = "\n".join(server.received)
    assert "climbing" in sent and SECRET not in sent and server.key not in sent
    with_paths = [request for request in server.received if str(tmp_path) in request]
    assert all("-manifest" in request for request in with_paths), "only the manifest of an artifact contains paths"
    assert not (home / "wandb").exists() and not list(home.glob(".local/**/wandb"))
    assert {path.name for path in (directory.path / "wandb").iterdir()} == {".lock", "mirror.txt"}
    files = "\n".join(path.read_text() for path in (directory.path / "wandb").iterdir())
    assert server.key not in files and SECRET not in files

    script = (
        f"import json, wandb; run = wandb.Api().run('team/p/{stored.id}'); print(json.dumps(list(run.scan_history())))"
    )
    env = environment(server, home) | {"WANDB_CACHE_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}
    done = commands.run(["-c", script], env=env, cwd=home, check=True, imports="wandb")
    assert metrics_rows(json.loads(done.stdout)) == rows(directory)


def test_a_run_that_was_killed_and_resumed_is_one_run_with_every_row_once(server, home, tmp_path):
    directory = create_run(tmp_path / "r", *HELD)
    (home / "hold").touch()
    process = start(directory, server, home)
    wait_for(lambda: UploadState(directory).url)
    processes = upload_processes(directory)
    assert len(processes) == 2
    process.kill()
    process.wait()
    psutil.wait_procs(processes, timeout=31)
    assert not any(process.is_running() for process in processes)
    (stored,) = server.runs.values()
    before = len(stored.lines)
    assert stored.state == "preempted" and before > 0
    with open(directory.metrics, "a") as file:  # rows after the checkpoint are cut off and written again
        file.write(json.dumps(rows(directory)[-1]) + "\n")
    (home / "hold").unlink()
    run(directory, server, home)
    (stored,) = server.runs.values()
    assert (stored.starts, stored.state) == (2, "finished") and len(stored.lines) > before
    assert complete(server, directory)


def test_a_lost_server_does_not_affect_a_run_and_sync_completes_the_upload(server, home, tmp_path):
    tracked = create_run(tmp_path / "r", *HELD, "tracking.finish_s=1")
    (home / "hold").touch()
    process = start(tracked, server, home)
    wait_for(lambda: UploadState(tracked).url)
    server.lost = True
    (home / "hold").unlink()
    text = "".join(process.communicate(100))
    ended_s = time.time() - (tracked.path / "result.json").stat().st_mtime
    assert process.returncode == 0 and ended_s < 20, text  # W&B's client alone would try for minutes
    assert f"python -m qllm_exp.results sync {tracked.path}" in text and not upload_processes(tracked)
    local = create_run(tmp_path / "l", *HELD, "tracking.mode=disabled")
    run(local, server, home)
    assert without_wall_time(rows(tracked)) == without_wall_time(rows(local))
    seconds = [sum(run.result()["seconds"][part] for part in ("act", "store", "update")) for run in (tracked, local)]
    assert seconds[0] < 2 * seconds[1] + 2

    server.lost = False
    code, text = sync(server, home, tmp_path / "r")
    assert code == 0 and "sent" in text and complete(server, tracked), text
    requests = len(server.received)
    code, text = sync(server, home, tracked.path)
    assert code == 0 and "has nothing new" in text and len(server.received) == requests
    (stored,) = server.runs.values()
    assert stored.state == "finished" and stored.summary["final_return"] == tracked.result()["final_return"]


def test_a_run_that_is_killed_while_the_server_hangs_leaves_no_process(server, home, tmp_path):
    server.wait_s = 60
    (home / "hold").touch()
    directory = create_run(tmp_path / "r", *HELD, "tracking.finish_s=1")
    process = start(directory, server, home)
    processes = wait_for(lambda: len(both := upload_processes(directory)) == 2 and both)
    process.kill()
    process.wait()
    psutil.wait_procs(processes, timeout=6)
    assert not any(process.is_running() for process in processes)


def test_an_offline_run_is_uploaded_by_sync(server, home, tmp_path):
    directory = create_run(tmp_path / "r", *SHORT, "tracking.mode=offline")
    run(directory, server, home)
    assert server.received == [] and not (directory.path / "wandb").exists()
    env = environment(server, home) | {"OPENAI_API_KEY": SECRET}
    done = commands.run(["-m", "qllm_exp.results", "sync", tmp_path / "r"], env=env, cwd=home)
    count = len(rows(directory))
    assert done.returncode == 0 and f"sent {count} of {count} rows: {server.url}" in done.stdout, done
    assert complete(server, directory) and SECRET not in "\n".join(server.received)


def test_sync_uploads_new_rows_and_none_of_another_folder(server, home, tmp_path):
    resumed = write_run(tmp_path / "r" / "going", 3, "interrupted")
    assert "sent 3 of 3" in sync(server, home, resumed.path)[1]
    assert server.runs["going"].state == "preempted"
    write_run(resumed.path, 2, "interrupted")  # cut to its checkpoint
    assert "sent 0 of 2" in sync(server, home, resumed.path)[1]
    write_run(resumed.path, 5, "finished")
    other = write_run(tmp_path / "s" / "going", 7, "finished")  # a new run elsewhere, with the same name
    code, text = sync(server, home, resumed.path, other.path)
    assert code == 1 and "going: sent 2 of 5" in text and complete(server, resumed), text
    assert "going: NOT SENT" in text and "was not created from this folder" in text and "--adopt" in text
    code, text = sync(server, home, "--adopt", other.path)
    assert code == 0 and "sent 2 of 7" in text and complete(server, other), text


def test_a_run_whose_creation_was_never_answered_is_resumed_by_the_same_process(server, home, tmp_path):
    directory = write_run(tmp_path / "r" / "run", 3, "finished")
    server.unanswered = {"UpsertBucket"}
    command = [sys.executable, "-m", "qllm_exp.tracking.wandb_upload", "--once", "--timeout", "2"]
    env = environment(server, home)
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        print(directory.path, file=process.stdin, flush=True)
        assert "NOT SENT" in process.stdout.readline() and server.runs["run"].lines == []
        server.unanswered = set()
        print(directory.path, file=process.stdin, flush=True)
        text = process.stdout.readline()
        assert "sent 3 of 3 rows" in text and complete(server, directory), text


def test_sync_gives_up_on_a_server_that_is_not_there(server, home, tmp_path):
    for i in range(4):
        write_run(tmp_path / "r" / f"run{i}", 3, "finished")
    server.lost = True
    code, text = sync(server, home, "--timeout", "1", tmp_path / "r")
    assert code == 1 and text.count("NOT SENT") == 4 and text.count("not tried") == 2, text


def test_runs_of_a_sweep_share_a_group(server, home, tmp_path):
    command = ["-m", "qllm_exp", "-m", *SHORT, "seed=0-1", "env.name=held_env", f"dir={tmp_path / 'r'}"]
    done = commands.run(command, env=environment(server, home), cwd=home)
    assert done.returncode == 0, done.stderr
    folders = [RunDirectory(path.parent) for path in (tmp_path / "r").glob("*/config.yaml")]
    (sweep,) = (tmp_path / "r").glob("sweep_*")
    assert sorted(server.runs) == sorted(directory.path.name for directory in folders) and len(folders) == 2
    assert all(run.group == run.config["sweep"] == sweep.name for run in server.runs.values())
    assert all(complete(server, directory) and not upload_processes(directory) for directory in folders)


def test_without_a_login_nothing_starts_and_the_choices_are_listed(home, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "qllm_exp", *SHORT, f"dir={tmp_path / 'r'}"]
    done = subprocess.run(command, env=environment(None, home), cwd=home, capture_output=True, text=True, timeout=100)
    messages = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(messages) == 1 and messages[0].startswith("error: tracking=wandb"), messages
    assert all(choice in messages[0] for choice in ("`wandb login`", "tracking.mode=offline", "tracking=local"))
    assert not (tmp_path / "r").exists() and not [line for line in done.stderr.splitlines() if line.endswith("| wandb")]


def test_help_does_not_import_the_client(home):
    command = [sys.executable, "-X", "importtime", "-m", "qllm_exp", "--help"]
    done = subprocess.run(command, env=environment(None, home), cwd=home, capture_output=True, text=True, timeout=100)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "qllm_exp.config.overrides" in names and "wandb" not in names
