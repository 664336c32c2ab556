"""Language models over HTTP: unmodified litellm calls a server on this machine that answers correctly or with faults."""

import asyncio
import dataclasses
import email.utils
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_llm import (
    DROP,
    EMPTY_JSON,
    HTML,
    NO_CHOICE,
    NULL,
    SHORTER_THAN_DECLARED,
    TRUNCATED,
    Answer,
    Call,
    Loopback,
    cut,
    drip,
    failure,
    slow,
)
from omegaconf import OmegaConf

from qllm_exp.config.registry import CONF
from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Reply, Request, make_backend, online
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.llm.redaction import redact

KEY = "sk-planted-4f9c2d71e8b3a605"
PROVIDERS = ("openai", "deepseek", "anthropic", "gemini", "ollama", "vllm")


@pytest.fixture(autouse=True)
def planted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Plant a key in the environment and check that no log and no output contains it; shorten waits."""
    monkeypatch.setenv("PLANTED_KEY", KEY)
    monkeypatch.setattr(online, "FIRST_WAIT_S", 0.01)
    caplog.set_level(logging.DEBUG)
    yield
    output = caplog.text + "".join(capfd.readouterr())
    assert not [part for part in (KEY, KEY[:12], KEY[-8:]) if part in output]


def settings(server: Loopback, **changes: Any) -> OnlineConfig:
    values: dict[str, Any] = {
        "name": "openai",
        "model": "openai/some",
        "api_base": server.url,
        "key_env": "PLANTED_KEY",
    }
    return OnlineConfig(**(values | changes))


def backend(server: Loopback, **changes: Any) -> Backend:
    return make_backend(settings(server, **changes))


def requests(*prompts: str) -> list[Request]:
    system = {"role": "system", "content": "You write functions."}
    return [Request((system, {"role": "user", "content": prompt}), f"call-{i}") for i, prompt in enumerate(prompts)]


def single_answer(server: Loopback, **changes: Any) -> Reply | CallFailed:
    (answer,) = backend(server, **changes).ask(requests("hello"))
    return answer


def test_a_call_sends_the_conversation_and_the_settings_and_returns_the_answer() -> None:
    with Loopback(["  the answer\n"]) as server:
        reply = single_answer(server, temperature=0.5, top_p=0.9, max_tokens=77)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.model, reply.attempts) == ("  the answer\n", "loopback-1", 1)
    assert (reply.tokens_in, reply.tokens_out) == (100, 50) and 0 < reply.seconds < 60
    (call,) = server.calls
    assert call.messages == list(requests("hello")[0].messages) and call.key == KEY
    sent = {name: call.body.get(name) for name in ("model", "temperature", "top_p", "max_tokens")}
    assert sent == {"model": "some", "temperature": 0.5, "top_p": 0.9, "max_tokens": 77}


def test_null_options_are_not_sent() -> None:
    with Loopback(["yes"]) as server:
        single_answer(server, temperature=None)
    assert not {"temperature", "top_p", "n"} & server.calls[0].body.keys()


def test_calls_are_concurrent_and_answers_keep_their_order() -> None:
    all_here = threading.Barrier(8)
    last_is_done = threading.Event()

    def script(call: Call) -> Answer:
        def wait() -> None:
            all_here.wait(60)
            if call.prompt == "7":
                last_is_done.set()
            assert last_is_done.wait(60)

        return Answer(f"answer {call.prompt}", before=wait)

    with Loopback(script) as server:
        replies = backend(server, concurrency=8, attempts=1).ask(requests(*map(str, range(8))))
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == [f"answer {i}" for i in range(8)]
    assert server.most_in_flight == 8


def test_no_more_calls_are_open_than_allowed() -> None:
    three = threading.Barrier(3)
    with Loopback(lambda call: Answer("yes", before=lambda: three.wait(60), wait_s=0.3)) as server:
        replies = backend(server, concurrency=3, attempts=1).ask(requests(*map(str, range(9))))
    assert all(isinstance(reply, Reply) for reply in replies) and len(server.calls) == 9
    assert server.most_in_flight == 3


FAULTS = {
    "429": failure(429),
    "500": failure(500),
    "503": failure(503),
    "dropped": DROP,
    "html": HTML,
    "empty json": EMPTY_JSON,
    "no choice": NO_CHOICE,
    "truncated": TRUNCATED,
    "shorter than declared": SHORTER_THAN_DECLARED,
    "null": NULL,
    "blank": Answer(" \n"),
    "filtered": Answer("half", finish="content_filter"),
}


@pytest.mark.parametrize("model", ["openai/some", "hosted_vllm/some", "deepseek/some"])
@pytest.mark.parametrize("fault", FAULTS)
def test_transient_failures_are_retried(fault: str, model: str) -> None:
    with Loopback([FAULTS[fault], FAULTS[fault], "good"]) as server:
        reply = single_answer(server, model=model)
    assert isinstance(reply, Reply), reply
    assert (reply.text, reply.attempts, len(server.calls)) == ("good", 3, 3)


@pytest.mark.parametrize("fault", [slow("late", 60), drip("one by one", 0.2)], ids=["slow", "drip"])
def test_a_call_ends_at_its_time_limit(fault: Answer) -> None:
    with Loopback(lambda call: fault if call.number == 0 else "good") as server:
        reply = single_answer(server, timeout_s=2.0)
    assert isinstance(reply, Reply) and reply.text == "good" and reply.attempts > 1 and reply.seconds < 50

    with Loopback([fault, "never asked for"]) as server:
        failed = single_answer(server, timeout_s=1.0, attempts=1)
    assert isinstance(failed, CallFailed) and "llm.timeout_s=1" in str(failed)


def test_attempts_are_limited_and_the_failure_says_what_to_do() -> None:
    with Loopback([failure(500, "out of memory")] * 9) as server:
        failed = single_answer(server, attempts=3)
    assert isinstance(failed, CallFailed) and len(server.calls) == 3 and failed.cost_usd == 0
    for part in ("llm=openai (openai/some)", "out of memory", "call-0; 3 attempts", f"llm.api_base={server.url}"):
        assert part in str(failed)


def test_a_call_that_fails_leaves_the_others_alone() -> None:
    with Loopback(lambda call: failure(500) if call.prompt == "b" else f"answer {call.prompt}") as server:
        first, second, third = backend(server, attempts=2).ask(requests("a", "b", "c"))
    assert isinstance(first, Reply) and isinstance(second, CallFailed) and isinstance(third, Reply)
    assert (first.text, third.text) == ("answer a", "answer c")


def waited_s(server: Loopback) -> float:
    """Return the seconds between the first two calls."""
    return server.calls[1].time_s - server.calls[0].time_s


def test_the_wait_that_the_server_requests_is_kept() -> None:
    with Loopback([failure(429, Retry_After="1"), "good"]) as server:
        assert isinstance(single_answer(server), Reply)
    assert 1.0 <= waited_s(server) < 30
    in_three_seconds = email.utils.formatdate(time.time() + 3, usegmt=True)
    with Loopback([failure(503, Retry_After=in_three_seconds), "good"]) as server:
        assert isinstance(single_answer(server), Reply)
    assert 1.0 <= waited_s(server) < 30  # a date has whole seconds, and making the call takes some of them


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_requests_hours_is_not_waited_for(status: int) -> None:
    with Loopback([failure(status, "quota used up", Retry_After="7200"), "never asked for"]) as server:
        failed = single_answer(server)
    assert isinstance(failed, CallFailed) and len(server.calls) == 1
    assert "quota used up" in str(failed) and "7200 s" in str(failed)


def test_waits_double_up_to_a_minute_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "FIRST_WAIT_S", 1.0)
    for attempt, longest in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)]:
        waits = [online.wait_s(attempt, None) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert all(5 <= online.wait_s(9, 5.0) <= 5.5 for _ in range(200)) and online.wait_s(9, 0.0) == 0


@pytest.mark.parametrize("model", ["openai/some", "hosted_vllm/some"])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "rejected the request (400: not so). Check llm.model=MODEL, llm.api_base=URL, llm.max_tokens"),
        (401, "rejected the key (401: not so). Check the environment variable PLANTED_KEY"),
        (402, "Check the balance"),
        (403, "rejected the key (403: not so). Check the environment variable PLANTED_KEY"),
        (404, "was not found (404: not so). Check llm.model=MODEL and llm.api_base=URL"),
        (422, "rejected the request (422: not so)"),
    ],
)
def test_permanent_failures_are_errors_at_once(status: int, message: str, model: str) -> None:
    with Loopback([failure(status, "not so"), "never asked for"]) as server, pytest.raises(UserError) as raised:
        single_answer(server, model=model)
    assert not isinstance(raised.value, CallFailed) and len(server.calls) == 1
    assert message.replace("MODEL", model).replace("URL", server.url) in str(raised.value)


def test_a_model_without_a_provider_is_named() -> None:
    with Loopback([]) as server, pytest.raises(UserError, match=r"Check llm\.model=nobodys-model"):
        single_answer(server, model="nobodys-model")
    assert not server.calls


@pytest.mark.parametrize("text", ["half a function", None])
def test_an_answer_cut_off_by_the_limit_fails_at_once_and_counts_as_cost(text: str | None) -> None:
    with Loopback([dataclasses.replace(cut(), text=text), "never asked for"]) as server:
        failed = single_answer(server, usd_per_million_in=1.0, usd_per_million_out=10.0, max_tokens=50)
    assert isinstance(failed, CallFailed) and "Raise llm.max_tokens=50" in str(failed) and len(server.calls) == 1
    assert failed.cost_usd == pytest.approx(100e-6 + 50 * 10e-6)


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with Loopback([]) as server:
        address = server.url.replace("http://", "http://user:pa55-word@")
    failed = single_answer(server, api_base=address, attempts=2)
    assert isinstance(failed, CallFailed) and "127.0.0.1" in str(failed)
    assert "pa55" not in str(failed) and "user" not in str(failed)


def test_a_missing_key_is_named_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(["yes"]) as server:
        for value in (None, "", "  "):
            if value is None:
                monkeypatch.delenv("NO_SUCH_KEY", raising=False)
            else:
                monkeypatch.setenv("NO_SUCH_KEY", value)
            with pytest.raises(UserError, match=r"NO_SUCH_KEY is not set.*llm=bundled"):
                backend(server, key_env="NO_SUCH_KEY").check()
        monkeypatch.setenv("NO_SUCH_KEY", f"{KEY}\nx")
        with pytest.raises(UserError, match="NO_SUCH_KEY is not a valid key") as raised:
            backend(server, key_env="NO_SUCH_KEY").ask(requests("hello"))
    assert KEY not in str(raised.value) and not server.calls


@pytest.mark.parametrize(
    ("change", "message"), [({"model": ""}, "llm.model is empty"), ({"usd_per_million_in": 1.0}, "Set both")]
)
def test_an_invalid_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with Loopback([]) as server, pytest.raises(UserError, match=message):
        backend(server, **change)


def test_no_other_providers_key_goes_to_a_server_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Loopback(["yes", "yes"]) as server:
        assert isinstance(single_answer(server, key_env=""), Reply)
        assert isinstance(single_answer(server, key_env="", model="hosted_vllm/some"), Reply)
    assert all(KEY not in str(call.headers) for call in server.calls)


ECHOES = {
    "whole": "Incorrect API key provided: {key}.",
    "middle hidden": "Incorrect API key provided: {begin}***************{end}. You can find your key in the console.",
    "end alone": "Authentication failed: your api key: ****{end} is invalid",
    "beginning alone": "Invalid token {key:.14} for this project",
    "in an address": "see https://x.test/v1?alt=json&key={key}",
}


def everything(error: BaseException) -> str:
    """Return all that a careless program could print of an exception: texts, chained exceptions, local variables."""
    text = [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename != __file__]
    text += [repr(frame.f_locals) for frame in frames]
    chained = [cause for cause in (error.__cause__, error.__context__) if cause is not None]
    return "\n".join(text + [everything(cause) for cause in chained])


@pytest.mark.parametrize("model", ["openai/some", "hosted_vllm/some", "ollama_chat/some"])
@pytest.mark.parametrize("status", [401, 500])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_that_the_server_repeats_is_hidden_everywhere(echo: str, status: int, model: str) -> None:
    message = ECHOES[echo].format(key=KEY, begin=KEY[:8], end=KEY[-4:])
    with Loopback(lambda call: failure(status, message)) as server:
        address = server.root if model.startswith("ollama") else server.url
        model_backend = backend(server, model=model, attempts=2, api_base=address)
        try:
            (outcome,) = model_backend.ask(requests("hello"))
        except UserError as error:
            outcome, printed = error, everything(error)
        else:
            printed = f"{outcome} {outcome!r} {vars(outcome)}"
    assert isinstance(outcome, UserError) and server.calls[0].key == KEY
    printed += f"{model_backend!r} {vars(model_backend)}"
    assert not [part for part in (KEY, KEY[:12], KEY[-8:]) if part in printed]
    assert KEY[-4:] not in str(outcome).replace(server.root, "")
    assert "[hidden]" in str(outcome) or "REDACTED" in str(outcome)  # litellm hides some itself


def test_a_key_that_the_model_repeats_is_not_in_the_reply() -> None:
    with Loopback([f"Your key is {KEY}, right?"], model=f"model-{KEY}") as server:
        reply = single_answer(server)
    assert isinstance(reply, Reply) and KEY not in repr(reply) and reply.text == "Your key is [hidden], right?"


def test_redaction_keeps_the_rest_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_SERVICE_TOKEN", "zq/81 77-secret")
    monkeypatch.setenv("SHORT_KEY", "agents")
    code = "w = agents_q**2 * x[..., 0]  # **bold** and sk-1 and 605"
    assert redact(code, "PLANTED_KEY") == code == redact(code)
    assert redact("a zq/81 77-secret zq%2F8177 zq%2F81%2077-secret b") == "a [hidden] zq%2F8177 [hidden] b"
    assert redact("at https://me:pass@host/v1?key=abc&x=1") == "at https://[hidden]@host/v1?key=[hidden]&x=1"


def test_the_price_is_configured_or_from_the_table_or_unknown() -> None:
    with Loopback([Answer("yes", tokens_in=1000, tokens_out=200)] * 4) as server:
        configured = single_answer(server, usd_per_million_in=3.0, usd_per_million_out=15.0)
        table = single_answer(server, model="openai/gpt-6.1-sol", temperature=None)
        unknown = single_answer(server)
        free = single_answer(server, usd_per_million_in=0.0, usd_per_million_out=0.0)
    assert isinstance(configured, Reply) and configured.cost_usd == pytest.approx(0.003 + 0.003)
    assert isinstance(table, Reply) and table.cost_usd == pytest.approx(1000 * 2e-6 + 200 * 10e-6)
    assert isinstance(unknown, Reply) and unknown.cost_usd is None
    assert isinstance(free, Reply) and free.cost_usd == 0


def test_an_empty_answer_counts_as_cost() -> None:
    with Loopback([NULL, "good"]) as server:
        reply = single_answer(server, usd_per_million_in=1.0, usd_per_million_out=10.0)
    assert isinstance(reply, Reply) and (reply.tokens_in, reply.tokens_out) == (200, 100)
    assert reply.cost_usd == pytest.approx(2 * (100e-6 + 50 * 10e-6))


def test_the_worst_case_is_an_upper_bound_and_grows_with_each_call() -> None:
    with Loopback([]) as server:
        model = backend(server, usd_per_million_in=1.0, usd_per_million_out=10.0, max_tokens=1000)
        table = backend(server, model="openai/gpt-6.1-sol", max_tokens=1000)
        unknown = backend(server)
        borrowed = backend(server, model="hosted_vllm/gpt-6.1-sol")
    single, double = (requests("x" * 25_000), requests("x" * 25_000, "x" * 25_000))
    assert model.worst_case_usd([]) == 0
    worst = model.worst_case_usd(single)
    assert worst is not None and 0.02 <= worst <= 0.021 and model.worst_case_usd(double) == pytest.approx(2 * worst)
    priced = table.worst_case_usd(single)
    assert priced is not None and 10_000 * 2e-6 + 1000 * 1e-5 <= priced <= 10_100 * 2.5e-6 + 1000 * 1e-5
    assert unknown.worst_case_usd(single) is None and borrowed.worst_case_usd(single) is None


def test_a_backend_can_be_used_repeatedly_and_inside_an_event_loop() -> None:
    async def notebook() -> list[Reply | CallFailed]:
        return model.ask(requests("c", "d"))

    with Loopback(lambda call: f"answer {call.prompt}") as server:
        model = backend(server, attempts=1)
        replies = [*asyncio.run(notebook())]
        for letter in "efghijklmn":
            gc.collect()  # so that a new event loop can take the place of an old one in memory
            replies += model.ask(requests(letter))
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == [
        f"answer {letter}" for letter in "cdefghijklmn"
    ]


def test_ollama_is_called_through_its_own_interface() -> None:
    with Loopback(["an answer"]) as server:
        reply = single_answer(server, model="ollama_chat/some", api_base=server.root, key_env="")
    assert isinstance(reply, Reply) and reply.text == "an answer" and server.calls[0].path == "/api/chat"
    assert server.calls[0].body["options"]["num_predict"] == 8192


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_settings_of_every_provider_make_a_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONF / "llm" / f"{name}.yaml"))  # type: ignore[assignment]
    if values["key_env"]:
        monkeypatch.setenv(values["key_env"], KEY)
    with Loopback([failure(400, "heard")]) as server:
        model = make_backend(OnlineConfig(**(values | {"api_base": server.root})))
        assert model.worst_case_usd(requests("hello")) is not None
        with pytest.raises(UserError, match="rejected the request"):
            model.ask(requests("hello"))
    (call,) = server.calls
    assert str(values["max_tokens"]) in str(call.body)
    assert ("temperature" in str(call.body)) == (values["temperature"] is not None)
    assert (KEY in f"{call.path} {call.headers}") == bool(values["key_env"])


def test_nothing_but_the_model_is_contacted_and_nothing_is_imported_or_printed_before(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER_VARIABLE=from-a-file\n")
    program = """
        import os, socket, sys

        reached = set()

        def record(event, details):
            if event == "socket.getaddrinfo":
                reached.add(str(details[0]))
            elif event == "socket.connect":
                reached.add(str(details[1][0] if isinstance(details[1], tuple) else details[1]))

        sys.addaudithook(record)
        from qllm_exp.llm import Request, make_backend
        from qllm_exp.llm.online import Config

        config = Config(name="vllm", model="openai/some", api_base=sys.argv[1], key_env="PLANTED_KEY")
        backend = make_backend(config)
        assert "litellm" not in sys.modules
        (reply,) = backend.ask([Request(({"role": "user", "content": "hello"},), "call")])
        assert "litellm" in sys.modules and reply.text == "yes", reply
        assert reached == {"127.0.0.1"}, reached
        assert "OTHER_VARIABLE" not in os.environ
    """
    with Loopback(["yes"]) as server:
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        process = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), server.url],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(CONF.parent), "LITELLM_LOG": "DEBUG"},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
