"""Log-probabilities: every token of the answer's text, with its bytes, beside the text that it is part of."""

from typing import Any

import httpx
import pytest

from llava_api.engine.base import IMPOSSIBLE, TokenLogprob
from tests.api.test_chat import CHAT, TOKENIZER, text_body
from tests.api.test_sampling_fields import COMPLETIONS
from tests.support.scripted_engine import ScriptedEngine
from tests.support.sse import chunks


def ids(text: str) -> list[int]:
    """Tokens of the text itself: one for each letter of ASCII, one for each byte of any other."""
    found: list[int] = []
    for letter in text:
        whole = TOKENIZER.token_to_id("▁" if letter == " " else letter)
        bytes_of_it = [TOKENIZER.token_to_id(f"<0x{byte:02X}>") for byte in letter.encode()]
        found += bytes_of_it if whole is None else [whole]
    return found


def known(token: int, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(token, logprob, ((token, logprob), (40 + 259, logprob - 1), (41 + 259, logprob - 2)))


def speak(engine: ScriptedEngine, *pieces: tuple[str, list[int]]) -> None:
    """What the engine says: texts, each with the tokens that were made meanwhile."""
    engine.texts = tuple(text for text, _ in pieces)
    engine.logprobs = [tuple(known(token) for token in made) for _, made in pieces]


def written(logprobs: dict[str, Any]) -> bytes:
    return b"".join(bytes(token["bytes"]) for token in logprobs["content"])


END = 2


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_token_ids(client: httpx.AsyncClient, engine: ScriptedEngine, path: str) -> None:
    """As vLLM's clients add them up: a stream's chunks together have those of the whole reply."""
    speak(engine, (" A ", ids(" A ")), ("red", ids("red")), ("", [END]))
    made = [*ids(" A red"), END]
    body = text_body(n=2, temperature=0) if path == CHAT else {"model": "tiny", "prompt": "Hi", "echo": True}
    assert "token_ids" not in (await client.post(path, json=body)).text
    whole = (await client.post(path, json=body | {"return_token_ids": True})).json()
    prompt = engine.requests[0].token_ids
    given = [whole] if path == CHAT else whole["choices"]
    assert [each["prompt_token_ids"] for each in given] == [prompt]
    assert [choice["token_ids"] for choice in whole["choices"]] == [made] * len(whole["choices"])
    streamed = chunks((await client.post(path, json=body | {"return_token_ids": True, "stream": True})).content)
    choices = [choice for chunk in streamed for choice in chunk["choices"]]
    found = [each["prompt_token_ids"] for each in (streamed if path == CHAT else choices) if "prompt_token_ids" in each]
    assert found == [prompt]
    for choice in whole["choices"]:
        own = [each for each in choices if each["index"] == choice["index"]]
        assert [token for each in own for token in each.get("token_ids", ())] == made
    if path == COMPLETIONS:
        (silent,) = (await client.post(path, json=body | {"return_token_ids": True, "max_tokens": 0})).json()["choices"]
        assert (silent["token_ids"], silent["prompt_token_ids"]) == ([], prompt)


async def test_only_alternatives_that_can_come_are_listed(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """None that a grammar forbids, and no space, of which nothing is left at an answer's beginning."""
    (space,), letter, forbidden = ids(" "), TOKENIZER.token_to_id("▁U"), 40 + 259
    likely = ((letter, -0.5), (space, -1.0), (forbidden, IMPOSSIBLE))
    engine.texts, engine.logprobs = (" U",), [(TokenLogprob(letter, -0.5, likely),)]
    body = text_body(logprobs=True, top_logprobs=3)
    (choice,) = (await client.post(CHAT, json=body)).json()["choices"]
    (token,) = choice["logprobs"]["content"]
    assert [top["token"] for top in token["top_logprobs"]] == ["U"]


async def test_the_reply_has_each_token_once(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    speak(engine, (" A ", ids(" A ")), ("red", ids("red")), ("", [END]))
    (choice,) = (await client.post(CHAT, json=text_body(logprobs=True, top_logprobs=2))).json()["choices"]
    tokens = choice["logprobs"]["content"]
    # The space before the answer is no part of it; its token stays, with nothing in it.
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"] == "A red"
    assert [token["token"] for token in tokens][-3:] == ["r", "e", "d"]
    for token in tokens:
        assert bytes(token["bytes"]).decode() == token["token"]
        assert token["logprob"] == -0.5
        assert [top["logprob"] for top in token["top_logprobs"]] == [-0.5, -1.5]
    assert choice["logprobs"]["refusal"] is None
    assert engine.requests[-1].sampling.logprobs == 2


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None}, {"top_logprobs": 0}])
async def test_none_where_none_were_asked_for(
    client: httpx.AsyncClient, engine: ScriptedEngine, fields: dict[str, Any]
) -> None:
    reply = await client.post(CHAT, json=text_body(**fields))
    assert reply.json()["choices"][0]["logprobs"] is None
    assert engine.requests[-1].sampling.logprobs is None


