"""Would the engine take this grammar? Asked in a process of its own, before the engine sees it.

llguidance, which the engine compiles grammars with, is quick (a schema of 3,000 fields takes 66 ms) and bounds its own
work, but not everywhere: ``minItems: 1000000000`` takes all memory there is. So the grammar of a stranger is tried
where that hurts nobody: in a small process with little memory, which is ended when it takes too long.
"""

import asyncio
import hashlib
import json
import sys
from collections import OrderedDict

from llava_api.errors import InvalidGrammar

DEADLINE_SECONDS = 5.0
MOST_REMEMBERED = 1000
TOO_MUCH = "it takes too long to compile, or too much memory"


class GrammarChecker:
    """One process, started with the first grammar, which answers one question at a time and remembers its answers."""

    def __init__(self, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self.deadline_seconds = deadline_seconds
        self.process: asyncio.subprocess.Process | None = None
        self.one_at_a_time = asyncio.Lock()
        self.known: OrderedDict[bytes, str] = OrderedDict()
        """Hash of a grammar -> what is wrong with it, "" for nothing."""

    async def check(self, grammar: str) -> None:
        """Raises InvalidGrammar with llguidance's words."""
        key = hashlib.sha256(grammar.encode("utf-8", "replace")).digest()
        complaint = self.known.get(key)
        if complaint is None:
            async with self.one_at_a_time:
                complaint = self.known.get(key)
                if complaint is None:
                    complaint = await self.ask(grammar)
                    self.remember(key, complaint)
        if complaint:
            raise InvalidGrammar(complaint)

    def remember(self, key: bytes, complaint: str) -> None:
        self.known[key] = complaint
        while len(self.known) > MOST_REMEMBERED:
            self.known.popitem(last=False)

    async def ask(self, grammar: str) -> str:
        done = False
        try:
            async with asyncio.timeout(self.deadline_seconds):
                answer = await self.exchange(grammar)
            done = True
        except TimeoutError:
            return TOO_MUCH
        finally:
            # Also where the caller went away meanwhile: the answer would be taken for the next grammar's.
            if not done:
                await self.close()
        if answer is None:
            # It died of this grammar; the next one gets a new process.
            await self.close()
            return TOO_MUCH
        return answer

    async def exchange(self, grammar: str) -> str | None:
        """The process's answer; None where it died."""
        process = self.process
        if process is None or process.returncode is not None:
            process = self.process = await start_process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        return str(json.loads(line)) if line.endswith(b"\n") else None

    async def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def start_process() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llava_api.engine.grammar_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
