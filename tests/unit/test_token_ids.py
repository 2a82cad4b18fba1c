"""Token ids against a transcription of what LLaVA's own code does, from the original tokenizers' rules upwards.

Nothing of ours stands on the expected side: the prompt is the golden one (its texts exchanged for odder ones), it is
cut as ``tokenizer_image_token`` cuts it, and a chunk is tokenized by the sentencepiece library, or by the
checkpoint's tokenizer.json as it was written to disk.
"""

import json
import random
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer

from llava_api.chat.model import ServedModel, describe_model
from llava_api.checkpoints.inspect import Checkpoint, inspect_checkpoint
from llava_api.prompts.render import RenderedPrompt, tokenize
from llava_api.prompts.segments import Turn
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.settings import Settings
from tests.support.golden import cases
from tests.support.tiny_checkpoints import Tiny, classic_config, original_config, write_processor
from tests.support.tiny_tokenizers import (
    build,
    llama_tokenizer,
    sentencepiece_model,
    token_ids,
    write_json,
    write_tokenizer,
)

IMAGE_TOKENS = 3
CHATML = ("<|im_start|>", "<|im_end|>")
Chunk = Callable[[str], list[int]]
"""Ids of a text with BOS, as calling a tokenizer of transformers gives them."""

ODD_TEXTS = {
    "empty": "",
    "one space": " ",
    "two spaces": "  ",
    "spaces before": "   before",
    "spaces behind": "behind   ",
    "spaces inside": "two  and   three",
    "tab": "\ta\tb\t",
    "newline": "\n",
    "newlines": "\n\na\n\n\nb\n",
    "newline and space": "\n a \n",
    "windows lines": "one\r\ntwo\r\n",
    "chinese": "请描述这张图片的内容",
    "japanese with its own space": "\u3000これは\u3000何?",
    "hebrew": "מה רואים בתמונה?",
    "emoji": "👍 great 🎉🎉",
    "emoji of several code points": "👩‍👩‍👧‍👦 and 🇩🇪",
    "accents composed and not": "Vo\u00e9la e\u0301 A\u030a \u212b",
    "accent at the very start": "\u0301x",
    "korean letters not composed": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "ligature": "\ufb01nd \u2460 \u00bd",
    "no-break space": "\u00a0a\u00a0b",
    "nothing to see": "\u200b\ufeff\u200d",
    "control characters": "\x00\x01\x1b[0m\x7f",
    "private use": "\ue000 \uf8fe \uf8ff \uf8fd",
    "sentencepiece's own space": "▁ a▁b ▁▁",
    "digits": "1234567 3.14 0001 ٣",
    "contractions": "it's I'LL they've",
    "braces": "{user} {{ system }} {% if %} {0}",
    "pieces of bytes": "<0x0A> <0x00>",
    "long": "The quick brown fox  jumps over 13 lazy dogs.\n" * 100,
}


def transcribed_image_token_rule(prompt: str, chunk: Chunk, bos: int | None, image_token: int) -> list[int]:
    """``tokenizer_image_token`` of llava/mm_utils.py, each image as many tokens as the model is shown."""
    chunks = [chunk(text) for text in prompt.split("<image>")]
    offset = 1 if chunks[0] and bos is not None and chunks[0][0] == bos else 0
    ids = chunks[0][:offset]
    for number, found in enumerate(chunks):
        ids += [image_token] * IMAGE_TOKENS if number else []
        ids += found[offset:]
    return ids


