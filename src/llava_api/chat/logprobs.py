"""Log-probabilities of tokens, sent together with the text that they make."""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_api.engine.base import IMPOSSIBLE, TokenLogprob
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.protocol import chat_reply as wire


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """A token as it is written in the answer, how likely it was, and what else was likely."""

    written: bytes
    """UTF-8. It is an incomplete character if the character has several tokens."""
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    letters: int = 0
    """Characters of the text that end with this token."""

    @property
    def text(self) -> str:
        return as_text(self.written)


def as_text(written: bytes) -> str:
    """An incomplete character is shown as U+FFFD; replies have its bytes as well."""
    return written.decode("utf-8", "replace")


def written_token(entry: TokenLogprob, tokenizer: TextTokenizer, top: int) -> WrittenToken:
    """``top``: number of the most likely tokens that are listed beside the chosen one, without impossible ones."""
    possible = [(token, logprob) for token, logprob in entry.top[:top] if logprob > IMPOSSIBLE]
    likeliest = tuple((tokenizer.token_bytes(token), logprob) for token, logprob in possible)
    return WrittenToken(tokenizer.token_bytes(entry.token_id), entry.logprob, likeliest)


def prompt_logprobs(entries: Sequence[TokenLogprob | None], tokenizer: TextTokenizer, top: int) -> wire.PromptLogprobs:
    """In vLLM's form: the token itself and the ``top`` likeliest in its place, by id."""

    def written(token: int, logprob: float, rank: int) -> wire.PromptLogprob:
        return wire.PromptLogprob(logprob=logprob, rank=rank, decoded_token=as_text(tokenizer.token_bytes(token)))

    def known(entry: TokenLogprob) -> dict[str, wire.PromptLogprob]:
        likeliest = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top[:top], 1)]
        every = [(entry.token_id, entry.logprob, entry.rank), *likeliest]
        return {str(token): written(token, logprob, rank) for token, logprob, rank in every}

    return [None if entry is None else known(entry) for entry in entries]


class CharacterCounter:
    """Counts the characters that end with each token. Invalid bytes count as U+FFFD, as in the text."""

    def __init__(self, spaces_cut: bool) -> None:
        self.spaces_cut = spaces_cut
        """The text begins with its first letter, whatever spaces its tokens begin with."""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def shown(self, written: bytes) -> tuple[bytes, int]:
        """The token's bytes that are in the text, and the number of characters that end with it."""
        if self.spaces_cut:
            written = written.lstrip(b" ")
            self.spaces_cut = not written
        return written, len(self.decoder.decode(written))


class LogprobAligner:
    """Holds each token back until its text is sent, so that the tokens of each chunk, joined, are its text.

    The engine's text comes later than its tokens: a part of a character waits for the rest, and so does what may be the
    beginning of a stop text. Tokens whose text never comes (the end token, the stop text) are left out.
    """

    def __init__(self, tokenizer: TextTokenizer, top: int, skip_special_tokens: bool, spaces_cut: bool) -> None:
        self.tokenizer = tokenizer
        self.top = top
        self.skip_special_tokens = skip_special_tokens
        self.counter = CharacterCounter(spaces_cut)
        self.waiting: deque[WrittenToken] = deque()
        self.ahead = 0
        """Characters of text that were sent, less those of the tokens that were sent."""

    def read(self, tokens: Sequence[TokenLogprob], text: str, last: bool) -> list[WrittenToken]:
        """The tokens to send with ``text``. ``last``: nothing follows that a token could wait for."""
        for entry in tokens:
            if self.skip_special_tokens and self.tokenizer.is_special(entry.token_id):
                continue
            token = written_token(entry, self.tokenizer, self.top)
            written, letters = self.counter.shown(token.written)
            top = token.top
            if written != token.written:
                # The alternatives are cut too, so that the token is found among them. A space has nothing left.
                shown = ((other.lstrip(b" "), logprob) for other, logprob in top)
                top = tuple((other, logprob) for other, logprob in shown if other or not written)
            self.waiting.append(replace(token, written=written, letters=letters, top=top))
        self.ahead += len(text)
        going: list[WrittenToken] = []
        while self.waiting and (self.ahead > 0 or last):
            self.ahead -= self.waiting[0].letters
            going.append(self.waiting.popleft())
        return going
