"""With ``--isolate-caches`` nothing that was computed for one caller is used for another, and still for itself."""

from random import Random

import pytest

from llava_api.chat.prepare import Preparer
from llava_api.chat.question import chat_question
from llava_api.engine.base import GenerationRequest, Sampling
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.images.load import ImageLoader
from llava_api.limits.account import Account
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.settings import Settings
from tests.engine.conftest import Running
from tests.support.questions import data_url
from training.drawings import new_drawing


def content(with_picture: bool) -> str | list[dict[str, object]]:
    text = f"Nobody has asked this before, with a picture: {with_picture}. " * 10
    if not with_picture:
        return text
    image = new_drawing(Random("isolation"), (300, 200))
    return [
        {"type": "image_url", "image_url": data_url(image.image)},
        {"type": "text", "text": text},
    ]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("with_picture", [True, False])
async def test_a_prompt_is_cached_for_its_own_caller_alone(running: Running, with_picture: bool) -> None:
    wanted = ChatCompletionRequest.model_validate(
        {
            "model": "endless",
            "messages": [{"role": "user", "content": content(with_picture)}],
            "max_tokens": 2,
            "temperature": 0.0,
        }
    )
    question = chat_question(wanted, running.model, 1)
    settings = Settings(isolate_caches=True)
    images = ImageLoader(running.model.image_mode, settings)
    preparer = Preparer(running.model, settings, running.engine.max_model_len, images, GrammarChecker())
    cached = []
    # Callers of their own for each of the two prompts, whose first block of 32 tokens is the same system text.
    anne, ben = f"key anne {with_picture}", f"key ben {with_picture}"
    for number, caller in enumerate((anne, ben, anne, ben)):
        spec = await preparer.prepare(question, f"isolated-{with_picture}-{number}", Account(caller))
        # What every conversation of the model begins with is apart as well.
        cached.append([delta.cached_tokens async for delta in running.engine.generate(spec.request)][-1])
    await images.close()
    assert cached[:2] == [0, 0]
    assert cached[2] == cached[3] > 100


def test_the_salt_reaches_the_engine_with_images_and_without() -> None:
    import numpy

    from llava_api.engine.base import EngineImage
    from llava_api.engine.vllm_engine import engine_input

    image = EngineImage(numpy.zeros((3, 4, 4), "uint8"), 1, 1, "key", None)
    for images in ((), (image,)):
        salted = GenerationRequest("a", [1, 2, 3], images, Sampling(0), 1, cache_salt="of key anne")
        plain = GenerationRequest("b", [1, 2, 3], images, Sampling(0), 1)
        assert engine_input(salted)["cache_salt"] == "of key anne"
        assert "cache_salt" not in engine_input(plain)
