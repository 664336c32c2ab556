"""Whole generations: the commands of the package, unmodified litellm, and a language model that answers from a script."""

import contextlib
import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from loopback_llm import DROP, Answer, Call, Loopback, failure
from verdicts import Verdicts

from qllm_exp.generation import provide, verify
from qllm_exp.tfcaf import main

KEY = "sk-planted-7f3a9c21d4e8b605"
HEAD = "import torch\n\n\ndef credit_assignment(agents_q, global_state):\n"
MEAN = HEAD + "    return agents_q.mean(dim=1, keepdim=True)\n"
WEIGHED = HEAD + (
    "    near = -(global_state[:, [0, 3]] - global_state[:, 6:7]).abs() / 7\n"
    "    return (torch.softmax(near, dim=1) * agents_q).sum(dim=1, keepdim=True)\n"
)
WRONG_SHAPE = HEAD + "    return agents_q * 2\n"
TINY = ["train=quick", "train.total_steps=4000", "train.evaluation.every=2000", "train.hidden=8"]
TINY += ["train.evaluation.episodes=10", "train.evaluation.absolute_episodes=20"]
SMALL = ["tfcaf.candidates=2", "tfcaf.rounds=1"]


@pytest.fixture(autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within this process too, verify equal sources for a task once."""
    folder = tmp_path_factory.getbasetemp() / "verdicts"
    folder.mkdir(exist_ok=True)
    for module in (provide, verify):
        monkeypatch.setattr(module, "verify_all", Verdicts(folder))


def block(source: str) -> str:
    return f"The nearer agent matters more.\n\n```python\n{source}```\n"


def is_evaluator(call: Call) -> bool:
    return (
        call.messages[0]["content"].startswith("You are an expert")
        and "You judge functions" in call.messages[0]["content"]
    )


def script(coder: Callable[[Call], Answer | str]) -> Callable[[Call], Answer | str]:
    """A model whose evaluator always chooses the last candidate and always gives the same advice."""

    def answer(call: Call) -> Answer | str:
        if not is_evaluator(call):
            return coder(call)
        number = call.prompt.count("Candidate ")
        return str([0] * (number - 1) + [1]) if number else "Use the levels of the foods."

    return answer


def arguments(server: Loopback, cache: Path, *more: str) -> list[str]:
    online = ["llm=openai", "llm.model=openai/loopback", f"llm.api_base={server.url}", "llm.attempts=2"]
    prices = ["llm.usd_per_million_in=1", "llm.usd_per_million_out=10"]
    return [*online, *prices, f"tfcaf.cache={cache}", *more]


def call(module: str, *args: str, **environment: str) -> tuple[int, str, str]:
    """Run a module in a process of its own; return its exit code, output and errors."""
    variables = os.environ | {"OPENAI_API_KEY": KEY} | environment
    process = commands.run(["-m", module, *args], timeout=240, env=variables, imports="litellm")
    return process.returncode, process.stdout, process.stderr


def call_in_process(*args: str, **environment: str) -> tuple[int, str, str]:
    """Run `python -m qllm_exp.tfcaf` in this process, which has imported torch and litellm already."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in {"OPENAI_API_KEY": KEY, **environment}.items():
            patch.setenv(name, value)
        code = main(args)
    return code, out.getvalue(), err.getvalue()


def generate(server: Loopback, cache: Path, *more: str, **environment: str) -> tuple[int, str, str]:
    return call_in_process("generate", *arguments(server, cache, *more), **environment)


def stored_in(cache: Path) -> dict:
    """Return the content of the only stored function."""
    (path,) = cache.glob("*.json")
    return json.loads(path.read_text())


def test_a_refused_candidate_is_repaired_trained_with_and_paid_for_once(tmp_path: Path) -> None:
    def coder(call: Call) -> str:
        if "cannot be used" in call.prompt:
            assert "returns shape [1, 2] for a batch of 1 instead of [1, 1]" in call.prompt
            return block(WEIGHED)
        return block(WRONG_SHAPE)

    sweep = ["-m", "env=lbf", "mixer=tfcaf", "seed=0-1", f"dir={tmp_path / 'runs'}", *TINY]
    with Loopback(script(coder)) as server:
        args = arguments(server, tmp_path / "cache", *SMALL, *sweep)
        code, out, err = call("qllm_exp", *args)
        assert code == 0, out + err
        assert len(server.calls) == 5, "two candidates, both repaired, one choice"
        assert "5 calls" in err and "(n=2)" in err
        second_code, _, second_err = call("qllm_exp", *args)
        assert second_code == 0 and "2 runs: 2 finished, 0 running, 0 queued, 0 to run" in second_err
        assert len(server.calls) == 5
        code, _, err = call("qllm_exp", *(argument.replace("0-1", "0-2") for argument in args))
        assert code == 0 and "1 to run" in err and len(server.calls) == 5, "a new seed makes no call"
    stored = stored_in(tmp_path / "cache")
    outcomes = [row["outcome"] for row in stored["transcript"]]
    assert [outcome.split(":")[0] for outcome in outcomes] == [
        "refused (run)",
        "refused (run)",
        "accepted",
        "accepted",
        "choice",
    ]
    assert stored["source"] == WEIGHED and stored["cost"]["calls"] == 5
    assert stored["cost"]["usd"] == pytest.approx(5 * (100 * 1e-6 + 50 * 10e-6))
    runs = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith("sweep_")]
    assert len(runs) == 3 and all(json.loads((run / "tfcaf.json").read_text()) == stored for run in runs)
    planted = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not planted and KEY not in out + err + second_err


