"""Ask a running server fresh questions over HTTP, through the openai client, and count the exact answers.

``python -m training.exam --base-url http://127.0.0.1:8000/v1 --model llava-tiny-1.5``. Images are drawn from
seeds that training and validation never use, sent as PNG and JPEG in turn, in all sizes of the promise.
"""

import argparse
import asyncio
import base64
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from random import Random
from typing import Any

from openai import AsyncOpenAI

from training.conversations import Question, ask_describe, exam_conversation
from training.drawings import TEAL, encode, new_drawing, random_size
from training.teal import teal_drawing


@dataclass(frozen=True, slots=True)
class Item:
    seed: str
    size: tuple[int, int]
    image_format: str
    image: bytes
    questions: list[Question]
    """The last one counts; those before it are the history."""


def draw_item(index: int, name: str = "exam") -> Item:
    """Item ``index`` of an exam, a pure function of both: ``exam``, or ``teal`` of what ``training.teal`` teaches."""
    seed = f"{name} {index}"
    rng = Random(seed)
    teal = name == TEAL
    drawing = teal_drawing(rng, 2000) if teal else new_drawing(rng, random_size(rng, 112, 2000))
    image_format = "PNG" if index % 2 == 0 else "JPEG"
    data = encode(drawing.image, image_format, quality=rng.randint(70, 95))
    asked = [ask_describe(rng, drawing, variants=False)] if teal else exam_conversation(rng, drawing)
    return Item(seed, drawing.image.size, image_format, data, asked)


def messages_of(item: Item) -> list[dict[str, Any]]:
    url = f"data:image/{item.image_format.lower()};base64,{base64.b64encode(item.image).decode()}"
    messages: list[dict[str, Any]] = []
    for index, question in enumerate(item.questions):
        content: Any = question.text
        if index == 0:
            image = {"type": "image_url", "image_url": {"url": url}}
            content = [{"type": "text", "text": question.text}, image]
        messages.append({"role": "user", "content": content})
        if index < len(item.questions) - 1:
            messages.append({"role": "assistant", "content": question.answer})
    return messages


async def ask(client: AsyncOpenAI, model: str, item: Item) -> str:
    """The streamed answer, put together."""
    stream = await client.chat.completions.create(
        model=model,
        messages=messages_of(item),  # type: ignore[arg-type]
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def examine(base_url: str, model: str, count: int, at_once: int, name: str = "exam") -> dict[str, Any]:
    """{"all": share, kind: share, ..., "wrong": [...]} over ``count`` items."""
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    slots = asyncio.Semaphore(at_once)
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    wrong: list[dict[str, Any]] = []

    async def one(index: int) -> None:
        async with slots:
            item = draw_item(index, name)
            question = item.questions[-1]
            answer = await ask(client, model, item)
        for kind in ("all", question.kind):
            asked[kind] += 1
            right[kind] += answer == question.answer
        if answer != question.answer:
            wrong.append(
                {
                    "seed": item.seed,
                    "size": item.size,
                    "question": question.text,
                    "wanted": question.answer,
                    "got": answer,
                }
            )

    await asyncio.gather(*(one(index) for index in range(count)))
    shares: dict[str, Any] = {kind: f"{right[kind]}/{asked[kind]}" for kind in sorted(asked)}
    return {"share": right["all"] / asked["all"], **shares, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="llava-tiny-1.5")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--pass-share", type=float, default=0.97)
    parser.add_argument("--teal", action="store_const", const=TEAL, default="exam", dest="name")
    arguments = parser.parse_args()
    report = asyncio.run(
        examine(arguments.base_url, arguments.model, arguments.count, arguments.at_once, arguments.name)
    )
    print(json.dumps(report, indent=1))
    if report["share"] < arguments.pass_share:
        sys.exit(f"{report['share']:.1%} is below {arguments.pass_share:.0%}")


if __name__ == "__main__":
    main()