class SlowLlama:
    """``LlamaTokenizer`` of transformers 4.31 to 4.40 over the sentencepiece library."""

    def __init__(self, model: bytes, legacy: bool, specials: dict[str, int], bos: int | None = 1) -> None:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        proto.normalizer_spec.add_dummy_prefix = legacy
        self.model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.legacy = legacy
        self.specials = specials
        self.bos = bos
        self.unk_length = len(self.encode("<unk>"))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.model.encode(text)
        return ids

    def __call__(self, text: str) -> list[int]:
        return [*([] if self.bos is None else [self.bos]), *self.tokenize(text)]

    def tokenize(self, text: str) -> list[int]:
        if self.legacy or not text:
            return self.split_at_specials(text)
        ids = self.split_at_specials("▁" + text.replace("▁", " "))
        lone = self.model.piece_to_id("▁")
        return ids[1:] if len(ids) > 1 and ids[0] == lone and ids[1] in self.specials.values() else ids

    def split_at_specials(self, text: str) -> list[int]:
        longest_first = sorted(self.specials, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids: list[int] = []
        for piece in pieces:
            if piece in self.specials:
                ids.append(self.specials[piece])
            elif piece:
                ids += self.piece(piece)
        return ids

    def piece(self, text: str) -> list[int]:
        if self.legacy or not text.startswith(("▁", " ")):
            return self.encode(text)
        return self.encode("<unk>" + text)[self.unk_length :]


@dataclass(frozen=True)
class Kind:
    """A checkpoint's format and tokenizer. ``legacy``: the flag of Llama's tokenizers, None where there is none."""

    text_model: str
    form: Literal["hub", "original"]
    legacy: bool | None = None

    def __str__(self) -> str:
        return f"{self.text_model}-{self.form}" + ("" if self.legacy is None else f"-legacy {self.legacy}".lower())

    def write(self, folder: Path) -> Path:
        """Config and tokenizer; Llama's original form has tokenizer.model and no tokenizer.json."""
        tiny = Tiny(self.text_model, "1.5")
        hub = self.form == "hub"
        write_tokenizer(self.text_model, folder, image_token=hub, slow_only=not hub)
        if hub:
            write_json(folder / "config.json", classic_config(tiny))
            write_processor(tiny, folder)
        else:
            tower = Path("openai/clip-vit-large-patch14-336")
            write_json(folder / "config.json", original_config(tiny, tower, "mlp2x_gelu", tiny.vocab_size))
        if self.legacy is not None:
            change_json(folder / "tokenizer_config.json", legacy=self.legacy)
        if hub and self.legacy is not None:
            save_llama(folder, tokenizer_of_form(self.legacy))
        return folder

    def reference(self, image_token: int) -> Callable[[str], list[int]]:
        """A prompt as the original prints it -> the original's ids."""
        if self.legacy is not None:
            slow = SlowLlama(sentencepiece_model(), self.legacy, {"<unk>": 0, "<s>": 1, "</s>": 2})
            return lambda prompt: transcribed_image_token_rule(prompt, slow, 1, image_token)
        fast = build(self.text_model, image_token=False)
        bos = token_ids(self.text_model).get("<|begin_of_text|>")
        return lambda prompt: transcribed_image_token_rule(prompt, lambda text: fast.encode(text).ids, bos, image_token)


KINDS = [
    *(Kind("llama", form, legacy) for form in ("hub", "original") for legacy in (False, True)),
    *(Kind("mistral", form, True) for form in ("hub", "original")),
    *(Kind(text_model, form) for text_model in ("qwen2", "llama3") for form in ("hub", "original")),
]


def change_json(path: Path, **changes: Any) -> None:
    """Change a JSON file's fields; None takes one out."""
    changed = {**(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}), **changes}
    write_json(path, {name: value for name, value in changed.items() if value is not None})


def tokenizer_of_form(legacy: bool, added: Sequence[str] = ()) -> Tokenizer:
    """Llama's tokenizer.json: Prepend and Replace (``legacy``) or Metaspace, with ``<image>`` behind ``added``."""
    tokenizer = llama_tokenizer(legacy)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*added, "<image>")])
    return tokenizer


def save_llama(folder: Path, tokenizer: Tokenizer) -> None:
    """tokenizer.json, and a config.json and preprocessor that know where its ``<image>`` is."""
    tokenizer.save(str(folder / "tokenizer.json"))
    change_json(folder / "config.json", image_token_index=tokenizer.token_to_id("<image>"))


def templates() -> list[str]:
    return list(dict.fromkeys(case["template"] for case in cases("prompts")))


def golden(template: str | None = None) -> list[dict[str, Any]]:
    """The golden prompts of one family, or all."""
    return [case for case in cases("prompts") if template in (None, case["template"])]


def turns_of(case: dict[str, Any]) -> list[Turn]:
    turns, images = [], 0
    for turn in case["turns"]:
        count = turn.get("images", 0)
        turns.append(Turn(turn["role"], (*range(images, images + count), turn["text"])))
        images += count
    return turns