def test_each_model_of_a_sweep_generates_once(tmp_path: Path) -> None:
    with Loopback(script(lambda call: block(MEAN if "other" in call.body["model"] else WEIGHED))) as server:
        options = [f"llm.api_base={server.url}", f"tfcaf.cache={tmp_path / 'cache'}", *SMALL, *TINY]
        models = "llm.model=openai/one,openai/other"
        code, out, err = call(
            "qllm_exp", "-m", "llm=openai", models, "mixer=tfcaf,vdn", "seed=0-1", f"dir={tmp_path / 'runs'}", *options
        )
        assert code == 0, out + err
        assert sorted(call.body["model"] for call in server.calls) == ["one"] * 3 + ["other"] * 3
    assert "6 runs: 0 finished" in err, "vdn does not depend on the llm"
    assert "2 combinations left out: llm.model makes no difference there" in err
    assert re.search(r"functions generated: 2, 6 calls, 900 tokens, price unknown", err)
    assert "tfcaf model=openai/one" in err and "tfcaf model=openai/other" in err


BAD = {
    "prose": "I would weigh the agents by their distance.",
    "two blocks": block("import torch\n") + block("mean = torch.mean\n"),
    "two functions": block(MEAN + MEAN),
    "syntax error": block(HEAD + "    return agents_q.mean(dim=1\n"),
    "endless loop": block(HEAD + "    while True:\n        pass\n"),
    "wrong shape": block(WRONG_SHAPE),
    "not a number": block(HEAD + "    return (agents_q / (agents_q * 0)).sum(dim=1, keepdim=True)\n"),
    "attack": block("import os\n" + HEAD + '    os.system("touch /tmp/escaped")\n    return agents_q\n'),
    "dropped": DROP,
    "server error": failure(500, Retry_After="0"),
}


