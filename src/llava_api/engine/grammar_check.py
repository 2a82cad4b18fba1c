"""A separate process tries each grammar before the engine is given it.

llguidance, with which the engine compiles grammars, is quick (a schema of 3,000 fields takes 66 ms) and bounds its own
work, but not everywhere: ``minItems: 1000000000`` uses up all memory, and some grammars compile at once and take
seconds, or fail, when the first token is to be chosen. So a caller's grammar is first compiled and tried in a small
process with bounded memory, which is killed when it takes too long.
"""

import asyncio
import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence

from llava_api.concurrency.admission import Admission
from llava_api.concurrency.single_flight import Flight, SingleFlight
from llava_api.errors import EngineFailed

START_SECONDS = 60.0
DEADLINE_SECONDS = 2.0
MOST_REMEMBERED = 1000
TOO_MUCH = "it takes too long to compile, or too much memory"
NO_PROCESS = "The server has no room for the process that checks schemas. Try again in a few seconds."


class GrammarChecker:
    """One process, started with the first grammar, which tries one grammar at a time, and a memory of the results.

    ``tokenizer``: the content of the checkpoint's tokenizer.json, or "byte" for a vocabulary of single bytes.
    ``ends``: its end tokens. ``remember_by_caller``: a quick result must not show that another caller has sent the same
    grammar.
    """

    def __init__(
        self,
        tokenizer: str = "byte",
        ends: Sequence[int] = (),
        deadline_seconds: float = DEADLINE_SECONDS,
        remember_by_caller: bool = False,
    ) -> None:
        self.introduction = json.dumps({"tokenizer": tokenizer, "ends": list(ends)}).encode() + b"\n"
        self.deadline_seconds = deadline_seconds
        self.remember_by_caller = remember_by_caller
        self.process: asyncio.subprocess.Process | None = None
        self.trials: SingleFlight[str] = SingleFlight(Admission(1, per_caller=1))
        self.known: OrderedDict[bytes, str] = OrderedDict()
        """Hash of a grammar -> what is wrong with it, or ""."""

    async def check(self, grammar: str, caller: str = "") -> str:
        """Returns what is wrong with the grammar, in llguidance's words; "" if the engine can follow it.

        Callers take turns. Raises Busy, and EngineFailed if the grammar cannot be tried.
        """
        owner = f"{caller}\n" if self.remember_by_caller else ""
        key = hashlib.sha256((owner + grammar).encode("utf-8", "replace")).digest()
        if key not in self.known:
            return await self.trials.do(caller, lambda: self.begin(key, grammar), key)
        self.known.move_to_end(key)
        return self.known[key]

    def begin(self, key: bytes, grammar: str) -> Flight[str]:
        # A trial goes on when its callers have left, because stopping it means a new process.
        return Flight(asyncio.ensure_future(self.try_out(key, grammar)), lambda: False)

    async def try_out(self, key: bytes, grammar: str) -> str:
        complaint = self.known[key] = await self.ask(grammar)
        while len(self.known) > MOST_REMEMBERED:
            self.known.popitem(last=False)
        return complaint

    async def ask(self, grammar: str) -> str:
        done = False
        try:
            if self.process is None or self.process.returncode is not None:
                await self.start()
            async with asyncio.timeout(self.deadline_seconds):
                answer = await self.exchange(json.dumps(grammar).encode() + b"\n")
            done = True
        except TimeoutError:
            return TOO_MUCH
        finally:
            # An answer that comes later would be taken for the next grammar's.
            if not done:
                await self.close()
        if answer is None:
            # The process died of this grammar; the next one gets a new process.
            await self.close()
            return TOO_MUCH
        return answer

    async def start(self) -> None:
        """Raises EngineFailed if no process can be started, which is no grammar's fault."""
        try:
            async with asyncio.timeout(START_SECONDS):
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "llava_api.engine.grammar_process"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                if await self.exchange(self.introduction) is not None:
                    return
        except (OSError, TimeoutError) as error:
            raise EngineFailed(NO_PROCESS) from error
        raise EngineFailed(NO_PROCESS)

    async def exchange(self, line: bytes) -> str | None:
        """The process's answer; None if it died."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await process.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        return str(json.loads(answer)) if answer.endswith(b"\n") else None

    async def close(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
