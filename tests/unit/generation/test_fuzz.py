"""Hostile and broken functions through the whole cascade: none escapes, none crashes the platform, each has a reason."""

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
from qllm_exp.generation.confinement import landlock_version
from qllm_exp.generation.verify import Accepted, verify_all

pytestmark = pytest.mark.slow

SECRET = "sk-planted-5b1f0c"
WEIGHTED = (VDN, SPREAD, SPREAD_COLLISIONS, QLLM_NAME, GROUPS, INDEXED)

Verdicts = list[tuple[Hostile, Accepted | Refused]]


@pytest.fixture(scope="module")
def env() -> TeamEnv:
    return make_env(MpeConfig(task="simple_spread"), 8, 0)


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that hostile code tries to touch. It contains a secret, which is in the environment as well."""
    path = tmp_path_factory.mktemp("outside") / "canary"
    path.write_text(SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        yield path


@pytest.fixture(scope="module")
def hostile_verdicts(env: TeamEnv, canary: Path) -> Verdicts:
    """Verdicts on all hostile functions. They run in two child processes, the first of which runs good functions too."""
    results: Verdicts = []
    for endless in (False, True):
        chosen = [hostile for hostile in HOSTILE if hostile.endless == endless]
        sources = [hostile.source.replace(CANARY, str(canary)) for hostile in chosen]
        good = [] if endless else [written.source for written in WEIGHTED]
        verdicts = verify_all(sources + good, env, enforce=True, timeout_s=0.5 if endless else 20)
        results += zip(chosen, verdicts, strict=False)
        for written, verdict in zip(WEIGHTED, verdicts[len(chosen) :], strict=False):
            assert isinstance(verdict, Accepted) and verdict.affine, (written.name, verdict)
    return results


def test_each_hostile_function_is_refused_at_the_expected_stage(hostile_verdicts: Verdicts) -> None:
    stages = Counter(verdict.stage if isinstance(verdict, Refused) else "accepted" for _, verdict in hostile_verdicts)
    counts = {"tried": len(hostile_verdicts), "accepted": stages.pop("accepted", 0), "refused": dict(stages)}
    print(json.dumps(counts))
    assert counts["accepted"] == 0 and len(hostile_verdicts) == len(HOSTILE) >= 250
    wrong = [
        (hostile.kind, hostile.source[-300:], verdict)
        for hostile, verdict in hostile_verdicts
        if not (isinstance(verdict, Refused) and verdict.stage in hostile.stages)
    ]
    assert not wrong


def test_every_refusal_has_a_reason_that_can_be_sent_to_a_model(hostile_verdicts: Verdicts) -> None:
    for hostile, verdict in hostile_verdicts:
        assert isinstance(verdict, Refused)
        assert 20 < len(verdict.reason) < MAX_REASON, (hostile.source, verdict.reason)
        assert verdict.reason.encode().decode() == verdict.reason.strip()


def test_nothing_outside_is_touched_and_no_secret_is_returned(hostile_verdicts: Verdicts, canary: Path) -> None:
    assert canary.read_text() == SECRET and list(canary.parent.iterdir()) == [canary]
    assert os.environ["OPENAI_API_KEY"] == SECRET
    assert not any(SECRET in repr(verdict) for _, verdict in hostile_verdicts)


HARMLESS = (  # Python that never leaves the child, and slips that mean the same for one row
    "    import numpy\n    x = {1, 2}\n    x: eval('1') = 1\n    return agents_q.mean(1)",
    "    return agents_q.mean(1, keepdim=True).T if isinstance(y := 1, int) else agents_q",
    "    return agents_q.mean(1, keepdim=True).squeeze().unsqueeze(-1).unsqueeze(-1)",
    "    return torch.stack([row.sum() for row in agents_q]).unsqueeze(1)",
    "    print(helper)\n    return agents_q.mean(1, keepdim=True)\n\ndef helper(x: exec('1')) -> __import__('os'):\n    return 1",
)


def test_harmless_python_is_accepted(env: TeamEnv) -> None:
    head = "def credit_assignment(agents_q, global_state):\n"
    for body, verdict in zip(HARMLESS, verify_all([head + body for body in HARMLESS], env, enforce=True), strict=True):
        assert isinstance(verdict, Accepted), (body, verdict)


def test_functions_that_are_not_a_weighted_sum_pass_with_the_gate_off(env: TeamEnv) -> None:
    verdicts = verify_all([MAXIMUM.source, DETACHED.source, VDN.source], env, enforce=False)
    assert [isinstance(verdict, Accepted) and verdict.affine for verdict in verdicts] == [False, False, True]


# Arbitrary Python in the place of tracing: what a function could do that bypassed the static check.
ATTACK = """
import json, os, signal, socket
import qllm_exp.generation.tracing as tracing
from pathlib import Path
from qllm_exp.generation.static_check import Refused

honest, outside, port, parent, secret = tracing.trace, Path({outside!r}), {port}, {parent}, {secret!r}

def succeeds(attempt):
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
        "memory": succeeds(lambda: bytearray(4 << 30)),
        "read": succeeds((outside / "canary").read_text),
        "write": succeeds(lambda: (outside / "new").write_text("x")),
        "overwrite": succeeds(lambda: (outside / "canary").write_text("x")),
        "delete": succeeds(lambda: (outside / "canary").unlink() is None),
        "own folder": succeeds(lambda: Path("left").write_text("x")),
        "environment of parent": succeeds(Path(f"/proc/{{parent}}/environ").read_bytes),
        "program": succeeds(lambda: os.posix_spawn("/bin/true", ["true"], {{}})),
        "connect": succeeds(lambda: socket.create_connection(("127.0.0.1", port), 5)),
        "signal": succeeds(lambda: os.kill(parent, 0) is None),
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
    achieved = {attempt for attempt, succeeded in json.loads(attacked.reason).items() if succeeded}
    version = landlock_version()  # Landlock restricts files from version 1, TCP from 4 and signals from 6
    files = {"read", "write", "overwrite", "delete", "own folder", "environment of parent", "program"}
    prevented = {"environment", "memory"}
    if version >= 1:
        prevented |= files
    if version >= 4:
        prevented.add("connect")
    if version >= 6:
        prevented.add("signal")
    assert not achieved & prevented
    assert version < 4 or not reached
    assert version < 1 or (canary.read_text() == SECRET and list(canary.parent.iterdir()) == [canary])