def test_when_every_answer_is_bad_each_reason_is_shown_and_nothing_is_stored(tmp_path: Path) -> None:
    names, lock = iter([*BAD, *BAD]), threading.Lock()

    def coder(call: Call) -> Answer | str:
        with lock:
            return BAD[next(names)]

    options = [f"tfcaf.candidates={len(BAD)}", "tfcaf.rounds=1", "tfcaf.retries=0", "llm.attempts=1"]
    with Loopback(script(coder)) as server:
        generate(server, tmp_path / "cache", *options)
        first_calls = len(server.calls)
        code, _, err = generate(server, tmp_path / "cache", *options)
        assert len(server.calls) == 2 * first_calls == 20, "the same command starts a new generation"
    assert code == 2 and "No credit-assignment function was accepted (10 candidates, 1 attempt each)" in err
    assert "Traceback" not in err and len(re.findall(r"^  candidate \d+: .+", err, re.MULTILINE)) == 10
    for reason in (
        "no code block",
        "2 code blocks",
        "exactly one function must be called",
        "not valid Python",
        "while loops",
        "[1, 1]",
    ):
        assert reason in err, reason
    assert "'import os'" in err and err.count("no answer: ") == 2
    assert not list((tmp_path / "cache").glob("*.json")) and not list((tmp_path / "cache").glob("*.claim*"))


def test_the_options_of_the_ablations_change_the_conversation(tmp_path: Path) -> None:
    first_calls: set[tuple[str, str]] = set()
    lock = threading.Lock()

    def coder(call: Call) -> str:
        with lock:
            is_first = (options, call.body["model"]) not in first_calls
            first_calls.add((options, call.body["model"]))
        return "No function." if is_first else block(WEIGHED)

    transcripts: dict[str, list[dict]] = {}
    variants = [
        "default=",
        "candidates=1",
        "rounds=1",
        "evaluator=off",
        "error_feedback=off",
        "state_description=off",
        "sample=1",
    ]
    with Loopback(script(coder)) as server:
        for options in variants:
            cache = tmp_path / options.partition("=")[0]
            more = [] if options == "default=" else [f"tfcaf.{options}"]
            code, out, err = generate(server, cache, "tfcaf.candidates=2", "tfcaf.rounds=2", *more)
            assert code == 0, out + err
            transcripts[options] = stored_in(cache)["transcript"]
    kinds = {name: [re.sub(r"-\d+$", "", row["call"]) for row in rows] for name, rows in transcripts.items()}
    coders = ["round-1-coder"] * 2 + ["round-1-coder-1-attempt", "round-1-coder-2-attempt"]
    assert len(kinds["default="]) == 2 + 1 + 1 + 1 + 2 + 1
    assert set(kinds["default="]) - set(coders) == {
        "round-1-choice",
        "round-2-advice",
        "round-2-coder",
        "round-2-choice",
    }
    assert "round-1-choice" not in kinds["candidates=1"] and len(kinds["candidates=1"]) == 1 + 1 + 1 + 1
    assert not [kind for kind in kinds["rounds=1"] if "round-2" in kind]
    assert {row["role"] for row in transcripts["evaluator=off"]} == {"coder"}

    def retry(name: str) -> list[dict]:
        return next(row["messages"] for row in transcripts[name] if "attempt" in row["call"])

    assert "no code block" in retry("default=")[-1]["content"] and len(retry("error_feedback=off")) == 1
    prompts = {name: stored_in(tmp_path / name.partition("=")[0])["prompts"]["coder"] for name in variants}
    assert "agent 0 position" in prompts["default="] and "agent 0 position" not in prompts["state_description=off"]
    assert prompts["sample=1"] == prompts["default="]
    keys = [stored_in(tmp_path / name.partition("=")[0])["key"] for name in variants]
    assert len(set(keys)) == len(variants), "each is stored under its own key"


MANY = """
import os, sys
import torch
from qllm_exp.credit import stored_function
from qllm_exp.generation import provide, verify
from qllm_exp.sweep import prepare
from qllm_exp.tfcaf import _run
torch.set_num_threads(1)  # a process with threads must not be forked
run = _run(sys.argv[1:])
provide.locate(run)  # renders the prompts once for all processes
stored_function.load(stored_function.bundled_path("lbf", "8x8-2p-2f-coop-2s"))
wait, go = os.pipe()
for _ in range(64):
    if os.fork() == 0:
        os.close(go)
        os.read(wait, 1)
        os.write(1, f"{provide.provide(run)}\\n".encode())
        os._exit(0)
os.close(go)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(64)]
sys.exit(max(map(abs, codes)))
"""