def with_text(case: dict[str, Any], text: str) -> dict[str, Any]:
    """A golden case with everything that people said in it replaced, in the prompt as well.

    An empty text leaves the system message as it is: the golden prompts do not show what the original makes of none.
    """
    replaced = [turn["text"] for turn in case["turns"]]
    system = case["system"]
    if system and text:
        replaced.append(system)
        system = text
    prompt = case["prompt"]
    for said in replaced:
        assert prompt.count(said) == 1, said
        prompt = prompt.replace(said, "\0said\0")
    turns = [{**turn, "text": text} for turn in case["turns"]]
    return {**case, "system": system, "turns": turns, "prompt": prompt.replace("\0said\0", text)}


def served(checkpoint: Checkpoint, family: str | None) -> ServedModel:
    return describe_model(checkpoint, ("model",), Settings(prompt_family=family))


def rendered(model: ServedModel, system: str | None, turns: Sequence[Turn]) -> RenderedPrompt:
    lengths = [IMAGE_TOKENS] * sum(len(turn.images) for turn in turns)
    return tokenize(model.family.layout(system, turns), model.tokenizer, model.checkpoint.image_token_id, lengths)


def differing(
    checkpoint: Checkpoint, expected: Callable[[str], list[int]], wanted: Sequence[dict[str, Any]]
) -> list[tuple[Any, ...]]:
    """The cases whose ids are not the original's: (family, case, prompt, first difference, our ids, the original's)."""
    found: list[tuple[Any, ...]] = []
    models = {family: served(checkpoint, family) for family in {case["template"] for case in wanted}}
    for case in wanted:
        ours = rendered(models[case["template"]], case["system"], turns_of(case)).token_ids
        theirs = expected(case["prompt"])
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            at = next((at for at, (one, other) in pairs if one != other), None)
            found.append((case["template"], case["case"], case["prompt"][:200], at, ours[:60], theirs[:60]))
    return found


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return inspect_checkpoint(str(kind.write(tmp_path_factory.mktemp("checkpoint"))))


