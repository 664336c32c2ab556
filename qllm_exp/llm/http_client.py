"""The HTTP clients that litellm makes: limits on what they read, and the errors of a server that cannot be reached.

A response is untrusted: it may be endless, or small and compressed a thousandfold. Bytes are counted as they arrive and as
they are decompressed, so a response takes a bounded amount of memory before it is refused.

Imported only when a model is called, since its imports are slow.
"""

import errno
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import ModuleType
from typing import Any, cast

import aiohttp
import httpx

from qllm_exp.errors import UserError

MAX_RESPONSE_BYTES = 8 * 2**20  # after decompression; an answer of 128,000 tokens takes about 1 MB
MAX_ERROR_BYTES = 2**12  # of an error, which ends there
CONNECT_TIMEOUT_S = 10.0  # without a limit of its own, connecting could use all of llm.timeout_s

_ENCODINGS = {"gzip", "x-gzip", "deflate"}  # in one layer; the only ones that are decompressed
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS  # recognised by its header
_UNREACHABLE = (
    ConnectionRefusedError,
    socket.gaierror,
    ssl.SSLError,
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    httpx.ConnectTimeout,
)
_UNREACHABLE_NUMBERS = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}


class ResponseRefused(Exception):
    """A response is too large, or compressed in a way that nothing bounds. The message is the predicate of a sentence."""


def causes(error: BaseException) -> list[BaseException]:
    """Return an exception and the ones that it was raised from, outermost first; at most 20."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain and len(chain) < 20:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def connection_fault(chain: Sequence[BaseException]) -> str:
    """Return why no connection could be made, or '' if the error has another cause.

    Args:
        chain: the exception and the ones that it was raised from.
    """
    for error in chain:
        if isinstance(error, aiohttp.ConnectionTimeoutError | httpx.ConnectTimeout):
            return f"no connection within {CONNECT_TIMEOUT_S:g} s"
        if isinstance(error, _UNREACHABLE) or getattr(error, "errno", None) in _UNREACHABLE_NUMBERS:
            return str(chain[-1]) or type(chain[-1]).__name__
    return ""


def is_certificate_fault(chain: Sequence[BaseException]) -> bool:
    """Whether the server's certificate was refused."""
    return any(isinstance(error, ssl.SSLCertVerificationError) for error in chain)


def install() -> None:
    """Make every HTTP client that litellm creates from now on respect the limits. A second call changes nothing.

    The text of litellm's own errors, which contains the response, is limited too: litellm looks for secrets in it with
    patterns that take quadratic time.

    Raises:
        UserError: litellm has another structure than the supported versions, so nothing would be limited.
    """
    try:
        from litellm.litellm_core_utils import secret_redaction
        from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
        from litellm.llms.openai.common_utils import BaseOpenAILLM

        _limit_text(secret_redaction, "python_redact_string")
        _limit_clients(AsyncHTTPHandler, "create_client", is_static=False)
        _limit_clients(BaseOpenAILLM, "_get_async_http_client", is_static=True)  # for the OpenAI package
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"This version of litellm is not supported ({error}). Install the one that qllm_exp was released with: "
            "pip install 'litellm==1.106.*'"
        ) from None


def _limit_clients(owner: type, name: str, is_static: bool) -> None:
    """Replace a function of litellm that creates clients by one that also adds the limits to them."""
    create: Callable[..., httpx.AsyncClient] = getattr(owner, name)
    if getattr(create, "adds_limits", False):
        return

    def create_limited(*args: Any, **options: Any) -> httpx.AsyncClient:
        client = create(*args, **options)
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _prepare_request],
            "response": [*hooks["response"], limit_response],
        }
        return client

    create_limited.adds_limits = True  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(create_limited) if is_static else create_limited)


def _limit_text(module: ModuleType, name: str) -> None:
    """Replace a function of litellm that rewrites a text by one that reads only the beginning of the text."""
    rewrite: Callable[[str], str] = getattr(module, name)
    if getattr(rewrite, "adds_limits", False):
        return

    def rewrite_limited(value: str) -> str:
        return rewrite(value[:MAX_ERROR_BYTES])

    rewrite_limited.adds_limits = True  # type: ignore[attr-defined]
    setattr(module, name, rewrite_limited)


async def _prepare_request(request: httpx.Request) -> None:
    """Request a response without compression, and limit the time to connect."""
    request.headers["Accept-Encoding"] = "identity"
    timeout = cast(dict[str, float | None], request.extensions.get("timeout", {}))
    connect_s = min(timeout.get("connect") or CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S)
    request.extensions["timeout"] = timeout | {"connect": connect_s}


async def limit_response(response: httpx.Response) -> None:
    """Limit a response whose body has not been read yet: an error is cut off, and any other response is refused.

    Raises:
        ResponseRefused: its declared length is too large, or its compression is not supported.
    """
    declared = response.headers.get("Content-Length", "")[:20]
    if declared.isdecimal() and int(declared) > MAX_RESPONSE_BYTES and not response.is_error:
        raise _too_large()
    encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()  # not decompressed again by httpx
    if encoding not in {"", "identity", *_ENCODINGS}:
        raise ResponseRefused(f"sent a response compressed as {encoding[:40]!r}, which was not requested")
    response.encoding = "utf-8"  # some of Python's other codecs take quadratic time
    stream = cast(httpx.AsyncByteStream, response.stream)
    decompressor = zlib.decompressobj(_ZLIB_OR_GZIP) if encoding in _ENCODINGS else None
    response.stream = _LimitedStream(stream, decompressor, response.is_error)


class _LimitedStream(httpx.AsyncByteStream):
    """The decompressed body of a response, up to the limit.

    Args:
        stream: the body as it is sent.
        decompressor: a zlib decompressor; None for a body that is not compressed.
        is_error: whether the body ends at MAX_ERROR_BYTES, rather than being refused beyond MAX_RESPONSE_BYTES.
    """

    def __init__(self, stream: httpx.AsyncByteStream, decompressor: Any, is_error: bool) -> None:
        self._stream, self._decompressor, self._is_error = stream, decompressor, is_error
        self._limit = MAX_ERROR_BYTES if is_error else MAX_RESPONSE_BYTES
        self._sent = self._size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield self._limited(chunk)
            if self._is_error and max(self._sent, self._size) >= self._limit:
                return

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def _limited(self, chunk: bytes) -> bytes:
        """Return the decompressed chunk; cut off an error at the limit, and raise ResponseRefused otherwise."""
        self._sent += len(chunk)
        if self._decompressor is not None:
            try:
                chunk = self._decompressor.decompress(chunk, self._limit - self._size + 1)
            except zlib.error as error:
                raise httpx.DecodingError(str(error)) from error
        if self._is_error:
            chunk = chunk[: self._limit - self._size]
        self._size += len(chunk)
        if not self._is_error and max(self._sent, self._size) > self._limit:
            raise _too_large()
        return chunk


def _too_large() -> ResponseRefused:
    """Build the error for a response beyond the limit."""
    return ResponseRefused(f"sent a response of more than {MAX_RESPONSE_BYTES / 2**20:g} MB")