async def test_without_top_logprobs_only_the_token_itself_is_told(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    speak(engine, ("a", ids("a")))
    (choice,) = (await client.post(CHAT, json=text_body(logprobs=True))).json()["choices"]
    assert [token["top_logprobs"] for token in choice["logprobs"]["content"]] == [[]]


async def test_an_empty_answer_has_an_empty_list(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    speak(engine, ("", [END]))
    (choice,) = (await client.post(CHAT, json=text_body(logprobs=True))).json()["choices"]
    assert choice["message"]["content"] == ""
    assert choice["logprobs"]["content"] == []


LETTER = ids("\U0001f388")
LAGGING: dict[str, list[tuple[str, list[int]]]] = {
    "as they come": [("a", ids("a")), ("b", ids("b")), ("", [END])],
    "half a letter": [("", LETTER[:2]), ("\U0001f388", LETTER[2:]), ("", [END])],
    "a letter in four": [*(("", [token]) for token in LETTER[:3]), ("\U0001f388", LETTER[3:]), ("!", ids("!"))],
    "behind a letter": [("x", [*ids("x"), *LETTER[:3]]), ("\U0001f388y", [LETTER[3], *ids("y")])],
    "a stop text is watched for": [
        ("", ids("r")),
        ("", ids("e")),
        ("r", ids("d")),
        ("e", ids(" ")),
        ("d dog", ids("dog")),
    ],
    "a space and a stop text": [
        ("", ids(" r")),
        (" r", ids("ed")),
        ("ed", ids(" d")),
        (" do", ids("og")),
        ("g", [END]),
    ],
    "words that wait with their spaces": [("", ids(" red")), (" red", ids(" dog")), (" dog", [END])],
    "spaces alone first": [("", ids(" ")), (" ", ids(" ")), (" a", ids("a"))],
}


@pytest.mark.parametrize("name", LAGGING)
async def test_streamed_tokens_joined_are_the_text(
    client: httpx.AsyncClient, engine: ScriptedEngine, name: str
) -> None:
    speak(engine, *LAGGING[name])
    whole = (await client.post(CHAT, json=text_body(logprobs=True))).json()["choices"][0]
    received = chunks((await client.post(CHAT, json=text_body(logprobs=True, stream=True))).content)
    pieces = [chunk["choices"][0] for chunk in received]
    text = "".join(piece["delta"].get("content", "") for piece in pieces)
    assert text == whole["message"]["content"]
    assert b"".join(written(piece["logprobs"]) for piece in pieces if piece["logprobs"]).decode() == text
    assert written(whole["logprobs"]).decode() == text
    for piece in pieces:
        if piece["logprobs"]:
            # A chunk's tokens are its text, up to a token that reaches into the next one's.
            assert written(piece["logprobs"]).decode().startswith(piece["delta"]["content"])


async def test_a_stop_text_is_in_neither(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    speak(engine, ("red", ids("red")), ("", ids("#")), ("", ids("#")))
    (choice,) = (await client.post(CHAT, json=text_body(logprobs=True, stop="##"))).json()["choices"]
    assert written(choice["logprobs"]) == b"red"


async def test_an_answer_cut_at_its_length_has_all_of_its_tokens(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    """Half a letter is no text, but its tokens were made, paid for and asked for."""
    speak(engine, ("a", ids("a")), ("", LETTER[:2]))
    engine.finish_reason = "length"
    (choice,) = (await client.post(CHAT, json=text_body(logprobs=True))).json()["choices"]
    assert choice["message"]["content"] == "a"
    assert [token["bytes"] for token in choice["logprobs"]["content"]] == [[0x61], [0xF0], [0x9F]]


async def test_a_call_has_no_logprobs_and_text_beside_tools_has(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    tools = [{"type": "function", "function": {"name": "wait"}}]
    call = '{"name": "wait", "arguments": {}}'
    for text, expected in ((call, None), ("A red", "A red"), ("Let it", "Let it")):
        speak(engine, *((text[at : at + 3], ids(text[at : at + 3])) for at in range(0, len(text), 3)))
        (choice,) = (await client.post(CHAT, json=text_body(logprobs=True, tools=tools))).json()["choices"]
        found = choice["logprobs"]
        assert (None if found is None else written(found).decode()) == expected
        streamed = chunks((await client.post(CHAT, json=text_body(logprobs=True, tools=tools, stream=True))).content)
        pieces = [piece["logprobs"] for chunk in streamed for piece in chunk["choices"] if piece["logprobs"]]
        assert b"".join(map(written, pieces)).decode() == (expected or "")


async def test_copies_of_an_answer_have_its_logprobs(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    speak(engine, ("a", ids("a")))
    found = (await client.post(CHAT, json=text_body(logprobs=True, n=3, temperature=0))).json()["choices"]
    assert [written(choice["logprobs"]) for choice in found] == [b"a"] * 3


# The lists of text completions


async def completion(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    reply = await client.post(COMPLETIONS, json={"model": "tiny", "prompt": "Hi \U0001f388", "logprobs": 1, **more})
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    found: dict[str, Any] = choice
    return found


def check_offsets(choice: dict[str, Any]) -> None:
    """Each token stands in the text where its offset says."""
    found = choice["logprobs"]
    assert len({len(column) for column in found.values()}) == 1
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][offset : offset + len(token)] == token


async def test_offsets_are_places_in_the_text(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    speak(engine, (" a", ids(" a")), ("", LETTER[:2]), ("\U0001f388", LETTER[2:]), (" b", ids(" b")))
    choice = await completion(client)
    assert choice["text"] == " a\U0001f388 b"
    check_offsets(choice)
    # OpenAI's names of parts of a letter, which differ from one another.
    assert choice["logprobs"]["tokens"][2:6] == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\x8e", "bytes:\\x88"]
    assert choice["logprobs"]["top_logprobs"][2] == {"bytes:\\xf0": -0.5}
    assert choice["logprobs"]["top_logprobs"][0] == {" ": -0.5}


async def test_offsets_of_an_echo_are_places_in_prompt_and_answer(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    prompt = [1, *ids(" Hi "), *LETTER]
    engine.prompt_logprobs = (None, *(known(token) for token in prompt[1:]))
    speak(engine, (" a", ids(" a")))
    choice = await completion(client, echo=True)
    assert engine.requests[-1].token_ids == prompt
    assert choice["text"] == "Hi \U0001f388 a"
    assert choice["logprobs"]["token_logprobs"][:2] == [None, -0.5]
    # The text has neither BOS nor the space that the tokenizer puts first; what follows stands where it stands.
    check_offsets({**choice, "logprobs": {name: column[2:] for name, column in choice["logprobs"].items()}})


@pytest.mark.parametrize(("spaces", "text"), [("", "Hi"), (" ", "Hi"), ("  ", " Hi")])
async def test_an_echo_of_token_ids_is_the_text_that_they_stand_for(
    client: httpx.AsyncClient, engine: ScriptedEngine, spaces: str, text: str
) -> None:
    prompt = [1, *ids(f"{spaces}Hi"), LETTER[0]]
    engine.prompt_logprobs = (None, *(known(token) for token in prompt[1:]))
    speak(engine, ("!", ids("!")))
    choice = await completion(client, prompt=prompt, echo=True)
    assert choice["text"] == f"{text}\ufffd!"
    assert choice["logprobs"]["tokens"] == ["<s>", *spaces, "H", "i", "bytes:\\xf0", "!"]
    where = choice["text"].index("H")
    assert choice["logprobs"]["text_offset"][-4:-1] == [where, where + 1, where + 2]


async def test_max_tokens_0_scores_the_prompt_alone(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.prompt_logprobs = (None, *(known(token) for token in [*ids(" Hi "), *LETTER]))
    speak(engine, ("x", ids("x")))
    choice = await completion(client, echo=True, max_tokens=0)
    assert choice["text"] == "Hi \U0001f388"
    assert len(choice["logprobs"]["tokens"]) == 9


# The log-probabilities of the prompt


def ranked(*tokens: int) -> tuple[TokenLogprob | None, ...]:
    """None for the first token; the others are third, behind the letters a and b."""
    likeliest = ((ids("a")[0], -0.5), (ids("b")[0], -1.0))
    return (None, *(TokenLogprob(token, -2.0, (*likeliest, (token, -2.0)), rank=3) for token in tokens))


@pytest.mark.parametrize(("top", "letters"), [(0, ""), (1, "a"), (2, "ab")])
async def test_the_prompts_tokens_in_vllms_form(
    client: httpx.AsyncClient, engine: ScriptedEngine, top: int, letters: str
) -> None:
    engine.prompt_logprobs = (*ranked(*ids("x")), None, None)
    reply = (await client.post(CHAT, json=text_body(prompt_logprobs=top, max_tokens=1))).json()
    likeliest = {str(ids(letter)[0]): (place, letter) for place, letter in enumerate(letters, 1)}
    first, known, *images = reply["prompt_logprobs"]
    assert [first, *images] == [None] * 3
    assert known == {
        str(ids("x")[0]): {"logprob": -2.0, "rank": 3, "decoded_token": "x"},
        **{
            token: {"logprob": -0.5 * rank, "rank": rank, "decoded_token": letter}
            for token, (rank, letter) in likeliest.items()
        },
    }
    assert engine.requests[-1].sampling.prompt_logprobs == top


async def test_each_choice_of_a_completion_has_its_prompts(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.prompt_logprobs = ranked(*ids(" Hi"))
    sent = {"model": "tiny", "prompt": ["Hi", "Hi"], "prompt_logprobs": 1, "n": 2, "temperature": 1}
    found = (await client.post(COMPLETIONS, json=sent)).json()["choices"]
    assert [len(choice["prompt_logprobs"]) for choice in found] == [4] * 4
    assert found[0]["prompt_logprobs"][0] is None
    assert found[0]["logprobs"] is None


async def test_an_echo_has_as_many_likely_tokens_as_its_logprobs_say(
    client: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.prompt_logprobs = ranked(*ids(" Hi"))
    choice = await completion(client, prompt="Hi", echo=True, prompt_logprobs=2, logprobs=0)
    assert choice["logprobs"]["top_logprobs"][1:4] == [{" ": -2.0}, {"H": -2.0}, {"i": -2.0}]
    assert [len(entry) for entry in choice["prompt_logprobs"][1:]] == [3] * 3
    assert engine.requests[-1].sampling.prompt_logprobs == 2


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, text_body()), (COMPLETIONS, {"model": "tiny", "prompt": "a"})], ids=["chat", "completion"]
)
@pytest.mark.parametrize(
    "fields", [{"prompt_logprobs": 0, "stream": True}, {"prompt_logprobs": 21}, {"prompt_logprobs": -1}]
)
async def test_prompt_logprobs_that_are_refused(
    client: httpx.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, Any], fields: dict[str, Any]
) -> None:
    reply = await client.post(path, json=body | fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt_logprobs")
    assert engine.requests == []


async def test_false_asks_for_no_prompt_logprobs(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    reply = (await client.post(CHAT, json=text_body(prompt_logprobs=False, stream=False))).json()
    assert "prompt_logprobs" not in reply
    assert engine.requests[-1].sampling.prompt_logprobs is None
