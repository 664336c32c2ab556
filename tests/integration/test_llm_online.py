"""Language models over HTTP: unmodified litellm calls a server on this machine that answers correctly or with faults."""

import asyncio
import dataclasses
import email.utils
import gc
import json
import logging
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
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
from qllm_exp.credit.stored_function import bundled_path, load
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import Backend, CallFailed, Reply, Request, http_client, make_backend, online
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.llm.redaction import MAX_MESSAGE, redact
from qllm_exp.tfcaf import main

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


def test_a_server_that_is_not_there_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "UNREACHABLE_S", 0.1)
    with Loopback([]) as server:
        address = server.url.replace("http://", "http://user:pa55-word@")
    for key_env in ("PLANTED_KEY", ""):
        try:
            outcome: object = single_answer(server, api_base=address, attempts=2, key_env=key_env)
        except UserError as error:
            outcome = error
        assert isinstance(outcome, UserError) and "127.0.0.1" in str(outcome)
        assert "pa55" not in str(outcome) and "user" not in str(outcome)


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


def spread(body: bytes, times: int) -> Answer:
    """Make an answer that is compressed to a thousandth."""
    compressor = zlib.compressobj(wbits=31)
    raw = b"".join(compressor.compress(body) for _ in range(times)) + compressor.flush()
    return Answer(raw=raw, headers={"Content-Encoding": "gzip"})


MEGABYTE = b" " * 2**20
LARGE = {
    "declared": Answer(raw=b"{}", declared=http_client.MAX_RESPONSE_BYTES + 1),
    "compressed": spread(MEGABYTE, 64),
    "compressed twice": Answer(raw=b"x", headers={"Content-Encoding": "gzip, gzip"}),
    "compressed otherwise": Answer(raw=b"x", headers={"Content-Encoding": "zstd"}),
}