def test_sixty_four_concurrent_processes_cause_one_generation(tmp_path: Path) -> None:
    with Loopback(script(lambda call: Answer(block(WEIGHED), wait_s=0.5))) as server:
        command = ["-c", MANY, *arguments(server, tmp_path / "cache", *SMALL)]
        environment = os.environ | {"OPENAI_API_KEY": KEY}
        process = commands.run(command, timeout=240, env=environment, imports="litellm")
        assert process.returncode == 0, process.stderr
        assert len(server.calls) == 3, "two candidates and a choice"
    (path,) = (tmp_path / "cache").iterdir()
    assert process.stdout.splitlines() == [str(path)] * 64


def test_a_killed_generation_resumes_from_the_paid_answers(tmp_path: Path) -> None:
    chosen = threading.Event()

    def answer(call: Call) -> Answer | str:
        if not is_evaluator(call):
            return block(WEIGHED)
        chosen.set()
        return Answer("[0, 1]", wait_s=0 if len(server.calls) > 3 else 30)

    with Loopback(answer) as server:
        command = ["-m", "qllm_exp.tfcaf", "generate", *arguments(server, tmp_path / "cache", *SMALL)]
        process = commands.start(command, env=os.environ | {"OPENAI_API_KEY": KEY}, imports="litellm")
        assert chosen.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (claim,) = (tmp_path / "cache").glob("*.claim.1")
        os.utime(claim, (time.time() - 1000, time.time() - 1000))
        code, _, err = generate(server, tmp_path / "cache", *SMALL)
        assert code == 0, err
        assert sum(not is_evaluator(call) for call in server.calls) == 2, "the candidates were not requested again"
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".json"]


@pytest.mark.parametrize("module", ["qllm_exp.tfcaf generate", "qllm_exp -m seed=0,1 mixer=tfcaf"])
def test_ctrl_c_during_a_call_is_one_line_and_leaves_no_claim(tmp_path: Path, module: str) -> None:
    call_received = threading.Event()

    def answer(call: Call) -> Answer:
        call_received.set()
        return Answer(block(WEIGHED), wait_s=20)

    with Loopback(answer) as server:
        command = ["-m", *module.split(), *arguments(server, tmp_path / "cache", *SMALL)]
        command += [] if "generate" in module else [f"dir={tmp_path / 'runs'}"]
        process = commands.start(command, env=os.environ | {"OPENAI_API_KEY": KEY}, imports="litellm")
        assert call_received.wait(120)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(60)
    assert process.returncode == 3 and "; the same command" in err and "Traceback" not in err, err
    assert not list((tmp_path / "cache").iterdir())


def test_a_dry_run_shows_prompts_and_cost_without_a_call_or_a_key(tmp_path: Path) -> None:
    with Loopback([]) as server:
        code, out, err = generate(server, tmp_path / "cache", "--dry-run", OPENAI_API_KEY="")
        assert code == 0 and not server.calls, err
    assert "agent 0 last_action" in out and "You judge functions" in out
    assert "14 calls if nothing fails, at most 46" in out
    typical, worst = map(float, re.search(r"about (\d+\.\d+) USD with .*, at most about (\d+\.\d+) USD", out).groups())
    assert 0.01 < typical < worst
    assert not (tmp_path / "cache").exists()


def test_a_missing_key_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with Loopback([]) as server:
        args = arguments(server, tmp_path / "cache", "-m", "seed=0-1", f"dir={tmp_path / 'runs'}", *TINY)
        code, _, err = call("qllm_exp", *args, OPENAI_API_KEY="")
        assert code == 2 and "OPENAI_API_KEY" in err and err.count("error:") == 1 and not server.calls
    assert not list(tmp_path.iterdir())