@pytest.fixture(scope="module")
def expected(kind: Kind, checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    return kind.reference(checkpoint.image_token_id)


@pytest.mark.parametrize("template", templates())
def test_every_golden_prompt_has_the_original_ids(
    template: str, checkpoint: Checkpoint, expected: Callable[[str], list[int]]
) -> None:
    assert differing(checkpoint, expected, golden(template)) == []


@pytest.mark.parametrize("template", templates())
def test_odd_texts_have_the_original_ids(
    template: str, checkpoint: Checkpoint, expected: Callable[[str], list[int]]
) -> None:
    shapes = [case for case in golden(template) if case["case"] in ("image_each_turn", "system_two_turns")]
    wanted = [with_text(case, text) for case in shapes for text in ODD_TEXTS.values()]
    assert differing(checkpoint, expected, wanted) == []


@pytest.mark.parametrize("template", templates())
def test_random_texts_have_the_original_ids(
    template: str, checkpoint: Checkpoint, expected: Callable[[str], list[int]]
) -> None:
    chance = random.Random(0)
    letters = [" ", " ", "\n", "\t", *"aeiouTHnst.,'?0123▁<>|/", "é", "e\u0301", "图", "👍", "\u200d", "\u00a0"]
    said = ["".join(chance.choices(letters, k=chance.randrange(30))) for _ in range(50)]
    shape = next(case for case in golden(template) if case["case"] == "image_each_turn")
    assert differing(checkpoint, expected, [with_text(shape, text) for text in said]) == []


def test_image_tokens_stand_where_the_prompt_says(checkpoint: Checkpoint) -> None:
    turns = [Turn("user", (0, 1, "a")), Turn("assistant", ("b",)), Turn("user", (2, "c"))]
    found = rendered(served(checkpoint, "vicuna_v1"), None, turns)
    assert [place.image for place in found.placeholders] == [0, 1, 2]
    image = checkpoint.image_token_id
    marked = [at for place in found.placeholders for at in range(place.offset, place.offset + place.length)]
    assert [at for at, token in enumerate(found.token_ids) if token == image] == marked
    assert len(marked) == 3 * IMAGE_TOKENS


def llama_3_prompt(system: str, question: str) -> str:
    """The original's form less ``<|begin_of_text|>``, which the tokenizer writes."""
    return (
        f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n<image>\n{question}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize("form", ["hub", "original"])
@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_llama_3_prompts_have_bos_once_and_the_original_ids(
    form: Literal["hub", "original"], text: str, tmp_path: Path
) -> None:
    kind = Kind("llama3", form)
    checkpoint = inspect_checkpoint(str(kind.write(tmp_path)))
    found = rendered(served(checkpoint, None), "Be brief.", [Turn("user", (0, text))]).token_ids
    assert found == kind.reference(checkpoint.image_token_id)(llama_3_prompt("Be brief.", text))
    assert found.count(token_ids("llama3")["<|begin_of_text|>"]) == 1


@pytest.mark.parametrize("text_model", ["llama", "mistral", "qwen2", "llama3"])
def test_bos_stands_once_at_the_start_where_the_tokenizer_has_one(text_model: str, tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(str(Kind(text_model, "hub").write(tmp_path)))
    turns = [Turn("user", (0, "a")), Turn("assistant", ("b",)), Turn("user", (1, "c"))]
    ids = rendered(served(checkpoint, None), None, turns).token_ids
    name = {"llama": "<s>", "mistral": "<s>", "llama3": "<|begin_of_text|>"}.get(text_model)
    assert [at for at, token in enumerate(ids) if token == token_ids(text_model).get(name or "")] == (
        [0] if name else []
    )


# Tokenizer files that do not say the same


def check_slow_ids(folder: Path, legacy: bool, added: Sequence[str] = (), family: str | None = None) -> None:
    """All golden prompts (or one family's) and the odd texts have ``LlamaTokenizer``'s ids."""
    checkpoint = inspect_checkpoint(str(folder))
    specials = {text: number for number, text in enumerate(("<unk>", "<s>", "</s>"))}
    specials |= {text: 400 + number for number, text in enumerate(added)}
    slow = SlowLlama(sentencepiece_model(), legacy, specials)
    shapes = [case for case in golden(family) if case["case"] == "image_each_turn"]
    odd = [with_text(case, text) for case in shapes for text in ODD_TEXTS.values()]

    def expected(prompt: str) -> list[int]:
        return transcribed_image_token_rule(prompt, slow, 1, checkpoint.image_token_id)

    assert differing(checkpoint, expected, [*golden(family), *odd]) == []


@pytest.mark.parametrize("flag", [False, True], ids=["flag false", "flag true"])
@pytest.mark.parametrize("prepend", [False, True], ids=["metaspace", "prepend"])
def test_the_legacy_flag_wins_over_the_form_of_tokenizer_json(prepend: bool, flag: bool, tmp_path: Path) -> None:
    Kind("llama", "hub", flag).write(tmp_path)
    save_llama(tmp_path, tokenizer_of_form(prepend))
    check_slow_ids(tmp_path, flag)


@pytest.mark.parametrize("prepend", [False, True], ids=["metaspace", "prepend"])
def test_without_the_flag_tokenizer_json_is_followed(prepend: bool, tmp_path: Path) -> None:
    Kind("llama", "hub", prepend).write(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", legacy=None)
    check_slow_ids(tmp_path, prepend)


def test_a_tokenizer_model_without_the_flag_is_legacy(tmp_path: Path) -> None:
    Kind("llama", "original", False).write(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", legacy=None)
    check_slow_ids(tmp_path, legacy=True)


def test_a_tokenizer_model_with_no_other_tokenizer_file_is_llamas(tmp_path: Path) -> None:
    # LlamaTokenizer's own defaults: <s> and </s>, BOS written, legacy.
    Kind("llama", "original", True).write(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    check_slow_ids(tmp_path, legacy=True)


@pytest.mark.parametrize("legacy", [False, True], ids=["legacy false", "legacy true"])
def test_specials_that_tokenizer_json_wants_normalized_are_found_as_the_slow_tokenizer_finds_them(
    legacy: bool, tmp_path: Path
) -> None:
    # Vicuna's own files say "normalized": true of <s> and </s>.
    Kind("llama", "hub", legacy).write(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for token in settings["added_tokens"]:
        token["normalized"] = True
    write_json(tmp_path / "tokenizer.json", settings)
    check_slow_ids(tmp_path, legacy)


@pytest.mark.parametrize("legacy", [False, True], ids=["legacy false", "legacy true"])
def test_chat_markers_added_to_a_llama_tokenizer_have_the_original_ids(legacy: bool, tmp_path: Path) -> None:
    # As llava-v1.6-34b has them: a prompt starts with a special token, and typed text follows others.
    Kind("llama", "hub", legacy).write(tmp_path)
    save_llama(tmp_path, tokenizer_of_form(legacy, CHATML))
    check_slow_ids(tmp_path, legacy, CHATML, family="chatml_direct")


@pytest.mark.parametrize("legacy", [False, True], ids=["legacy false", "legacy true"])
def test_chat_markers_in_added_tokens_json_have_the_original_ids(legacy: bool, tmp_path: Path) -> None:
    Kind("llama", "original", legacy).write(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=None)
    write_json(tmp_path / "added_tokens.json", {text: 400 + number for number, text in enumerate(CHATML)})
    check_slow_ids(tmp_path, legacy, CHATML, family="chatml_direct")
    assert inspect_checkpoint(str(tmp_path)).image_token_id == 402


@pytest.mark.parametrize("legacy", [False, True], ids=["legacy false", "legacy true"])
def test_marks_around_images_have_the_original_ids(legacy: bool, tmp_path: Path) -> None:
    marks = ("<im_start>", "<im_end>")
    Kind("llama", "original", legacy).write(tmp_path)
    change_json(tmp_path / "config.json", mm_use_im_start_end=True)
    change_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=None)
    write_json(tmp_path / "added_tokens.json", {text: 400 + number for number, text in enumerate(marks)})
    checkpoint = inspect_checkpoint(str(tmp_path))
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2, "<im_start>": 400, "<im_end>": 401}
    slow = SlowLlama(sentencepiece_model(), legacy, specials)
    model = served(checkpoint, None)
    for case in golden("vicuna_v1"):
        found = rendered(model, case["system"], turns_of(case)).token_ids
        prompt = case["prompt"].replace("<image>", "<im_start><image><im_end>")
        assert found == transcribed_image_token_rule(prompt, slow, 1, checkpoint.image_token_id)


@pytest.mark.parametrize("listed", [False, True], ids=["in tokenizer.model alone", "in tokenizer_config.json too"])
def test_chat_markers_that_are_pieces_of_tokenizer_model_have_the_original_ids(listed: bool, tmp_path: Path) -> None:
    # As Yi has them, whose kin is llava-v1.6-34b; sentencepiece finds them by itself.
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model())
    for text in CHATML:
        proto.pieces.add(piece=text, score=0.0, type=kinds.USER_DEFINED)
    model = proto.SerializeToString()
    Kind("llama", "original", True).write(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(model)
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2}
    if listed:
        specials |= {text: 400 + number for number, text in enumerate(CHATML)}
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
        like_others = settings["added_tokens_decoder"]["2"]
        more = {str(number): {**like_others, "content": text} for text, number in specials.items()}
        change_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=more)
    checkpoint = inspect_checkpoint(str(tmp_path))
    slow = SlowLlama(model, True, specials)

    def expected(prompt: str) -> list[int]:
        return transcribed_image_token_rule(prompt, slow, 1, checkpoint.image_token_id)

    assert differing(checkpoint, expected, golden("chatml_direct")) == []


def test_a_long_text_lets_other_threads_run(tmp_path: Path) -> None:
    write_tokenizer("llama", tmp_path, image_token=True)
    tokenizer = TextTokenizer((tmp_path / "tokenizer.json").read_text(), None)
    text = "".join(random.Random(1).choices("abc de", k=100_000))
    turns, over = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not over.wait(0.001):
            turns += 1

    other = threading.Thread(target=take_turns)
    other.start()
    try:
        before = turns
        tokenizer.encode([text])
        taken = turns - before
    finally:
        over.set()
        other.join()
    assert taken > 5
