"""Language models behind HTTP, called through litellm.

This is the only module that imports litellm, and only when a model is called or priced.

Each request is a call of its own (n=1), with up to `concurrency` calls at a time. Failures that another attempt may fix are
retried, up to `attempts` attempts in total: rate limits, server errors, lost connections, timeouts, responses that are not a
completion, empty answers. The wait between attempts is the time that the server requests (Retry-After), otherwise it doubles
each time, with jitter. Failures that no attempt can fix raise a UserError immediately. So does a server that cannot be
reached, after a few seconds if it has not answered before.

Everything that a server sends is untrusted: what is read of it, and the work on it, is bounded.
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
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.llm import Backend, CallFailed, OnAnswer, Reply, Request
from qllm_exp.llm.redaction import MAX_MESSAGE, hide_secrets, redact
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
LONGEST_RETRY_AFTER_S = 600.0  # the call fails if a server requests a longer wait
UNREACHABLE_S = 5.0  # a server that has not answered before is tried for so long

_jitter = random.Random()  # separate from the global generator, which runs seed
_LONGEST_REASON = 300  # characters
_LONGEST_NAME = 200  # characters of the name of a model
_LONGEST_HEADER = 100  # characters of a Retry-After header; a date has 29
_MOST_TOKENS = 10**9  # a larger number is not a count of tokens
_BYTES_PER_TOKEN = 2.5  # of UTF-8; common tokenizers have 3 to 5 for prose, code and tables
_TOKENS_PER_MESSAGE = 16  # added by a chat template
_RETRYABLE_STATUSES = (408, 409, 425, 429)  # the only statuses below 500 that another attempt may fix

# Error codes that no attempt can fix. Some come with a status that otherwise means a server that is busy.
_ACCOUNT_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "account_deactivated",
    "access_terminated",
    "insufficient_balance",
    "exceeded_current_quota_error",
}
_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_MODEL_CODES = {"model_not_found"}
_CODE = re.compile(r"""["'](?:code|type)["']: ?["'](\w{1,64})["']""")  # in JSON, or in a dictionary that Python printed


def make(config: Config) -> Backend:
    """Make the backend of a configuration; raises a UserError if the model or one of the two prices is missing."""
    if not config.model:
        raise UserError("llm.model is empty: set it to provider/name, e.g. llm.model=openai/gpt-6.1-sol.")
    if (config.usd_per_million_in is None) != (config.usd_per_million_out is None):
        raise UserError("Set both llm.usd_per_million_in and llm.usd_per_million_out, or neither.")
    return OnlineBackend(config)


