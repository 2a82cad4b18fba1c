"""Which tokens are learned: an answer's words and the token that ends it, written out by hand for each family.

The rules are those of LLaVA's train.py: preprocess_v1, preprocess_llama_2, preprocess_mpt, preprocess_plain, and
LLaVA-NeXT's preprocess_llama3 and preprocess_qwen. The last two also learn the assistant's header, every newline and
every chat marker, which a server writes itself; here they are not learned.
"""

from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from llava_api.errors import StartupError
from llava_api.finetune.dataset import IGNORED
from llava_api.finetune.encode import encode, learnable_segments
from llava_api.finetune.model_input import ModelInput
from llava_api.prompts.segments import as_text
from tests.support.finetune import model_input, samples_of, served, turns

SAMPLE = {
    "image": "never-opened.png",
    "conversations": [
        {"from": "system", "value": "Go."},
        *turns("What is it?\n<image>", "A lamp.", "Sure?", "Yes."),
    ],
}
CHATML = (
    "<|im_start|> s y st e m Ċ G o . <|im_end|> {newline}<|im_start|> u s er Ċ <image> <image> Ċ W hat Ġis Ġit ? "
    "<|im_end|> {newline}<|im_start|> a ss istant Ċ [ A Ġla mp . <|im_end|> ] {newline}"
    "<|im_start|> u s er Ċ S u re ? <|im_end|> {newline}<|im_start|> a ss istant Ċ [ Y es . <|im_end|> ] {newline}"
)


def marked(model: ModelInput, folder: Path, sample: dict[str, object]) -> str:
    """The sample's tokens, the learned ones between [ and ]; an image is two tokens."""
    encoded = encode(samples_of(folder, sample)[0], model, [2])
    words, learning = [], False
    for token, learned in zip([*encoded.prompt.token_ids, None], [*encoded.learned, False], strict=True):
        if learned != learning:
            words.append("[" if learned else "]")
        learning = learned
        # A token that is a bracket itself is written as a byte.
        words.append(
            "" if token is None else model.tokenizer.piece(token).replace("[", "<0x5B>").replace("]", "<0x5D>")
        )
    return " ".join(filter(None, words))


@pytest.mark.parametrize(
    ("checkpoint", "family", "wanted"),
    [
        (
            "llama 1.5",
            "vicuna_v1",
            "<s> ▁ G o . ▁ U S ER : ▁ <image> <image> ▁ <0x0A> W hat ▁is ▁it ? ▁A S S I ST A N T : "
            "[ ▁A ▁l a m p . </s> ] U S ER : ▁ S u re ? ▁A S S I ST A N T : [ ▁ Y es . </s> ]",
        ),
        (
            "mistral 1.6",
            "mistral_instruct",
            "<s> ▁<0x5B> INST <0x5D> ▁ <0x3C> <0x3C> S Y S <0x3E> <0x3E> <0x0A> G o . <0x0A> "
            "<0x3C> <0x3C> / S Y S <0x3E> <0x3E> <0x0A> <0x0A> <image> <image> ▁ <0x0A> W hat ▁is ▁it ? "
            "▁<0x5B> / INST <0x5D> [ ▁A ▁l a m p . ▁ </s> ] "
            "▁<0x5B> INST <0x5D> ▁ S u re ? ▁<0x5B> / INST <0x5D> [ ▁ Y es . ▁ </s> ]",
        ),
        ("qwen2 1.6", "chatml_direct", CHATML.format(newline="")),
        ("qwen2 1.6", "qwen_1_5", CHATML.format(newline="Ċ ")),
        (
            "llama3 1.6",
            "llava_llama_3",
            "<|begin_of_text|> <|start_header_id|> s y st e m <|end_header_id|> Ċ Ċ G o . <|eot_id|> "
            "<|start_header_id|> u s er <|end_header_id|> Ċ Ċ <image> <image> Ċ W hat Ġis Ġit ? <|eot_id|> "
            "<|start_header_id|> a ss istant <|end_header_id|> Ċ Ċ [ A Ġla mp . <|eot_id|> ] "
            "<|start_header_id|> u s er <|end_header_id|> Ċ Ċ S u re ? <|eot_id|> "
            "<|start_header_id|> a ss istant <|end_header_id|> Ċ Ċ [ Y es . <|eot_id|> ]",
        ),
    ],
)
def test_answers_and_their_ends_are_learned(checkpoint: str, family: str, wanted: str, tmp_path: Path) -> None:
    model = model_input(served(checkpoint, tmp_path, prompt_family=family))
    assert marked(model, tmp_path, SAMPLE) == wanted.strip()


