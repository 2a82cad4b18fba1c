"""Names of hosts that tests make up, in place of the system's look-up."""

import asyncio
import socket
from collections import Counter
from ipaddress import ip_address


class Names:
    """A ``resolve`` for the fetcher: (host, port) -> numeric addresses.

    Numeric hosts are themselves; a name that was not given does not exist.
    """

    def __init__(self, **names: list[str]) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        """By name: the answers that are still to come; the last one stays."""
        self.asked: Counter[str] = Counter()
        """How often each host was looked up."""
        self.pause_seconds = 0.0
        for name, addresses in names.items():
            self.answers[f"{name}.test"] = [addresses]

    def rebind(self, host: str, *answers: list[str]) -> None:
        """A name with another address each time that it is looked up."""
        self.answers[host] = list(answers)

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked[host] += 1
        await asyncio.sleep(self.pause_seconds)
        try:
            return [str(ip_address(host))]
        except ValueError:
            pass
        coming = self.answers.get(host)
        if coming is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return coming.pop(0) if len(coming) > 1 else coming[0]
