"""Would the engine take this grammar? Asked in a process of its own, before the engine sees it.

llguidance, which the engine compiles grammars with, is quick (a schema of 3,000 fields takes 66 ms) and bounds its own
work, but not everywhere: ``minItems: 1000000000`` takes all memory there is, and some grammars compile at once and take
seconds, or fail, when the first token is to be chosen. So the grammar of a stranger is compiled and tried where that
hurts nobody: in a small process with bounded memory, which is ended when it takes too long.
"""

import asyncio
import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence

from llava_api.errors import EngineFailed, InvalidGrammar

START_SECONDS = 60.0
DEADLINE_SECONDS = 2.0
MOST_REMEMBERED = 1000
TOO_MUCH = "it takes too long to compile, or too much memory"
NO_PROCESS = "The server could not try the schema: it has no room for the process that does so."


class GrammarChecker:
    """One process, started with the first grammar, which answers one question at a time and remembers its answers.

    ``tokenizer``: the content of the checkpoint's tokenizer.json, or byte for one without words; ``ends``: its end
    tokens. ``remember_by_caller``: nobody's answer comes sooner because another has asked.
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
        self.one_at_a_time = asyncio.Lock()
        self.turns: dict[str, tuple[asyncio.Lock, int]] = {}
        """For each caller with a grammar to try: whose turn it is, and how many wait."""
        self.known: OrderedDict[bytes, str] = OrderedDict()
        """Hash of a grammar -> what is wrong with it, "" for nothing."""

    async def check(self, grammar: str, caller: str = "") -> None:
        """Each ``caller`` has one grammar tried at a time, so that nobody waits behind another's crowd.

        Raises InvalidGrammar with llguidance's words, and EngineFailed.
        """
        whose = f"{caller}\n" if self.remember_by_caller else ""
        key = hashlib.sha256((whose + grammar).encode("utf-8", "replace")).digest()
        complaint = self.recall(key)
        if complaint is None:
            lock, waiting = self.turns.get(caller, (asyncio.Lock(), 0))
            self.turns[caller] = (lock, waiting + 1)
            try:
                async with lock:
                    complaint = self.recall(key)
                    if complaint is None:
                        complaint = await self.try_to_the_end(key, grammar)
            finally:
                _, waiting = self.turns[caller]
                if waiting > 1:
                    self.turns[caller] = (lock, waiting - 1)
                else:
                    del self.turns[caller]
        if complaint:
            raise InvalidGrammar(complaint)

    async def try_to_the_end(self, key: bytes, grammar: str) -> str:
        """A trial that has begun goes on where its caller leaves: the process need not be started anew."""
        begun = asyncio.Event()

        async def trial() -> str:
            async with self.one_at_a_time:
                begun.set()
                complaint = await self.ask(grammar)
                self.remember(key, complaint)
                return complaint

        trying = asyncio.create_task(trial())
        try:
            return await asyncio.shield(trying)
        except asyncio.CancelledError:
            if not begun.is_set():
                trying.cancel()
            raise

    def recall(self, key: bytes) -> str | None:
        found = self.known.get(key)
        if found is not None:
            self.known.move_to_end(key)
        return found

    def remember(self, key: bytes, complaint: str) -> None:
        self.known[key] = complaint
        while len(self.known) > MOST_REMEMBERED:
            self.known.popitem(last=False)

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
            # Also where the caller went away meanwhile: the answer would be taken for the next grammar's.
            if not done:
                await self.close()
        if answer is None:
            # It died of this grammar; the next one gets a new process.
            await self.close()
            return TOO_MUCH
        return answer

    async def start(self) -> None:
        """Raises EngineFailed where no process can be had, which is no grammar's fault."""
        try:
            async with asyncio.timeout(START_SECONDS):
                self.process = await start_process()
                if await self.exchange(self.introduction) is not None:
                    return
        except (OSError, TimeoutError) as error:
            raise EngineFailed(NO_PROCESS) from error
        raise EngineFailed(NO_PROCESS)

    async def exchange(self, line: bytes) -> str | None:
        """The process's answer; None where it died."""
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


async def start_process() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "llava_api.engine.grammar_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
