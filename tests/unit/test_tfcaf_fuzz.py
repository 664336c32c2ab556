"""Hostile and broken functions through the whole cascade: none escapes, none brings the platform down, each gets a reason."""

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_functions import CANARY, HOSTILE, Hostile
from tfcaf_functions import DETACHED, GROUPS, INDEXED, MAXIMUM, QLLM_NAME, SPREAD, SPREAD_COLLISIONS, VDN

from qllm_exp.credit.refused import MAX_REASON, Refused
from qllm_exp.envs import TeamEnv, make_env
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.generation import sandbox
from qllm_exp.generation.sandbox_child import landlock_version
from qllm_exp.generation.verify import Accepted, verify_all

SECRET = "sk-planted-5b1f0c"
WEIGHTED = (VDN, SPREAD, SPREAD_COLLISIONS, QLLM_NAME, GROUPS, INDEXED)

Tried = list[tuple[Hostile, Accepted | Refused]]


@pytest.fixture(scope="module")
def env() -> TeamEnv:
    return make_env(MpeConfig(task="simple_spread"), 8, 0)


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that hostile code is to touch, with a secret in it and in the environment beside it."""
    path = tmp_path_factory.mktemp("outside") / "canary"
    path.write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        yield path


@pytest.fixture(scope="module")
def tried(env: TeamEnv, canary: Path) -> Tried:
    """All hostile functions, and after them the good ones, in two child processes."""
    results: Tried = []
    for endless in (False, True):
        chosen = [one for one in HOSTILE if one.endless == endless]
        sources = [one.source.replace(CANARY, str(canary)) for one in chosen]
        good = [] if endless else [one.source for one in WEIGHTED]
        verdicts = verify_all(sources + good, env, enforce=True, timeout_s=0.5 if endless else 20)
        results += zip(chosen, verdicts, strict=False)
        for written, verdict in zip(WEIGHTED, verdicts[len(chosen) :], strict=False):
            assert isinstance(verdict, Accepted) and verdict.affine, (written.name, verdict)
    return results


def test_no_hostile_function_is_accepted_and_each_is_refused_where_it_should_be(tried: Tried) -> None:
    stages = Counter(verdict.stage if isinstance(verdict, Refused) else "accepted" for _, verdict in tried)
    figures = {"tried": len(tried), "accepted": stages.pop("accepted", 0), "refused": dict(stages)}
    print(json.dumps(figures))
    assert figures["accepted"] == 0 and len(tried) == len(HOSTILE) >= 250
    wrong = [
        (one.kind, one.source[-300:], verdict)
        for one, verdict in tried
        if not (isinstance(verdict, Refused) and verdict.stage in one.stages)
    ]
    assert not wrong


def test_every_refusal_has_a_reason_that_can_be_sent_on(tried: Tried) -> None:
    for one, verdict in tried:
        assert isinstance(verdict, Refused)
        assert 20 < len(verdict.reason) < MAX_REASON, (one.source, verdict.reason)
        assert verdict.reason.encode().decode() == verdict.reason.strip()


def test_nothing_outside_is_touched_and_no_secret_comes_back(tried: Tried, canary: Path) -> None:
    assert canary.read_text() == SECRET and list(canary.parent.iterdir()) == [canary]
    assert os.environ["OPENAI_API_KEY"] == SECRET
    assert not any(SECRET in repr(verdict) for _, verdict in tried)


def test_functions_that_are_no_weighted_sum_pass_with_the_gate_off(env: TeamEnv) -> None:
    verdicts = verify_all([MAXIMUM.source, DETACHED.source, VDN.source], env, enforce=False)
    assert [isinstance(one, Accepted) and one.affine for one in verdicts] == [False, False, True]


# What a function could do that had found a way around the static check: arbitrary Python in the place of tracing.
ATTACK = """
import json, os, signal, socket
import qllm_exp.generation.tracing as tracing
from pathlib import Path
from qllm_exp.generation.static_check import Refused

honest, outside, port, parent, secret = tracing.trace, Path({outside!r}), {port}, {parent}, {secret!r}

def done(attempt):
    try:
        return bool(attempt())
    except (OSError, MemoryError):
        return False

def trace(source, states, n_agents):
    if "# crash" in source:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "# attack" not in source:
        return honest(source, states, n_agents)
    os.write(1, b'{{"results": []}}')
    raise Refused("run", json.dumps({{
        "environment": secret in str(os.environ),
        "memory": done(lambda: bytearray(4 << 30)),
        "read": done((outside / "canary").read_text),
        "write": done(lambda: (outside / "new").write_text("x")),
        "overwrite": done(lambda: (outside / "canary").write_text("x")),
        "delete": done(lambda: (outside / "canary").unlink() is None),
        "own folder": done(lambda: Path("left").write_text("x")),
        "environment of parent": done(Path(f"/proc/{{parent}}/environ").read_bytes),
        "program": done(lambda: os.posix_spawn("/bin/true", ["true"], {{}})),
        "connect": done(lambda: socket.create_connection(("127.0.0.1", port), 5)),
        "signal": done(lambda: os.kill(parent, 0) is None),
    }}))

tracing.trace = trace
"""


def test_arbitrary_code_in_the_child_is_confined(canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = VDN.source
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        (tmp_path / "attack.py").write_text(
            ATTACK.format(outside=str(canary.parent), port=server.getsockname()[1], parent=os.getpid(), secret=SECRET)
        )
        start = f"exec(open({str(tmp_path / 'attack.py')!r}).read()); from qllm_exp.generation.sandbox_child import main; main()"
        monkeypatch.setattr(sandbox, "_START", "import sys; sys.path.insert(0, {root!r}); " + start)
        sources = [good + "# attack", good + "# crash", good]
        attacked, crashed, honest = sandbox.export_all(sources, n_agents=3, state_dim=4, timeout_s=20)
        try:
            server.accept()[0].close()
            reached = True
        except BlockingIOError:
            reached = False
    assert isinstance(crashed, Refused) and crashed.stage == "limits" and not isinstance(honest, Refused)
    assert isinstance(attacked, Refused) and attacked.stage == "run"
    achieved = {what for what, yes in json.loads(attacked.reason).items() if yes}
    version = landlock_version()  # what the kernel has: files from 1 on, TCP from 4, signals from 6
    files = {"read", "write", "overwrite", "delete", "own folder", "environment of parent", "program"}
    held = {"environment", "memory"} | (files if version >= 1 else set())
    held |= ({"connect"} if version >= 4 else set()) | ({"signal"} if version >= 6 else set())
    assert not achieved & held
    assert version < 4 or not reached
    assert version < 1 or (canary.read_text() == SECRET and list(canary.parent.iterdir()) == [canary])
