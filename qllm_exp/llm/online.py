"""Language models behind HTTP, through litellm: the only module that imports it, and only when a model is asked or priced.

Each request is a call of its own (n=1), `concurrency` of them at a time. What another attempt may mend is tried again,
`attempts` times in all: rate limits, errors of the server, lost connections, timeouts, replies that are no completion,
empty answers. Between attempts it waits for the time that the server asks for (Retry-After), else for one that doubles
each time, with jitter. What no attempt can mend is a UserError at once.
"""

import asyncio
import contextlib
import email.utils
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, Reply, Request
from qllm_exp.llm.redaction import redacted, without_secrets
from qllm_exp.utils.text import count


@dataclass
class Config(schema.LlmConfig):
    """A model behind an HTTP interface, called through litellm."""

    name: str = ""
    backend: str = "online"
    model: str = ""
    api_base: str = field(default="", metadata={"identity": False})
    key_env: str = field(default="", metadata={"identity": False})
    temperature: float | None = schema.number(1.0, 0, 2)
    top_p: float | None = schema.number(None, 0, 1)
    max_tokens: int = schema.number(8192, 1)
    timeout_s: float = schema.number(300.0, 1, identity=False)
    attempts: int = schema.number(6, 1, 100, identity=False)
    concurrency: int = schema.number(8, 1, 1024, identity=False)
    usd_per_million_in: float | None = schema.number(None, 0, identity=False)
    usd_per_million_out: float | None = schema.number(None, 0, identity=False)


log = logging.getLogger(__name__)

FIRST_WAIT_S = 1.0  # before the second attempt; doubled before each further one
LONGEST_WAIT_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0  # a server that asks for more is not waited for

_jitter = random.Random()  # not the generator that runs are seeded through
_LONGEST_REASON = 300  # characters
_BYTES_PER_TOKEN = 2.5  # of UTF-8; tokenizers in use take 3 to 5 for prose, code and tables
_TOKENS_PER_MESSAGE = 16  # what a chat template adds
_TRY_AGAIN = (408, 409, 425, 429)  # the only statuses below 500 that another attempt may mend


def make(config: Config) -> Backend:
    """The backend of a configuration; UserError where the model is missing or prices are given by half."""
    if not config.model:
        raise UserError("llm.model is empty: give it as provider/name, e.g. llm.model=openai/gpt-6.1-sol.")
    if (config.usd_per_million_in is None) != (config.usd_per_million_out is None):
        raise UserError("Give both llm.usd_per_million_in and llm.usd_per_million_out, or neither.")
    return OnlineBackend(config)


@dataclass
class _Spent:
    """What the attempts at one request have cost. `usd`: None once a price is unknown."""

    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0


@dataclass(frozen=True)
class _Answer:
    text: str
    model: str


@dataclass(frozen=True)
class _Failure:
    """Why an attempt gave no answer.

    Attributes:
        advice: what the user can do.
        after_s: the wait that the server asks for. last: another attempt would end alike. fatal: so would any other call.
    """

    reason: str
    advice: str
    after_s: float | None = None
    last: bool = False
    fatal: bool = False


