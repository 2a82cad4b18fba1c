"""The process of ``grammar_check``: a grammar a line in, a complaint a line out ("" for none), both as JSON.

The first line is the tokenizer ({"tokenizer": the content of tokenizer.json, "ends": end tokens}), answered by "".
"""

import json
import re
import resource
import sys
import time
from random import Random

from llguidance import LLMatcher, LLTokenizer

MAX_BYTES = 4_000_000_000
"""Address space, most of which llguidance and a large vocabulary never touch."""
SOURCE_LINE = re.compile(r"\n\s*\d+ \|")
WALKS = 4
STEPS = 100
STEP_SECONDS = 0.1
"""CPU time for one token's choices: the engine, which makes all its answers' tokens in turn, waits as long."""
TOO_MUCH = "it takes too much time to keep to: make it smaller, or simpler"


def complaint_about(grammar: str, tokenizer: LLTokenizer) -> str:
    before = time.process_time()
    found: str = LLMatcher.validate_grammar(grammar, tokenizer)
    # vLLM does this once more, where all requests and streams wait for it.
    slow = time.process_time() - before > STEP_SECONDS
    return in_words(found) if found else TOO_MUCH if slow else trial(grammar, tokenizer)


def in_words(found: str) -> str:
    """llguidance's words without its position and source lines, which speak of the grammar that was made here."""
    first = SOURCE_LINE.split(found)[0].partition("failed to compile JSON schema: ")
    words = " ".join((first[2] or first[0]).split())[:300]
    return words.replace("Unimplemented keys:", "this server cannot keep to these keywords, leave them out:")


def trial(grammar: str, tokenizer: LLTokenizer) -> str:
    """Make the beginnings of some answers: much of a grammar's cost comes then, and some of its errors."""
    chance = Random(0)
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    for _ in range(WALKS):
        for _ in range(STEPS):
            before = time.process_time()
            allowed = tokens_in(matcher.compute_bitmask())
            if matcher.is_error() or time.process_time() - before > STEP_SECONDS:
                return TOO_MUCH
            more = [token for token in allowed if token not in tokenizer.eos_tokens]
            if not more or not matcher.consume_token(chance.choice(more)):
                break
        if matcher.is_error():
            return TOO_MUCH
        matcher.reset()
    return ""


def tokens_in(mask: bytes) -> list[int]:
    """The bits that are set."""
    return [8 * place + bit for place, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    # It dies of some grammars, which is what it is for.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    given = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(given["tokenizer"], eos_token=given["ends"] or None)
    print('""', flush=True)
    for line in sys.stdin:
        print(json.dumps(complaint_about(json.loads(line), tokenizer)), flush=True)


if __name__ == "__main__":
    main()
