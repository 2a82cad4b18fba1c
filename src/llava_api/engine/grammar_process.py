"""The process of ``grammar_check``. It reads a grammar from each line and writes what is wrong with it, or "", as JSON.

The first line is the tokenizer, {"tokenizer": the content of tokenizer.json, "ends": end tokens}. The answer is "".
"""

import json
import re
import resource
import sys
import time
from random import Random

from llguidance import LLMatcher, LLTokenizer

MAX_BYTES = 4_000_000_000
"""Bytes of address space, of which llguidance uses little, even with a large vocabulary."""
SOURCE_LINE = re.compile(r"\n\s*\d+ \|")
POSITION = re.compile(r"^at \d+\(\d+\): ")
OPENERS = ("[", "{", '"', "[[", '{"')
"""Text that leads deeper into a grammar, where a costly one costs most."""
STEPS = 100
MOST_FORCED = 200
"""How often a walk skips text that the grammar dictates, so that a long one does not hide what follows."""
TRIAL_SECONDS = 0.6
COMPILE_SECONDS = 0.1
FIRST_SECONDS = 0.3
STEP_SECONDS = 0.01
"""In CPU time. While vLLM compiles a grammar, all requests and streams wait, and its engine computes the choices for a
token of each answer in turn, so that every answer waits for all of them."""
TOO_MUCH = "it takes too long to follow: make it smaller, or simpler"


def complaint_about(grammar: str, tokenizer: LLTokenizer) -> str:
    before = time.process_time()
    found: str = LLMatcher.validate_grammar(grammar, tokenizer)
    if found:
        return in_words(found)
    return TOO_MUCH if time.process_time() - before > COMPILE_SECONDS else Trial(grammar, tokenizer).complaint()


def in_words(found: str) -> str:
    """llguidance's words without position and source lines, which belong to the grammar that the server made."""
    first = SOURCE_LINE.split(found)[0].partition("failed to compile JSON schema: ")
    words = POSITION.sub("", " ".join((first[2] or first[0]).split()))[:300]
    return words.replace("Unimplemented keys:", "this server does not support these keywords, leave them out:")


class Trial:
    """Makes the beginnings of some answers, which show much of a grammar's cost and some of its errors."""

    def __init__(self, grammar: str, tokenizer: LLTokenizer) -> None:
        self.tokenizer = tokenizer
        self.ends = frozenset(tokenizer.eos_tokens)
        self.chance = Random(0)
        self.matcher = LLMatcher(tokenizer, grammar, log_level=0)
        opening = (tokenizer.tokenize_str(text) for text in OPENERS)
        self.openers = [ids[0] for ids in opening if len(ids) == 1]

    def complaint(self) -> str:
        began = time.process_time()
        for deep in (False, True, False, True):
            if not self.walk(deep) or self.matcher.is_error():
                return TOO_MUCH
            if time.process_time() - began > TRIAL_SECONDS:
                break
            self.matcher.reset()
        return ""

    def walk(self, deep: bool) -> bool:
        """Make the beginning of one answer and return False if it takes too long.

        ``deep``: prefer text that leads deeper into the grammar.
        """
        spent, steps = 0.0, 0
        for _ in range(STEPS):
            self.go_past_forced()
            before = time.process_time()
            mask = self.matcher.compute_bitmask()
            took = time.process_time() - before
            if took > FIRST_SECONDS:
                return False
            # The first step costs more, because the following ones use what it has found out.
            spent, steps = spent + (took if steps else 0.0), steps + 1
            if steps > 10 and spent / steps > STEP_SECONDS:
                return False
            token = self.choose(mask, deep)
            if self.matcher.is_error() or token is None or not self.matcher.consume_token(token):
                break
        return steps < 2 or spent / steps <= 2 * STEP_SECONDS

    def go_past_forced(self) -> None:
        for _ in range(MOST_FORCED):
            forced = self.matcher.compute_ff_bytes()
            ids = self.tokenizer.tokenize_bytes(forced) if forced else []
            if not ids or not self.matcher.consume_tokens(ids):
                return

    def choose(self, mask: bytes, deep: bool) -> int | None:
        """A random token that may come next and does not end the answer; None if there is none."""
        if deep:
            leading = [token for token in self.openers if mask[token >> 3] >> (token & 7) & 1]
            if leading:
                return self.chance.choice(leading)
        start = self.chance.randrange(len(mask))
        for part, offset in ((mask[start:], start), (mask[:start], 0)):
            rest = part
            while rest := rest.lstrip(b"\0"):
                place = offset + len(part) - len(rest)
                bits = [8 * place + bit for bit in range(8) if rest[0] >> bit & 1]
                allowed = [token for token in bits if token not in self.ends]
                if allowed:
                    return self.chance.choice(allowed)
                rest = rest[1:]
        return None


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    # Some grammars kill this process, which is its purpose.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(given["tokenizer"], eos_token=given["ends"] or None)
    print('""', flush=True)
    for line in sys.stdin:
        print(json.dumps(complaint_about(json.loads(line), tokenizer)), flush=True)


if __name__ == "__main__":
    main()