class OnlineBackend(Backend):
    """See the module. Holds no key: it is read from the environment for every call. For one thread at a time."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """See Backend. May be called where an event loop runs already (a notebook)."""
        self.check()
        if not _loop_runs():
            return asyncio.run(self._ask(requests))
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._ask(requests)).result()

    def check(self) -> None:
        """UserError where the key is missing."""
        _key(self._config)

    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """See Backend. The prompt is taken to have a token per 2.5 bytes, the answer to have max_tokens."""
        prices = self._prices()
        if prices is None:
            return None
        messages = [message for request in requests for message in request.messages]
        size = sum(len(message["content"].encode()) for message in messages)
        tokens_in = math.ceil(size / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(messages)
        return tokens_in * prices[0] + len(requests) * self._config.max_tokens * prices[1]

    def _prices(self) -> tuple[float, float] | None:
        """The highest price of a token of a prompt and of an answer, in US dollars."""
        config = self._config
        if config.usd_per_million_in is not None and config.usd_per_million_out is not None:
            return config.usd_per_million_in / 1e6, config.usd_per_million_out / 1e6
        table, (provider, _, name) = _litellm().model_cost, config.model.partition("/")
        known = table.get(config.model) or table.get(name, {})
        if known.get("litellm_provider") != provider and config.model not in table:
            return None
        sent = [known.get("input_cost_per_token"), known.get("cache_creation_input_token_cost")]
        answered = [known.get("output_cost_per_token"), known.get("output_cost_per_reasoning_token")]
        if sent[0] is None or answered[0] is None:
            return None
        return max(price or 0.0 for price in sent), max(price or 0.0 for price in answered)

    async def _ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        litellm = _litellm()
        places = asyncio.Semaphore(self._config.concurrency)
        tasks = [asyncio.create_task(self._answer(request, places)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()  # it goes by the event loop's id, which a later one can have

    async def _answer(self, request: Request, places: asyncio.Semaphore) -> Reply | CallFailed:
        spent, attempts, start, attempt = _Spent(), self._config.attempts, 0.0, 0
        while True:
            attempt += 1
            async with places:
                start = start or time.monotonic()
                outcome = await self._attempt(request, spent)
            seconds = time.monotonic() - start
            if isinstance(outcome, _Answer):
                counts = (spent.tokens_in, spent.tokens_out, spent.usd)
                return Reply(outcome.text, outcome.model, *counts, seconds=seconds, attempts=attempt)
            if outcome.fatal:
                raise UserError(f"{self._who()} {outcome.reason}. {outcome.advice}")
            if outcome.last or attempt == attempts:
                tries = f"{count(attempt, 'attempt')}, {seconds:.0f} s"
                text = f"{self._who()} {outcome.reason} ({request.name}; {tries}). {outcome.advice}"
                return CallFailed(text, spent.usd)
            wait = wait_s(attempt, outcome.after_s)
            told = "%s %s (%s; attempt %d of %d). The next one is in %.1f s."
            log.warning(told, self._who(), outcome.reason, request.name, attempt, attempts, wait)
            await asyncio.sleep(wait)

    async def _attempt(self, request: Request, spent: _Spent) -> _Answer | _Failure:
        config = self._config
        try:
            call = _litellm().acompletion(messages=[dict(one) for one in request.messages], **_arguments(config))
            response = await asyncio.wait_for(call, config.timeout_s)  # litellm's own limit is for each read
        except Exception as error:  # the boundary to a library that raises anything; Ctrl-C is none of these
            return self._failure(error)
        self._count(response, spent)
        choices = getattr(response, "choices", None) or []
        text = getattr(choices[0].message, "content", None) if choices else None
        finish = choices[0].finish_reason if choices else None
        if finish == "length":
            more = f"Raise llm.max_tokens={config.max_tokens}; what a model thinks before it answers counts too."
            return _Failure("was cut off by llm.max_tokens", more, last=True)
        if finish == "content_filter":
            return _Failure("was cut off by the provider's content filter", "Choose another llm.model.")
        if not isinstance(text, str) or not text.strip():
            return _Failure("gave an empty answer", "Choose another llm.model, or raise llm.attempts.")
        model = str(getattr(response, "model", None) or config.model)
        return _Answer(without_secrets(text, config.key_env), redacted(model, config.key_env))

    def _count(self, response: Any, spent: _Spent) -> None:
        usage = getattr(response, "usage", None)
        tokens_in, tokens_out = (int(getattr(usage, f"{kind}_tokens", 0) or 0) for kind in ("prompt", "completion"))
        spent.tokens_in += tokens_in
        spent.tokens_out += tokens_out
        config = self._config
        usd: float | None
        if config.usd_per_million_in is not None and config.usd_per_million_out is not None:
            usd = (tokens_in * config.usd_per_million_in + tokens_out * config.usd_per_million_out) / 1e6
        else:
            try:
                usd = float(_litellm().completion_cost(completion_response=response, model=config.model))
            except Exception:  # a bare one for a model that is not in the table
                usd = None
        spent.usd = None if usd is None or spent.usd is None else spent.usd + usd

    def _failure(self, error: Exception) -> _Failure:
        """What an exception means. It keeps no tie to the exception, whose request holds the key."""
        config = self._config
        model = f"llm.model={config.model}"
        address = f"llm.api_base={redacted(config.api_base, config.key_env)}" if config.api_base else "the provider"
        status = getattr(error, "status_code", None)
        if isinstance(error, TimeoutError) or status == 408:
            return _Failure(
                f"gave no answer in llm.timeout_s={config.timeout_s:g}", "Raise it, or lower llm.concurrency."
            )
        said = redacted(_said(error), config.key_env)[:_LONGEST_REASON]  # cut last: half a key is hard to find
        after = _retry_after_s(error)
        longer = after is not None and after > LONGEST_RETRY_AFTER_S
        if longer:
            said += f"; it asks for a pause of {after:.0f} s"
        if status in _TRY_AGAIN:
            advice = "Lower llm.concurrency, raise llm.attempts, or check the account's limits."
            return _Failure(f"is busy ({status}: {said})", advice, after, last=longer)
        if not isinstance(status, int) or not 400 <= status < 500:
            advice = f"Check that {address} answers and serves {model}."
            return _Failure(f"failed: {said}", advice, after, last=longer)
        if status in (401, 403):
            held = f"the environment variable {config.key_env}" if config.key_env else "llm.key_env, which is empty"
            return _Failure(
                f"refused the key ({status}: {said})", f"Check {held}; also {model}, {address}.", fatal=True
            )
        if status == 402:
            return _Failure(f"wants to be paid ({said})", "Check the balance of the account.", fatal=True)
        if status == 404:
            return _Failure(f"was not found (404: {said})", f"Check {model} and {address}.", fatal=True)
        sampling = "llm.max_tokens, llm.temperature and llm.top_p (null: not sent; some models refuse them)"
        return _Failure(f"refused the request ({status}: {said})", f"Check {model}, {address}, {sampling}.", fatal=True)

    def _who(self) -> str:
        return f"llm={self._config.name} ({self._config.model})"


def wait_s(attempt: int, asked_s: float | None) -> float:
    """Seconds to wait after that many failed attempts; `asked_s`: what the server asks for. Both with jitter."""
    if asked_s is not None:
        return asked_s * _jitter.uniform(1.0, 1.1)
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 30)) * _jitter.uniform(0.5, 1.0)


def _key(config: Config) -> str | None:
    """The key to send; UserError where the environment has none. None leaves it to litellm."""
    if not config.key_env:
        # A server of one's own wants no key, but OpenAI's client wants one; without this litellm would send it
        # another provider's key from the environment.
        return "none" if config.api_base else None
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        raise UserError(
            f"llm={config.name} needs a key, and the environment variable {config.key_env} is not set. "
            f"Type: export {config.key_env}=...  Or use llm=bundled, which needs none."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"The environment variable {config.key_env} holds no key: it has spaces or odd characters.")
    return key


def _arguments(config: Config) -> dict[str, Any]:
    sampling = {"temperature": config.temperature, "top_p": config.top_p}
    return {
        "model": config.model,
        "api_base": config.api_base or None,
        "api_key": _key(config),
        "max_tokens": config.max_tokens,
        "timeout": config.timeout_s,
        "max_retries": 0,
        **{name: value for name, value in sampling.items() if value is not None},
    }


def _retry_after_s(error: Exception) -> float | None:
    """What the Retry-After header says, as seconds or as a date; None without one that can be read."""
    sources = (
        getattr(error, "litellm_response_headers", None),
        getattr(getattr(error, "response", None), "headers", None),
    )
    given = next((value for one in sources for name, value in _items(one) if name.lower() == "retry-after"), None)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _items(headers: Mapping[str, str] | None) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in (headers or {}).items()]


def _said(error: Exception) -> str:
    """What the provider or the library says: one line, without litellm's class names or the JSON around it."""
    text = re.sub(r"^(?:(?:litellm\.)?\w+(?:Error|Exception|Timeout)(?::| -) )+", "", str(error).strip())
    found = re.search(r'"(?:message|error)":\s*("(?:[^"\\]|\\.)*")', text)
    with contextlib.suppress(ValueError):
        text = json.loads(found[1]) if found else text
    return text.strip().partition("\n")[0].rstrip(". ") or type(error).__name__


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _litellm() -> Any:
    """The library, told to contact nobody but the model, to write nothing and to remember nothing."""
    # Before the import: its tables come from the package, not from the network, and no .env file is read.
    for name, value in (("MODEL_COST_MAP", "True"), ("ANTHROPIC_BETA_HEADERS", "True")):
        os.environ[f"LITELLM_LOCAL_{name}"] = value
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    import litellm

    litellm.suppress_debug_info = True
    litellm.set_verbose = False
    litellm.telemetry = False
    litellm.turn_off_message_logging = True
    litellm.disable_hf_tokenizer_download = True
    litellm.drop_params = False  # what a model refuses is an error, not left out in silence
    litellm.cache = None
    for logger in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai", "httpx", "httpcore", "aiohttp"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return litellm