@pytest.mark.parametrize(
    ("checkpoint", "family"), [("mistral 1.5", "llava_llama_2"), ("llama 1.5", "llava_v1"), ("qwen2 1.5", "mpt")]
)
def test_the_other_families_learn_answers_and_their_ends(checkpoint: str, family: str, tmp_path: Path) -> None:
    model = model_input(served(checkpoint, tmp_path, prompt_family=family))
    words = marked(model, tmp_path, SAMPLE).split(" ")
    starts, ends = ([place for place, word in enumerate(words) if word == mark] for mark in "[]")
    learned = ["".join(words[start + 1 : end]) for start, end in zip(starts, ends, strict=True)]
    wanted = {
        "llava_llama_2": ["▁A▁lamp.▁</s>", "▁Yes.▁</s>"],
        "llava_v1": ["▁A▁lamp.</s>", "▁Yes.</s>"],
        "mpt": ["AĠlamp.<|im_end|>", "Yes.<|im_end|>"],
    }
    assert learned == wanted[family]


WORDS = ("Yes", "no.", "It's", "a lamp", "12", "\n", "café", "(x)", "</", "USER", "»", " ", "ok!")


def counted_labels(prompt: str, tokenizer: Tokenizer, answers_follow: str, shorter: int) -> list[int]:
    """LLaVA's rule of preprocess_v1 and preprocess_llama_2: tokens are counted for each round, cut at ``</s>``.

    A round's BOS counts for its ``</s>``, its instruction goes up to the space before the answer. ``shorter``: by how
    much later rounds are, whose dummy prefix is missing in the whole prompt if a tokenizer is not legacy.
    """

    def tokens(text: str) -> list[int]:
        first, *others = [tokenizer.encode(chunk).ids for chunk in text.split("<image>")]
        return first + [token for chunk in others for token in (IGNORED, *chunk[1:])]

    ids = tokens(prompt)
    labels = [IGNORED] * len(ids)
    position = 1
    for number, text in enumerate(filter(None, prompt.split("</s>"))):
        less = shorter if number else 0
        start = position + len(tokens(text.partition(answers_follow)[0] + answers_follow)) - 2 - less
        position += len(tokens(text)) - less
        labels[start:position] = ids[start:position]
    assert position == len(ids)
    return labels


@pytest.mark.parametrize(
    ("checkpoint", "family", "answers_follow", "shorter"),
    [
        ("llama 1.5", "vicuna_v1", " ASSISTANT: ", 1),
        ("mistral 1.5", "vicuna_v1", " ASSISTANT: ", 0),
        ("mistral 1.6", "mistral_instruct", "[/INST] ", 0),
    ],
)
def test_labels_are_those_of_llavas_count(
    checkpoint: str, family: str, answers_follow: str, shorter: int, tmp_path: Path
) -> None:
    model = model_input(served(checkpoint, tmp_path, prompt_family=family))
    tokenizer = Tokenizer.from_file(str(tmp_path / "checkpoint/tokenizer.json"))
    rng = Random(20)
    for _ in range(100):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 6))).strip() or "x" for _ in range(rng.choice((2, 4, 6)))]
        sample = {"image": "never-opened.png", "conversations": turns(f"<image>\n{texts[0]}", *texts[1:])}
        (read,) = samples_of(tmp_path, sample)
        encoded = encode(read, model, [1])
        labels = [
            token if learned else IGNORED
            for token, learned in zip(encoded.prompt.token_ids, encoded.learned, strict=True)
        ]
        prompt = as_text([segment for segment, _ in learnable_segments(read, model)])
        assert labels == counted_labels(prompt, tokenizer, answers_follow, shorter), texts


def test_the_projector_learns_a_caption_without_a_prompt(tmp_path: Path) -> None:
    model = model_input(served("llama 1.5", tmp_path), plain=True)
    sample = {"image": "never-opened.png", "conversations": turns("Describe it.\n<image>", "A lamp.")}
    assert marked(model, tmp_path, sample) == "<s> <image> <image> [ ▁A ▁l a m p . <0x0A> ]"


def test_an_answer_that_ends_like_a_marker_is_words(tmp_path: Path) -> None:
    model = model_input(served("llama 1.5", tmp_path))
    sample = {"conversations": turns("A?", "</s>")}
    assert marked(model, tmp_path, sample).endswith("T : [ ▁ <0x3C> / s <0x3E> </s> ]")


def test_a_chat_template_learns_answers_and_their_ends(tmp_path: Path) -> None:
    model = model_input(served("qwen2 1.5", tmp_path))
    assert model.family.name == "hub"
    assert marked(model, tmp_path, SAMPLE) == CHATML.format(newline="Ċ ").strip()


def test_a_format_whose_answers_have_no_end_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="llava_v0 has no token that ends an answer"):
        model_input(served("llama 1.5", tmp_path, prompt_family="llava_v0"))