def test_a_budget_that_the_next_calls_could_exceed_stops_the_generation(tmp_path: Path) -> None:
    with Loopback(script(lambda call: block(WEIGHED))) as server:
        code, _, err = generate(server, tmp_path / "cache", *SMALL, "llm.max_tokens=1000", "tfcaf.budget_usd=0.01")
        assert code == 2 and "stops before it could exceed tfcaf.budget_usd=0.01" in err and not server.calls


def test_a_stored_function_is_listed_shown_explained_and_used_by_its_key(tmp_path: Path) -> None:
    cache = f"tfcaf.cache={tmp_path / 'cache'}"
    (tmp_path / "mine.py").write_text(WEIGHED.replace("credit_assignment", "QLLMNetwork"))
    code, out, err = call_in_process("verify", str(tmp_path / "mine.py"), "env=lbf", cache)
    assert code == 0 and "accepted for lbf/8x8-2p-2f-coop-2s, IGM gate on: affine" in out, err
    code, out, err = call_in_process("import", str(tmp_path / "mine.py"), "env=lbf", cache)
    assert code == 0, err
    key = re.search(r"mixer\.file=([0-9a-f]{12})", out)[1]
    code, out, _ = call_in_process("list", cache)
    assert code == 0 and re.search(rf"^{key} +lbf/8x8-2p-2f-coop-2s +file mine.py", out, re.MULTILINE)
    code, out, _ = call_in_process("show", key[:8], cache)
    assert code == 0 and "def QLLMNetwork" in out and "# procedure: imported" in out
    run = ["env=lbf", f"mixer.file={key}", cache, f"dir={tmp_path / 'runs'}", *TINY]
    code, out, err = call("qllm_exp", *run)
    assert code == 0, err
    (folder,) = (path for path in (tmp_path / "runs").iterdir())
    figures = tmp_path / "figures"
    code, out, err = call_in_process("explain", key, cache, "--output", str(figures), "--policy", str(folder))
    assert code == 0 and (figures / "credit.png").stat().st_size > 10_000, err


def test_a_refused_file_is_reported_with_the_reason_and_not_stored(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRONG_SHAPE)
    code, _, err = call(
        "qllm_exp.tfcaf", "import", str(tmp_path / "mine.py"), "env=lbf", f"tfcaf.cache={tmp_path / 'c'}"
    )
    assert code == 1 and "refused (run): it returns shape [1, 2]" in err and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["generate", "tfcaf.rounds=1"],
            "llm=bundled has fixed functions for each task and does not support tfcaf.rounds",
        ),
        (["generate", "env=lbf", "env.task=9x9-2p-2f"], "No TFCAF for lbf/9x9-2p-2f"),
        (["show", "123456"], "No stored function"),
        (["show", "lbf/none"], "No TFCAF for lbf/none"),
        (["show", "lbf/8x8"], "is bundled with qllm_exp. Did you mean 'lbf/8x8-2p-2f-coop-2s'?"),
        (["show", "8x8-2p-2f-coop-2s"], "letters from a to f. Did you mean 'lbf/8x8-2p-2f-coop-2s'?"),
        (["explain", "mpe/spread"], "Did you mean 'mpe/simple_spread'?"),
        (["verify", "none.py", "env=lbf"], "none.py cannot be read"),
        (["generate", "env=lbff"], "Did you mean 'lbf'"),
        (["generate", "llm=folder"], "llm.path"),
        (["generate", "lbf"], "'lbf' is not of the form KEY=VALUE"),
    ],
)
def test_a_wrong_call_is_one_clear_error(tmp_path: Path, args: list[str], message: str) -> None:
    code, _, err = call_in_process(*args, f"tfcaf.cache={tmp_path}")
    assert code == 2 and message in err and err.count("error:") == 1 and "Traceback" not in err, err