@dataclass
class _Cost:
    """Cost of all attempts of a request.

    Attributes:
        tokens_in: tokens of the prompts.
        tokens_out: tokens of the answers.
        usd: US dollars; None once a price is unknown.
        estimated: whether the tokens of an attempt are an estimate.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0
    estimated: bool = False


@dataclass(frozen=True)
class _Answer:
    """Text of an answer, and the model that the provider names."""

    text: str
    model: str


@dataclass(frozen=True)
class _Failure:
    """Why an attempt has no answer.

    Attributes:
        reason: what happened, as the predicate of a sentence about the model.
        advice: what the user can do.
        retry_after_s: wait in seconds that the server requests; None if it requests none.
        last: whether another attempt would fail as well.
        fatal: whether every other call would fail as well.
        unreachable: whether no connection could be made, so that every other call would fail now as well.
    """

    reason: str
    advice: str
    retry_after_s: float | None = None
    last: bool = False
    fatal: bool = False
    unreachable: bool = False


class OnlineBackend(Backend):
    """Calls a model through litellm, see the description of the module.

    It holds no key, but reads it from the environment for every call. Not thread-safe.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._has_answered = self._has_warned = False
        self._fault = ""  # the last reason why the server was unreachable

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Send all requests, see `Backend.ask`. Also works inside a running event loop, e.g. in a notebook."""
        return self.ask_each(requests, lambda request, answer: None)

    def ask_each(self, requests: Sequence[Request], on_answer: OnAnswer) -> list[Reply | CallFailed]:
        """Send all requests and pass each answer on as it arrives, see `Backend.ask_each`."""
        self.check()
        if not _is_loop_running():
            return asyncio.run(self._ask(requests, on_answer))
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._ask(requests, on_answer)).result()

    def check(self) -> None:
        """Raise a UserError if the key is missing."""
        _key(self._config)

    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """Return an upper bound of the cost, see `Backend.worst_case_usd`.

        It assumes a token per 2.5 bytes of the prompt, and an answer of max_tokens.
        """
        prices = self._prices()
        if prices is None:
            return None
        usd_per_token_in, usd_per_token_out = prices
        messages = [message for request in requests for message in request.messages]
        size = sum(len(message["content"].encode()) for message in messages)
        tokens_in = math.ceil(size / _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(messages)
        return tokens_in * usd_per_token_in + len(requests) * self._config.max_tokens * usd_per_token_out

    def _prices(self) -> tuple[float, float] | None:
        """Return the highest price of a prompt token and of an answer token in US dollars; None if unknown."""
        config = self._config
        if config.usd_per_million_in is not None and config.usd_per_million_out is not None:
            return config.usd_per_million_in / 1e6, config.usd_per_million_out / 1e6
        table, (provider, _, name) = _litellm().model_cost, config.model.partition("/")
        known = table.get(config.model) or table.get(name, {})
        if known.get("litellm_provider") != provider and config.model not in table:
            return None
        prices_in = [known.get("input_cost_per_token"), known.get("cache_creation_input_token_cost")]
        prices_out = [known.get("output_cost_per_token"), known.get("output_cost_per_reasoning_token")]
        if prices_in[0] is None or prices_out[0] is None:
            return None
        return max(price or 0.0 for price in prices_in), max(price or 0.0 for price in prices_out)

    async def _ask(self, requests: Sequence[Request], on_answer: OnAnswer) -> list[Reply | CallFailed]:
        """Answer all requests in this event loop; clean up what litellm keeps for it."""
        litellm = _litellm()
        slots = asyncio.Semaphore(self._config.concurrency)

        async def answer(request: Request) -> Reply | CallFailed:
            reply = await self._answer(request, slots)
            on_answer(request, reply)
            return reply

        tasks = [asyncio.create_task(answer(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await litellm.close_litellm_async_clients()
            # litellm caches clients by the id of the event loop, which a later loop can have again.
            litellm.in_memory_llm_clients_cache.flush_cache()

    async def _answer(self, request: Request, slots: asyncio.Semaphore) -> Reply | CallFailed:
        """Answer a request with up to `attempts` attempts. `slots` limits the number of concurrent calls."""
        cost, max_attempts, start, attempt = _Cost(), self._config.attempts, 0.0, 0
        while True:
            attempt += 1
            async with slots:
                start = start or time.monotonic()
                outcome = await self._attempt(request, cost)
            seconds = time.monotonic() - start
            if isinstance(outcome, _Answer):
                self._has_answered = True
                return Reply(
                    outcome.text,
                    outcome.model,
                    tokens_in=cost.tokens_in,
                    tokens_out=cost.tokens_out,
                    cost_usd=cost.usd,
                    seconds=seconds,
                    attempts=attempt,
                    estimated=cost.estimated,
                )
            gives_up = attempt == max_attempts or (not self._has_answered and seconds > UNREACHABLE_S)
            if outcome.fatal or (outcome.unreachable and gives_up):
                raise UserError(f"{self._label()} {outcome.reason}. {outcome.advice}")
            if outcome.last or attempt == max_attempts:
                tries = f"{count(attempt, 'attempt')}, {seconds:.0f} s"
                message = f"{self._label()} {outcome.reason} ({request.name}; {tries}). {outcome.advice}"
                return CallFailed(message, cost.usd)
            wait = wait_s(attempt, outcome.retry_after_s)
            is_known_fault = outcome.unreachable and outcome.reason == self._fault
            if outcome.unreachable:
                self._fault = outcome.reason
                wait = wait if self._has_answered else min(wait, UNREACHABLE_S / 4)
            log.log(
                logging.DEBUG if is_known_fault else logging.WARNING,  # every open call has the same fault
                "%s %s (%s; attempt %d of %d). Retrying in %.1f s.",
                self._label(),
                outcome.reason,
                request.name,
                attempt,
                max_attempts,
                wait,
            )
            await asyncio.sleep(wait)

    async def _attempt(self, request: Request, cost: _Cost) -> _Answer | _Failure:
        """Make one call, and add its cost to `cost`."""
        config = self._config
        try:
            messages = [dict(message) for message in request.messages]
            call = _litellm().acompletion(messages=messages, **_arguments(config))
            response = await asyncio.wait_for(call, config.timeout_s)  # litellm's own timeout applies to each read
        except Exception as error:  # litellm can raise any Exception; KeyboardInterrupt is not one
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # litellm may turn a cancellation into an error of its own
                raise asyncio.CancelledError from None
            return self._failure(error)
        choices = getattr(response, "choices", None) or []
        text = getattr(choices[0].message, "content", None) if choices else None
        finish = choices[0].finish_reason if choices else None
        self._add_cost(request, response, cost)
        if finish == "length":
            advice = f"Raise llm.max_tokens={config.max_tokens}; the reasoning before the answer counts too."
            return _Failure("was cut off by llm.max_tokens", advice, last=True)
        if finish == "content_filter":
            return _Failure("was cut off by the provider's content filter", "Choose another llm.model.")
        if not isinstance(text, str) or not text.strip():
            return _Failure("returned an empty answer", "Choose another llm.model, or raise llm.attempts.")
        text = text.encode(errors="replace").decode()  # half of a surrogate pair cannot be sent back to any model
        model = str(getattr(response, "model", None) or config.model)
        return _Answer(hide_secrets(text, config.key_env), redact(model, config.key_env)[:_LONGEST_NAME])

    def _tokens(self, request: Request, response: Any) -> tuple[int, int, bool]:
        """Return the tokens of the prompt and of the answer, and whether they are an estimate.

        Tokens that the server does not report are counted with the model's tokenizer, if litellm has it.
        """
        model, usage = self._config.model, getattr(response, "usage", None)
        tokens_in = _reported_tokens(getattr(usage, "prompt_tokens", None))
        tokens_out = _reported_tokens(getattr(usage, "completion_tokens", None))
        choices = getattr(response, "choices", None)
        if not choices:
            return tokens_in, tokens_out, False
        fields = (getattr(choices[0].message, name, None) for name in ("content", "reasoning_content"))
        texts = [text for text in fields if isinstance(text, str) and text.strip()]
        is_reported = tokens_in > 0 and (tokens_out > 0 or not texts)
        if not tokens_in:
            tokens_in = _count_tokens(model, [message["content"] for message in request.messages])
        if not tokens_out:
            is_full = choices[0].finish_reason == "length"
            tokens_out = self._config.max_tokens if is_full else _count_tokens(model, texts)
        return tokens_in, tokens_out, not is_reported

    def _add_cost(self, request: Request, response: Any, cost: _Cost) -> None:
        """Add the tokens and the price of a response to `cost`."""
        tokens_in, tokens_out, is_estimate = self._tokens(request, response)
        cost.tokens_in += tokens_in
        cost.tokens_out += tokens_out
        cost.estimated |= is_estimate
        config = self._config
        if is_estimate:
            response.usage = _litellm().Usage(prompt_tokens=tokens_in, completion_tokens=tokens_out)
            if not self._has_warned:
                log.warning("%s reports no token usage. Tokens and cost are estimates.", self._label())
                self._has_warned = True
        usd: float | None
        if config.usd_per_million_in is not None and config.usd_per_million_out is not None:
            usd = (tokens_in * config.usd_per_million_in + tokens_out * config.usd_per_million_out) / 1e6
        else:
            try:
                usd = float(_litellm().completion_cost(completion_response=response, model=config.model))
            except Exception:  # litellm raises a plain Exception for a model that is not in its table
                usd = None
        cost.usd = None if usd is None or cost.usd is None else cost.usd + usd

    def _failure(self, error: Exception) -> _Failure:
        """Explain an exception. The result holds no reference to the exception, whose request contains the key."""
        from qllm_exp.llm import http_client

        config = self._config
        model = f"llm.model={config.model}"
        address = f"llm.api_base={redact(config.api_base, config.key_env)}" if config.api_base else "the provider"
        status = getattr(error, "status_code", None)
        chain = http_client.causes(error)
        refused = next((cause for cause in chain if isinstance(cause, http_client.ResponseRefused)), None)
        if refused is not None:
            return _Failure(str(refused), f"Check that {address} serves {model}.", last=True)
        fault = http_client.connection_fault(chain)
        if fault:
            advice = "Check that the server is running, and the network" if config.api_base else "Check the network"
            return _Failure(
                f"cannot be reached at {address} ({redact(fault, config.key_env)[:_LONGEST_REASON]})",
                f"{advice}. Answers that have arrived are kept: the same command continues from them.",
                fatal=http_client.is_certificate_fault(chain),
                unreachable=True,
            )
        if isinstance(error, TimeoutError) or status == 408:
            return _Failure(
                f"did not answer within llm.timeout_s={config.timeout_s:g}",
                "Raise llm.timeout_s, or lower llm.concurrency.",
            )
        # Shortened after redaction, because a truncated key would not be recognised.
        message = redact(_error_message(error), config.key_env)[:_LONGEST_REASON]
        retry_after = _retry_after_s(error)
        too_long = retry_after is not None and retry_after > LONGEST_RETRY_AFTER_S
        if too_long:
            message += f"; it requests a wait of {retry_after:.0f} s"
        codes = {code for cause in chain for code in _CODE.findall(str(cause)[:MAX_MESSAGE])}
        if codes & _ACCOUNT_CODES:
            advice = "Check the balance, the limits and the state of the account."
            return _Failure(f"refuses further calls ({status}: {message})", advice, fatal=True)
        if codes & _CONTEXT_CODES:
            advice = f"Choose a {model} with a longer context, or lower tfcaf.memory or llm.max_tokens."
            return _Failure(f"refuses so long a conversation ({status}: {message})", advice, fatal=True)
        if codes & _MODEL_CODES:
            return _Failure(f"was not found ({status}: {message})", f"Check {model} and {address}.", fatal=True)
        if status in _RETRYABLE_STATUSES:
            advice = "Lower llm.concurrency, raise llm.attempts, or check the account's limits."
            return _Failure(f"is busy ({status}: {message})", advice, retry_after, last=too_long)
        if not isinstance(status, int) or not 400 <= status < 500:
            advice = f"Check that {address} answers and serves {model}."
            return _Failure(f"failed: {message}", advice, retry_after, last=too_long)
        if status in (401, 403):
            key = f"the environment variable {config.key_env}" if config.key_env else "llm.key_env, which is empty"
            return _Failure(
                f"rejected the key ({status}: {message})", f"Check {key}; also {model}, {address}.", fatal=True
            )
        if status == 402:
            return _Failure(f"requires payment ({message})", "Check the balance of the account.", fatal=True)
        if status == 404:
            return _Failure(f"was not found (404: {message})", f"Check {model} and {address}.", fatal=True)
        sampling = (
            "llm.max_tokens, llm.temperature and llm.top_p (null omits an option that the model does not support)"
        )
        return _Failure(
            f"rejected the request ({status}: {message})", f"Check {model}, {address}, {sampling}.", fatal=True
        )

    def _label(self) -> str:
        """Return the name of the llm and its model, for messages."""
        return f"llm={self._config.name} ({self._config.model})"


def wait_s(attempt: int, retry_after_s: float | None) -> float:
    """Return the wait before the next attempt in seconds, with jitter.

    Args:
        attempt: number of failed attempts so far.
        retry_after_s: wait in seconds that the server requests; None if it requests none.
    """
    if retry_after_s is not None:
        return retry_after_s * _jitter.uniform(1.0, 1.1)
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 30)) * _jitter.uniform(0.5, 1.0)


def _key(config: Config) -> str | None:
    """Return the key to send, or None to leave it to litellm; raises a UserError if the environment has none."""
    if not config.key_env:
        # A server of one's own needs no key, but OpenAI's client does. Without a value here, litellm would send the
        # key of another provider from the environment.
        return "none" if config.api_base else None
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        raise UserError(
            f"llm={config.name} needs a key, but the environment variable {config.key_env} is not set. "
            f"Set it with: export {config.key_env}=...  Or use llm=bundled, which needs no key."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"The environment variable {config.key_env} is not a valid key: it contains spaces or special characters."
        )
    return key


def _arguments(config: Config) -> dict[str, Any]:
    """Return the arguments of a litellm call, without the messages."""
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


def _reported_tokens(value: Any) -> int:
    """Return the number of tokens that a server reports; 0 for a value that is not a number of tokens."""
    return int(value) if isinstance(value, int | float) and 0 < value <= _MOST_TOKENS else 0


def _count_tokens(model: str, texts: Sequence[str]) -> int:
    """Estimate the tokens of texts with the tokenizer that litellm has for the model, or by their size."""
    try:
        n_tokens = sum(int(_litellm().token_counter(model=model, text=text)) for text in texts)
    except Exception:  # a tokenizer that cannot be loaded, or fails on the text
        n_tokens = math.ceil(sum(len(text.encode(errors="replace")) for text in texts) / _BYTES_PER_TOKEN)
    return n_tokens + _TOKENS_PER_MESSAGE * len(texts)


def _retry_after_s(error: Exception) -> float | None:
    """Return the wait of a Retry-After header (seconds or a date) in seconds; None without a valid header."""
    headers = [
        *_header_items(getattr(error, "litellm_response_headers", None)),
        *_header_items(getattr(getattr(error, "response", None), "headers", None)),
    ]
    text = next((value for name, value in headers if name.lower() == "retry-after"), None)
    if text is None or len(text) > _LONGEST_HEADER:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):  # the second for a year or a time zone beyond all limits
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _header_items(headers: Mapping[str, str] | None) -> list[tuple[str, str]]:
    """Return names and values of headers as strings."""
    return [(str(name), str(value)) for name, value in (headers or {}).items()]


def _error_message(error: Exception) -> str:
    """Return the message of the provider or of litellm as one line, without class names and the JSON around it.

    Only the first MAX_MESSAGE characters are read.
    """
    text = str(error)[:MAX_MESSAGE].strip()
    text = re.sub(r"^(?:(?:litellm\.)?\w+(?:Error|Exception|Timeout)(?::| -) )+", "", text)
    match = re.search(r'"(?:message|error)":\s*("(?:[^"\\]|\\.)*")', text)
    with contextlib.suppress(ValueError):
        text = json.loads(match[1]) if match else text
    return text.strip().partition("\n")[0].rstrip(". ") or type(error).__name__


def _is_loop_running() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _litellm() -> Any:
    """Import litellm and configure it to contact nothing but the model, to write nothing and to cache nothing."""
    # Set before the import, so that its tables come from the package, not from the network, and no .env file is read.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    import litellm

    # A call that is cancelled while litellm prepares it in a thread leaves a coroutine that nothing awaits.
    warnings.filterwarnings("ignore", r"coroutine '.*completion' was never awaited", RuntimeWarning)
    litellm.suppress_debug_info = True
    litellm.set_verbose = False
    litellm.telemetry = False
    litellm.turn_off_message_logging = True
    litellm.disable_hf_tokenizer_download = True
    litellm.drop_params = False  # an unsupported option is an error and is not dropped silently
    litellm.cache = None
    from qllm_exp.llm import http_client

    http_client.install()
    for logger in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai", "httpx", "httpcore", "aiohttp"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return litellm
