"""``llava-api eval``: ask a model the questions of a file in LLaVA's format, and write LLaVA's answers file.

The fields are those of LLaVA's llava/eval/model_vqa_loader.py, model_vqa_science.py (ScienceQA's JSON file) and
model_vqa_mmbench.py (MMBench's table). After any end, the same command goes on.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

from llava_api.cli.bulk import score
from llava_api.cli.bulk.command import add_flags, existing_file, model_of, positive, work
from llava_api.cli.bulk.images import ImageFolder
from llava_api.cli.bulk.job import Item, ItemFailed, Job, Line, Reply, Request, answer_text, chat_request, failing
from llava_api.cli.bulk.questions import LETTER_PROMPTS, Question, QuestionFile
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
    parser.add_argument("--question-file", metavar="FILE", help="LLaVA's JSONL or JSON file, MMBench's .tsv")
    parser.add_argument("--image-folder", metavar="FOLDER", default=".", help="where the images are (here)")
    parser.add_argument("--answers-file", metavar="FILE", help="JSONL file for the answers")
    parser.add_argument(
        "--num-chunks", type=positive, default=1, metavar="NUMBER", help="chunks to cut the questions into"
    )
    parser.add_argument("--chunk-idx", type=int, default=0, metavar="NUMBER", help="the chunk to answer, from 0")
    parser.add_argument("--model", "--model-path", metavar="NAME", help="which of the server's models (the first)")
    parser.add_argument(
        "--single-pred-prompt", action="store_true", help="ask for the option's letter (ScienceQA, MMBench)"
    )
    parser.add_argument("--lang", choices=LETTER_PROMPTS, default="en", help="language of --single-pred-prompt (en)")
    parser.add_argument("--all-rounds", action="store_true", help="ask with the options in every rotation (MMBench)")
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
    letter_prompt = LETTER_PROMPTS[chosen.lang] if chosen.single_pred_prompt else ""
    file = QuestionFile(questions, ImageFolder(Path(chosen.image_folder)), letter_prompt, chosen.all_rounds)

    def items() -> Iterator[Item]:
        return read_items(file, file.chunk(chosen.num_chunks, chosen.chunk_idx), model, sampling.fields())

    job = Job(items, partial(line_for, model), key_of, b'{"question_id":')
    sys.exit(work(job, answers, chosen))


def read_items(
    file: QuestionFile, entries: Iterable[tuple[int, bytes | Line]], model: str, sampling: Line
) -> Iterator[Item]:
    """An item for each question. One for a bad entry fails when it is prepared."""
    for number, entry in entries:
        try:
            for question in file.questions(entry):
                key = (question.question_id, question.prompt, question.fields.get("round_id"))
                prepare = partial(prepare_question, model, question, sampling)
                yield Item(key, str(question.question_id), prepare, question.fields)
        except ItemFailed as error:
            yield failing(number, None, error)


def prepare_question(model: str, question: Question, sampling: Line) -> Request:
    """Raises ItemFailed."""
    return chat_request(model, question.text, [question.image()] if question.image else [], sampling)


def line_for(model: str, item: Item, reply: Reply) -> Line:
    question_id, prompt, _ = item.key
    text = answer_text(reply)
    made = {"answer_id": uuid4().hex, "model_id": model, "metadata": {}}
    return {"question_id": question_id, "prompt": prompt, "text": text, **item.fields, **made}


def key_of(line: Line) -> tuple[int | str, str, int | None]:
    line["answer_id"]
    return line["question_id"], line["prompt"], line.get("round_id")
