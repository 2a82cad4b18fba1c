"""``llava-api eval``: ask a model the questions of a file in LLaVA's format, and write LLaVA's answers file.

The fields are those of LLaVA's llava/eval/model_vqa_loader.py. After any end, the same command goes on.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from uuid import uuid4

from llava_api.cli.bulk import score
from llava_api.cli.bulk.command import add_flags, existing_file, model_of, positive, work
from llava_api.cli.bulk.images import ImageFolder
from llava_api.cli.bulk.job import (
    Item,
    ItemFailed,
    Job,
    Line,
    Reply,
    Request,
    answer_text,
    chat_request,
    failing,
    numbered_lines,
    parse,
)
from llava_api.cli.chat.command import add_answer_flags
from llava_api.cli.conversation import Sampling
from llava_api.errors import StartupError

MAX_NEW_TOKENS = 128
"""As in model_vqa_loader.py."""
CONV_MODE_NOTE = (
    "--conv-mode {} has no effect: the server finds the checkpoint's prompt by itself; llava-api serve "
    "--prompt-family chooses another"
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("eval", help="answer a question file, or score its answers", description=__doc__)
    # Commands beside the flags, as in "llava-api eval score": each adds its parser here and sets its own ``run``.
    score.add_parser(parser.add_subparsers(metavar="COMMAND"))
    parser.add_argument("--question-file", metavar="FILE", help="JSONL file: question_id, image, text")
    parser.add_argument("--image-folder", metavar="FOLDER", default=".", help="where the images are (here)")
    parser.add_argument("--answers-file", metavar="FILE", help="JSONL file for the answers")
    parser.add_argument(
        "--num-chunks", type=positive, default=1, metavar="NUMBER", help="cut the questions into so many"
    )
    parser.add_argument("--chunk-idx", type=int, default=0, metavar="NUMBER", help="the chunk to answer, from 0")
    parser.add_argument("--model", "--model-path", metavar="NAME", help="which of the server's models (the first)")
    parser.add_argument("--conv-mode", metavar="NAME", help="no effect: the server decides the prompt")
    add_answer_flags(parser, temperature=0, max_tokens=MAX_NEW_TOKENS)
    add_flags(parser)
    parser.set_defaults(run=run)


def run(chosen: argparse.Namespace) -> None:
    if not chosen.question_file or not chosen.answers_file:
        raise StartupError("eval needs --question-file and --answers-file (see llava-api eval --help)")
    if not 0 <= chosen.chunk_idx < chosen.num_chunks:
        raise StartupError(f"--chunk-idx must be from 0 to {chosen.num_chunks - 1}")
    questions = existing_file(chosen.question_file, "--question-file")
    answers = Path(chosen.answers_file).expanduser()
    if answers.exists() and answers.samefile(questions):
        raise StartupError("--answers-file is the question file: name another")
    if chosen.conv_mode:
        print(CONV_MODE_NOTE.format(chosen.conv_mode), file=sys.stderr)
    model = model_of(chosen)
    sampling = Sampling(chosen.temperature, chosen.top_p, chosen.max_tokens, chosen.seed)
    images = ImageFolder(Path(chosen.image_folder))

    def items() -> Iterator[Item]:
        return read_items(chunk(questions, chosen.num_chunks, chosen.chunk_idx), model, sampling.fields(), images)

    job = Job(items, partial(line_for, model), key_of, b'{"question_id":')
    sys.exit(work(job, answers, chosen))


def chunk(questions: Path, chunks: int, index: int) -> Iterator[tuple[int, bytes]]:
    """The lines of one chunk, cut as LLaVA cuts: all have the same length but the last ones."""
    size = math.ceil(sum(1 for _ in numbered_lines(questions)) / chunks)
    return islice(numbered_lines(questions), index * size, (index + 1) * size)


def read_items(lines: Iterable[tuple[int, bytes]], model: str, fields: Line, images: ImageFolder) -> Iterator[Item]:
    """An item for each question. One for a bad line fails when it is prepared."""
    for number, text in lines:
        try:
            line = parse(text)
            question_id, question, image = (line.get(name) for name in ("question_id", "text", "image"))
            if not isinstance(question_id, int | str) or not isinstance(question, str):
                raise ItemFailed("missing_required_parameter", "question_id or text is missing.")
            if not isinstance(image, str | None):
                raise ItemFailed("invalid_type", "image must be the name of a file.")
            prepare = partial(prepare_question, model, question, image, fields, images)
            yield Item((question_id, question), str(question_id), prepare)
        except ItemFailed as error:
            yield failing(number, None, error)


def prepare_question(model: str, question: str, image: str | None, fields: Line, images: ImageFolder) -> Request:
    """Raises ItemFailed. Some questions of a benchmark have no image."""
    return chat_request(model, question, [images.data_url(image)] if image else [], fields)


def line_for(model: str, item: Item, reply: Reply) -> Line:
    question_id, question = item.key
    return {
        "question_id": question_id,
        "prompt": question,
        "text": answer_text(reply),
        "answer_id": uuid4().hex,
        "model_id": model,
        "metadata": {},
    }


def key_of(line: Line) -> tuple[int | str, str]:
    line["answer_id"]
    return line["question_id"], line["prompt"]
