"""The bytes that a token stands for: of all tokens of a text, they are the text."""

import json

import pytest

from llava_api.chat.logprobs import LogprobAligner, as_text
from llava_api.engine.base import TokenLogprob
from llava_api.prompts.tokenizer import TextTokenizer
from tests.support.tiny_tokenizers import SPECIALS, build

TEXTS = [
    "A red circle.",
    " two  spaces",
    "é",
    "größer",
    "日本語",
    "\U0001f388",
    "\U0001f469\u200d\U0001f680!",
    "tabs\tand\nlines\r\n",
    "\x00\x7f\u0085",
    "Ġ is a letter of its own",
]
KINDS = ["llama", "mistral", "qwen2", "llama3"]
DUMMY_PREFIX = {"llama": b" ", "mistral": b" ", "qwen2": b"", "llama3": b""}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str) -> TextTokenizer:
    return TextTokenizer(build(kind, image_token=True).to_str(), SPECIALS[kind].bos)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_are_its_bytes(tokenizer: TextTokenizer, kind: str, text: str) -> None:
    ids = tokenizer.encode([text])
    assert b"".join(map(tokenizer.token_bytes, ids)) == DUMMY_PREFIX[kind] + text.encode()


def test_half_a_letter_has_its_own_bytes_and_is_shown_as_such(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(["\U0001f388"])
    halves = [tokenizer.token_bytes(token) for token in ids][-2:]
    assert len(halves) == 2
    assert all("\ufffd" in as_text(half) for half in halves)


def test_a_special_token_is_its_name(tokenizer: TextTokenizer, kind: str) -> None:
    for name in (SPECIALS[kind].eos, "<image>"):
        token = tokenizer.token_id(name)
        assert token is not None
        assert tokenizer.token_bytes(token) == name.encode()
        assert tokenizer.is_special(token)
    assert not tokenizer.is_special(tokenizer.encode(["a"])[-1])


def test_every_id_of_the_model_has_bytes_and_the_next_has_none(tokenizer: TextTokenizer) -> None:
    real = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
    assert all(real)
    assert not any("\uf8fe".encode() in written for written in real)


def test_a_gap_in_the_vocabulary_shows_nothing() -> None:
    """The names that cannot be typed may lie in it."""
    settings = json.loads(build("llama", image_token=True).to_str())
    size = TextTokenizer(json.dumps(settings), "<s>").size
    settings["added_tokens"].append({**settings["added_tokens"][-1], "content": "<far>", "id": size + 20})
    tokenizer = TextTokenizer(json.dumps(settings), "<s>")
    assert tokenizer.size == size + 21
    assert tokenizer.text(range(size, size + 21)) == "<far>"
    assert "".join(map(tokenizer.piece, range(size, size + 21))) == "<far>"


def test_the_text_of_tokens(tokenizer: TextTokenizer, kind: str) -> None:
    for text in TEXTS:
        assert tokenizer.text(tokenizer.encode([text])) == text
    end = tokenizer.token_id(SPECIALS[kind].eos)
    assert end is not None
    assert tokenizer.text([end]) == SPECIALS[kind].eos


# Tokens go out with the text that they make


class Speaker:
    """Says tokens and text as an engine does, and keeps what goes out."""

    def __init__(self, tokenizer: TextTokenizer, *, skip_special_tokens: bool = True, spaces_cut: bool = False) -> None:
        self.aligner = LogprobAligner(tokenizer, 0, skip_special_tokens, spaces_cut)
        self.sent: list[tuple[str, bytes]] = []

    def say(self, ids: list[int], text: str, *, last: bool = False) -> None:
        tokens = [TokenLogprob(token, -1.0, ()) for token in ids]
        going = self.aligner.read(tokens, text, last)
        self.sent.append((text, b"".join(token.written for token in going)))

    def check(self) -> None:
        for text, written in self.sent:
            assert written.decode("utf-8", "replace") == text


@pytest.mark.parametrize("text", TEXTS)
def test_each_letter_comes_with_its_tokens(tokenizer: TextTokenizer, kind: str, text: str) -> None:
    """The engine's text waits for the end of each letter, and so do the tokens."""
    speaker = Speaker(tokenizer)
    held = b""
    for token in tokenizer.encode([text]):
        held += tokenizer.token_bytes(token)
        try:
            said, held = held.decode(), b""
        except UnicodeDecodeError:
            said = ""
        speaker.say([token], said)
    speaker.check()
    assert "".join(said for said, _ in speaker.sent).encode() == DUMMY_PREFIX[kind] + text.encode()


def test_the_end_token_and_what_stops_an_answer_are_left_out(tokenizer: TextTokenizer, kind: str) -> None:
    end = tokenizer.token_id(SPECIALS[kind].eos)
    assert end is not None
    *words, stop = tokenizer.encode(["red#"])
    text = b"".join(map(tokenizer.token_bytes, words)).decode()
    speaker = Speaker(tokenizer)
    speaker.say(words, text)
    speaker.say([stop, end], "")
    speaker.check()


def test_special_tokens_that_are_not_shown_are_left_out_wherever_they_stand(
    tokenizer: TextTokenizer, kind: str
) -> None:
    end = tokenizer.token_id(SPECIALS[kind].eos)
    assert end is not None
    word = tokenizer.encode(["a"])[-1:]
    said = tokenizer.token_bytes(word[0]).decode()
    speaker = Speaker(tokenizer)
    speaker.say([end], "")
    speaker.say([*word, end], said)
    speaker.say([end], "", last=True)
    speaker.check()


def test_special_tokens_that_are_shown_are_counted(tokenizer: TextTokenizer, kind: str) -> None:
    name = SPECIALS[kind].eos
    end = tokenizer.token_id(name)
    assert end is not None
    word = tokenizer.encode(["a"])[-1:]
    said = tokenizer.token_bytes(word[0]).decode()
    speaker = Speaker(tokenizer, skip_special_tokens=False)
    speaker.say([end], name)
    speaker.say(word, said)
    speaker.check()


def spaced(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text with one space before it, as an answer begins."""
    ids = tokenizer.encode([text])
    return ids if tokenizer.token_bytes(ids[0]).startswith(b" ") else tokenizer.encode([f" {text}"])


def test_leading_spaces_are_cut_from_the_first_letter_on_and_no_others(tokenizer: TextTokenizer) -> None:
    """The engine's text lags behind its tokens where a stop text is watched for."""
    first, second = spaced(tokenizer, "red"), spaced(tokenizer, "dog")
    speaker = Speaker(tokenizer, spaces_cut=True)
    speaker.say(first, "")
    speaker.say(second, "red")
    speaker.say([], " dog", last=True)
    assert b"".join(written for _, written in speaker.sent) == b"red dog"
    speaker.check()


def test_broken_letters_do_not_put_tokens_and_text_out_of_step(tokenizer: TextTokenizer) -> None:
    """A byte that is no letter is shown as U+FFFD, which has three bytes where the token has one."""
    half = tokenizer.encode(["\U0001f388"])[-1]
    words = spaced(tokenizer, "dog")
    text = b"".join(map(tokenizer.token_bytes, words)).decode()
    speaker = Speaker(tokenizer)
    speaker.say([half], "\ufffd")
    speaker.say(words[:1], "")
    speaker.say(words[1:], text)
    speaker.check()
