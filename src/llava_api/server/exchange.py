"""The exchange of one request for its answer, which owns everything that is held for the two.

Each step that takes something for a request (a place among the open requests, memory, rate limits, the task that makes
the reply) registers its release with the ``Exchange``. ``middleware/exchange.py`` opens the exchange before any other
middleware of ours runs and closes it when the answer's last byte has been sent, or when the request is cut off. So
there is one place where a request ends, and no step needs to know about the others.
"""

import ipaddress
import uuid
from contextlib import AsyncExitStack
from functools import lru_cache

from starlette.types import Scope

from llava_api.limits.account import Account, RateLimiter
from llava_api.limits.memory import MemoryBudget
from llava_api.limits.table import caller_of_key


class Exchange(AsyncExitStack):
    """Releases, in reverse order, what was registered with it."""

    def __init__(self, scope: Scope, callers_id: str = "") -> None:
        """``callers_id``: what the caller calls the request; other requests may have the same."""
        super().__init__()
        self.own_id = f"req_{uuid.uuid4().hex}"
        self.request_id = callers_id or self.own_id
        """In headers, errors, logs and traces."""
        self.address = scope["client"][0] if scope.get("client") else ""
        self.key_name = ""
        """Name of the API key that the request was sent with; "" if the server has no keys."""
        self.account: Account | None = None
        """Set as soon as the request is counted; what is left of its limits goes into the answer's headers."""

    @property
    def caller(self) -> str:
        """Requests with the same caller are counted together: those of one API key, else those of one address."""
        return caller_of_key(self.key_name) if self.key_name else caller_of_address(self.address)

    async def open_account(self, limiter: RateLimiter, memory: MemoryBudget, spends_tokens: bool) -> Account:
        """Count this request against its caller's limits until the exchange ends. Raises RateLimited."""
        account = self.account = limiter.account(self.caller, memory)
        # In reverse: the request no longer counts among those at once, and then its answer's tokens are counted.
        self.push_async_callback(account.settle)
        self.callback(account.leave)
        self.callback(account.memory.release)
        await account.enter(spends_tokens)
        return account


@lru_cache(maxsize=1024)
def caller_of_address(text: str) -> str:
    """An IPv6 client counts as its network of 64 bits, since it may use each address of it once."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # A trusted proxy may forward a name that is no address.
        return text[:64]
    if not isinstance(address, ipaddress.IPv6Address):
        return text
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))