@pytest.mark.parametrize(
    "model", ["openai/some", "hosted_vllm/some", "anthropic/some", "gemini/some", "ollama_chat/some"]
)
@pytest.mark.parametrize("answer", LARGE)
def test_a_response_that_is_too_large_is_a_failed_call_in_bounded_memory(answer: str, model: str) -> None:
    with Loopback(lambda call: LARGE[answer]) as server:
        address = server.url if model.startswith(("openai", "hosted")) else server.root
        failed = single_answer(server, model=model, api_base=address)
    assert isinstance(failed, CallFailed) and len(server.calls) == 1
    assert re.search(r"sent a response (of more than 8 MB|compressed as .*, which was not requested)", str(failed))
    assert server.calls[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_of_a_large_error_the_beginning_is_read(name: str) -> None:
    body = b'{"error": {"message": "out of memory"}}' + MEGABYTE
    answer = Answer(raw=body) if name == "plain" else spread(body, 64)
    with Loopback([dataclasses.replace(answer, status=500)] * 2) as server:
        failed = single_answer(server, attempts=2)
    assert isinstance(failed, CallFailed) and "failed: out of memory" in str(failed) and len(server.calls) == 2


def test_a_response_in_parts_is_limited_as_well() -> None:
    """By the limited stream itself, since the server here always declares the length."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(len(MEGABYTE))
            yield MEGABYTE

    async def read_all(headers: dict[str, str]) -> None:
        response = httpx.Response(200, headers=headers, content=endless())
        await http_client.limit_response(response)
        await response.aread()

    for headers in ({}, {"Content-Encoding": "gzip"}, {"Content-Type": "text/html; charset=punycode"}):
        read: list[int] = []
        with pytest.raises((http_client.ResponseRefused, httpx.DecodingError)):
            asyncio.run(read_all(headers))
        assert sum(read) <= http_client.MAX_RESPONSE_BYTES + 2**20


def test_an_ordinary_compressed_response_is_read() -> None:
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE}
    body["choices"] = [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]
    for name, wbits in (("gzip", 31), ("deflate", 15)):
        compressor = zlib.compressobj(wbits=wbits)
        raw = compressor.compress(json.dumps(body).encode()) + compressor.flush()
        with Loopback([Answer(raw=raw, headers={"Content-Encoding": name})]) as server:
            reply = single_answer(server)
        assert isinstance(reply, Reply) and reply.text == "yes"


UNBROKEN = {
    "word": "a" * 64_000,
    "key start": KEY[:8] * 8_000,
    "key end": KEY[-8:] * 8_000,
    "masks": "sk*a" * 16_000,
    "dots": ".." * 32_000,
    "quotes": '"message": "' * 5_000,
    "addresses": "http://" * 9_000,
    "queries": "?key=" * 12_000,
    "brackets": "[" * 64_000,
    "escapes": '{"error": "' + "\\" * 64_000,
}


@pytest.mark.parametrize("name", UNBROKEN)
def test_a_long_error_takes_no_time(name: str) -> None:
    text = UNBROKEN[name]
    start = time.process_time()
    assert KEY[:8] not in redact(text, "PLANTED_KEY") and KEY[-8:] not in redact(text, "PLANTED_KEY")
    online._error_message(Exception(text))
    assert time.process_time() - start < 1
    for model in ("openai/some", "hosted_vllm/some"):
        answers = [failure(500, text), Answer(status=500, raw=text.encode()), Answer(raw=text.encode())]
        with Loopback(answers) as server:
            start = time.process_time()
            failed = single_answer(server, attempts=3, model=model)
        assert isinstance(failed, CallFailed) and len(str(failed)) < 1000 and len(server.calls) == 3
        assert time.process_time() - start < 5


def test_a_key_that_the_limit_divides_is_hidden() -> None:
    for length in range(MAX_MESSAGE - len(KEY), MAX_MESSAGE + 2):
        text = redact("x" * (length - 1) + f" {KEY}", "PLANTED_KEY")
        assert KEY[:4] not in text


WAITS = ["1e400", "nan", "-1", "9" * 5000, "x" * 5000, "Mon, 01 Jan 0001 00:00:00 -0000"]
WAITS += ["Mon, 01 Jan 2026 00:00:00 +99999999999999999999", "Mon, 01 Jan 99999 00:00:00 GMT"]


@pytest.mark.parametrize("value", WAITS)
def test_a_wait_that_is_no_time_is_ignored(value: str) -> None:
    with Loopback([failure(429, Retry_After=value), "good"]) as server:
        assert isinstance(single_answer(server), Reply)
    assert waited_s(server) < 10


def test_a_deeply_nested_response_is_retried() -> None:
    with Loopback([Answer(raw=b"[" * 100_000), Answer(raw=b'{"choices": ' + b"[" * 100_000), "good"]) as server:
        reply = single_answer(server)
    assert isinstance(reply, Reply) and reply.attempts == 3


def test_an_answer_with_half_of_a_surrogate_pair_can_be_sent_and_stored() -> None:
    with Loopback(["a \ud800 b"], model="m" * 5_000) as server:
        reply = single_answer(server)
    assert isinstance(reply, Reply) and reply.text == "a ? b" and len(reply.model) == 200


def error(status: int, **fields: str) -> Answer:
    return Answer(status=status, raw=json.dumps({"error": {"message": "no", **fields}}).encode())


FINAL = {
    "quota": (error(429, type="insufficient_quota", code="insufficient_quota"), "refuses further calls (429: no)"),
    "billing": (error(429, code="billing_not_active"), "refuses further calls (429: no)"),
    "hard limit": (error(429, code="billing_hard_limit_reached"), "refuses further calls (429: no)"),
    "balance": (error(429, type="exceeded_current_quota_error"), "refuses further calls (429: no)"),
    "account": (error(503, code="account_deactivated"), "Check the balance, the limits and the state of the account"),
    "context": (error(500, code="context_length_exceeded"), "refuses so long a conversation (500: no)"),
    "model": (error(503, code="model_not_found"), "was not found (503: no). Check llm.model="),
}


@pytest.mark.parametrize(
    "model", ["openai/some", "hosted_vllm/some", "anthropic/some", "gemini/some", "ollama_chat/some"]
)
@pytest.mark.parametrize("name", FINAL)
def test_errors_that_no_attempt_can_fix_are_not_retried(name: str, model: str) -> None:
    answer, message = FINAL[name]
    with Loopback(lambda call: answer) as server, pytest.raises(UserError) as raised:
        single_answer(server, model=model, api_base=server.url if model.startswith("openai") else server.root)
    assert not isinstance(raised.value, CallFailed) and len(server.calls) == 1 and message in str(raised.value)


def test_an_ordinary_rate_limit_is_retried_whatever_it_mentions() -> None:
    answer = error(429, code="rate_limit_exceeded", message="limit reached; this is not insufficient_quota")
    with Loopback([answer, "good"]) as server:
        assert isinstance(single_answer(server), Reply)


@pytest.fixture
def refused_address() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


@pytest.mark.parametrize(
    "model", ["openai/some", "hosted_vllm/some", "anthropic/some", "gemini/some", "ollama_chat/some"]
)
def test_a_server_that_cannot_be_reached_is_one_error_after_a_few_seconds(
    model: str, refused_address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "UNREACHABLE_S", 0.3)
    config = OnlineConfig(name="own", model=model, api_base=refused_address, attempts=100)
    with pytest.raises(UserError, match=rf"cannot be reached at llm\.api_base={refused_address} .*Errno 111") as raised:
        make_backend(config).ask(requests(*"abcdefgh"))
    assert not isinstance(raised.value, CallFailed)
    warnings = [
        record for record in caplog.records if record.levelno == logging.WARNING and record.name == online.__name__
    ]
    assert len(warnings) <= 1, "the calls share the fault"


def test_a_name_that_is_not_known_and_a_server_without_tls_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "UNREACHABLE_S", 0.1)
    real_lookup = socket.getaddrinfo

    def look_up(host: str, *args: Any, **more: Any) -> Any:
        if host == "no-such-host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real_lookup(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with Loopback([]) as server:
        for address, fault in (
            ("http://no-such-host.invalid/v1", "Name or service not known"),
            (server.url.replace("http:", "https:"), "WRONG_VERSION_NUMBER|wrong version number"),
        ):
            with pytest.raises(UserError, match=rf"cannot be reached at .*({fault})"):
                single_answer(server, api_base=address)


def test_a_server_that_has_answered_is_waited_for_longer(refused_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "UNREACHABLE_S", 0.0)
    with Loopback(["yes"]) as server:
        config = settings(server, attempts=3)
        model = make_backend(config)
        assert isinstance(model.ask(requests("a"))[0], Reply)
        config.api_base = refused_address
        start = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached"):
            model.ask(requests("b"))
    assert time.monotonic() - start > online.FIRST_WAIT_S


USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
PROSE = "The nearest agent matters more than the others. " * 40


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -9, "completion_tokens": 10**40, "total_tokens": 0}])
@pytest.mark.parametrize("model", ["openai/some", "hosted_vllm/some"])
def test_tokens_that_the_server_does_not_report_are_counted(
    model: str, usage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": PROSE}, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    raw = json.dumps(body if usage is None else body | {"usage": usage}).encode()
    with Loopback(lambda call: Answer(raw=raw)) as server:
        prices = {"usd_per_million_in": 1.0, "usd_per_million_out": 10.0}
        replies = backend(server, model=model, **prices).ask(requests(PROSE, PROSE))
    for reply in replies:
        assert isinstance(reply, Reply) and reply.estimated
        assert 300 < reply.tokens_in < 600 and 300 < reply.tokens_out < 600  # 320 words
        assert reply.cost_usd == pytest.approx(reply.tokens_in * 1e-6 + reply.tokens_out * 10e-6)
    assert caplog.text.count("reports no token usage. Tokens and cost are estimates") == 1


def test_thoughts_and_answers_that_are_cut_off_are_counted_too() -> None:
    def answer(finish: str, **message: str) -> Answer:
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes", **message}, "finish_reason": finish}
        body = {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-6.1-sol", "choices": [choice]}
        return Answer(raw=json.dumps(body).encode())

    with Loopback([answer("stop", reasoning_content=PROSE), answer("length")]) as server:
        table = single_answer(server, model="openai/gpt-6.1-sol", temperature=None)
        cut_off = single_answer(server, usd_per_million_in=1.0, usd_per_million_out=10.0, max_tokens=1000)
    assert isinstance(table, Reply) and table.tokens_out > 300
    assert table.cost_usd == pytest.approx(table.tokens_in * 2e-6 + table.tokens_out * 10e-6)
    assert isinstance(cut_off, CallFailed) and cut_off.cost_usd is not None and 0.01 < cut_off.cost_usd < 0.0101


def test_reported_tokens_are_no_estimate() -> None:
    with Loopback(["yes"]) as server:
        reply = single_answer(server)
    assert isinstance(reply, Reply) and not reply.estimated


def test_answers_are_passed_on_as_they_arrive_and_a_kill_loses_only_the_others(tmp_path: Path) -> None:
    first_is_stored = threading.Event()

    def script(call: Call) -> Answer:
        return Answer(f"answer {call.prompt}", before=lambda: call.prompt == "a" or first_is_stored.wait(60))

    def store(request: Request, answer: Reply | CallFailed) -> None:
        answers.append(request.name)
        first_is_stored.set()

    answers: list[str] = []
    with Loopback(script) as server:
        backend(server).ask_each(requests("a", "b"), store)
    assert answers == ["call-0", "call-1"]

    def fail(request: Request, answer: Reply | CallFailed) -> None:
        raise UserError("disk full")

    with Loopback(lambda call: Answer("yes", wait_s=0 if call.prompt == "a" else 30)) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match="disk full"):
            backend(server).ask_each(requests("a", "b"), fail)
    assert time.monotonic() - start < 25, "the other call was cancelled"


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


SOURCE = """\
import torch

def credit_assignment(agents_q, global_state):
    return agents_q.mean(dim=1, keepdim=True)
"""


def generate(api_base: str, cache: Path, *more: str) -> int:
    """Run `tfcaf generate` for one candidate, in this process."""
    one_call = ["tfcaf.candidates=1", "tfcaf.rounds=1", "tfcaf.retries=0", f"tfcaf.cache={cache}"]
    server = ["env=matrix", "llm=vllm", f"llm.api_base={api_base}"]
    prices = ["llm.usd_per_million_in=1", "llm.usd_per_million_out=10"]
    return main(["generate", *server, *prices, *one_call, *more])


def test_a_stored_function_says_that_its_cost_is_an_estimate(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def accept_all(sources: list[str], *more: object) -> list[Accepted]:
        program = load(bundled_path("matrix", "climbing")).program
        return [Accepted(source, "credit_assignment", program, True, ()) for source in sources]

    monkeypatch.setattr(provide, "verify_all", accept_all)
    choice = {"index": 0, "message": {"role": "assistant", "content": SOURCE}, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    with Loopback(lambda call: Answer(raw=json.dumps(body).encode())) as server:
        assert generate(server.url, tmp_path, "tfcaf.budget_usd=0.01") == 2 and not server.calls
        assert generate(server.url, tmp_path, "tfcaf.budget_usd=1") == 0
    (path,) = tmp_path.glob("*.json")
    stored = json.loads(path.read_text())
    assert stored["cost"]["usage"] == "estimated" and stored["transcript"][0]["usage"] == "estimated"
    assert stored["cost"]["tokens_in"] > 500 and stored["cost"]["tokens_out"] > 20 and stored["cost"]["usd"] > 0
    assert "tokens and cost are estimates: the server reports none" in caplog.text
    assert main(["show", stored["key"][:12], f"tfcaf.cache={tmp_path}"]) == 0
    assert '"usage": "estimated"' in capfd.readouterr().out


def test_a_refused_port_ends_a_generation_with_one_error(
    tmp_path: Path, refused_address: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "UNREACHABLE_S", 0.1)
    assert generate(refused_address, tmp_path, "tfcaf.retries=3") == 2
    errors = capfd.readouterr().err
    assert errors.count("error:") == 1 and "cannot be reached" in errors and "Traceback" not in errors
    assert "refused" not in errors.replace("Connection refused", "") and not list(tmp_path.glob("*.claim*"))
