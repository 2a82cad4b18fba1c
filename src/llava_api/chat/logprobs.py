"""Log-probabilities of tokens, sent together with the text that they make."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.engine.base import TokenLogprob
from llava_api.prompts.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token as it is written in the answer, how likely it was, and what else was likely."""

    written: bytes
    """UTF-8; a part of a letter where the letter has several tokens."""
    logprob: float
    top: tuple[tuple[bytes, float], ...]

    @property
    def text(self) -> str:
        return as_text(self.written)


def as_text(written: bytes) -> str:
    """A part of a letter is shown as U+FFFD; its bytes stand beside it."""
    return written.decode("utf-8", "replace")


class TokenWriter:
    """Engine tokens -> written tokens, of which so many of the likeliest are told."""

    def __init__(self, tokenizer: TextTokenizer, top: int) -> None:
        self.tokenizer = tokenizer
        self.top = top

    def write(self, entry: TokenLogprob) -> WrittenToken:
        top = tuple((self.tokenizer.token_bytes(token), logprob) for token, logprob in entry.top[: self.top])
        return WrittenToken(self.tokenizer.token_bytes(entry.token_id), entry.logprob, top)


class LogprobAligner:
    """Holds each token back until its text goes out, so that the tokens of all chunks, joined, are their text.

    The engine's text lags behind its tokens: half a letter waits for its other half, and what may be the beginning of
    a stop text waits too. Tokens whose text never comes (the end token, the stop text) are left out.
    """

    def __init__(self, writer: TokenWriter, skip_special_tokens: bool) -> None:
        self.writer = writer
        self.skip_special_tokens = skip_special_tokens
        self.waiting: deque[tuple[int, WrittenToken]] = deque()
        self.ahead = 0
        """Bytes of text that has gone out, less those of tokens that have."""

    def read(self, tokens: Sequence[TokenLogprob], text: str, spaces_cut: bool, last: bool) -> list[WrittenToken]:
        """The tokens to send with ``text``.

        ``spaces_cut``: up to the first letter the answer's spaces are left out. ``last``: nothing follows that a token
        could wait for.
        """
        for entry in tokens:
            token = self.writer.write(entry)
            skipped = self.skip_special_tokens and self.writer.tokenizer.is_special(entry.token_id)
            shown = b"" if skipped else token.written
            if spaces_cut and not skipped:
                shown = shown.lstrip(b" ")
                token = WrittenToken(shown, token.logprob, token.top)
                spaces_cut = not shown
            self.waiting.append((len(shown), token))
        self.ahead += len(text.encode("utf-8", "replace"))
        going: list[WrittenToken] = []
        while self.waiting and (self.ahead > 0 or last):
            size, token = self.waiting.popleft()
            self.ahead -= size
            going.append(token)
        return going
