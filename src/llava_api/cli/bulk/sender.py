"""One request to an OpenAI-compatible API, and what a client must know of its answer."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx2
import orjson

from llava_api.cli.bulk.job import Reply, Request
from llava_api.cli.endpoint import NO_KEY, is_on_this_machine, without_password
from llava_api.errors import StartupError

CONNECT_SECONDS = 10
READ_SECONDS = 600
"""Longest wait for an answer: a busy server lets requests queue."""
BUSY = (425, 429, 502, 503, 504)
"""The server may answer the same request later, however often it was refused."""
MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class Busy(Exception):
    """The server did not take the request."""

    why: str
    retry_after: float | None = None
    """Seconds, if the server names them."""


class Broken(Exception):
    """There is no answer. Another try may work, or break the server again."""

    def __init__(self, message: str, *, connection_lost: bool = False) -> None:
        super().__init__(message)
        self.connection_lost = connection_lost
        """Whether the other requests at the server may be lost as well."""


class Sender:
    def __init__(self, base_url: str, key: str, connections: int) -> None:
        """Raises StartupError for a base URL that is not one."""
        self.shown = without_password(base_url)
        headers = {"content-type": "application/json"}
        if key != NO_KEY:
            headers["authorization"] = f"Bearer {key}"
        try:
            self.http = httpx2.AsyncClient(
                base_url=base_url.rstrip("/") + "/",
                headers=headers,
                timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None),
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
                # A proxy of the environment is for the internet, not for a server on this machine.
                trust_env=not is_on_this_machine(base_url),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise StartupError(f"--base-url {self.shown} is no URL: {error}") from error

    async def send(self, request: Request) -> Reply:
        """Raises Busy, Broken, and StartupError if no other request could be answered either."""
        try:
            response = await self.http.post(request.path, content=request.body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Busy(f"no server answers at {self.shown} ({error})") from error
        except httpx2.HTTPError as error:
            raise Broken(f"The answer broke off ({type(error).__name__}).", connection_lost=True) from error
        if response.status_code in BUSY:
            raise Busy(f"the server answers with HTTP status {response.status_code}", retry_after(response.headers))
        try:
            body = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            body = response.text[:MAX_TEXT]
        if response.status_code == 401:
            raise StartupError(f"the server at {self.shown} does not accept the API key: name another --api-key-file")
        if (
            response.status_code == 200
            and not isinstance(body, dict)
            and "json" in response.headers.get("content-type", "")
        ):
            raise Broken("The answer is not valid JSON.")
        if not isinstance(body, dict) and response.status_code in (200, 301, 302, 307, 308, 404, 405):
            raise StartupError(f"{self.shown} does not speak OpenAI's API: does its base URL end in /v1?")
        if response.status_code >= 500 or response.status_code == 408:
            raise Broken(f"The server answered with HTTP status {response.status_code}: {message_of(body)}")
        return Reply(response.status_code, response.headers.get("x-request-id", ""), body)


def message_of(body: object) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message")) if isinstance(error, dict) else str(body)[:MAX_TEXT]


def retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds, from OpenAI's ``retry-after-ms`` or HTTP's ``retry-after``: a number or a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        text = headers.get("retry-after", "")
        return max(0.0, float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
