"""The process of ``grammar_check``: a grammar a line in, a complaint a line out ("" for none), both as JSON."""

import json
import resource
import sys

from llguidance import LLMatcher

MAX_BYTES = 2_000_000_000
"""Address space: llguidance itself and its libraries take some hundred megabytes of it."""


def complaint_about(grammar: str) -> str:
    """llguidance's words without its position and source lines, which speak of the grammar that was made here."""
    found: str = LLMatcher.validate_grammar(grammar)
    first = found.split("\n   1 |")[0].partition("failed to compile JSON schema: ")
    return " ".join((first[2] or first[0]).split())[:300]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    # It dies of some grammars, which is what it is for.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(complaint_about(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
