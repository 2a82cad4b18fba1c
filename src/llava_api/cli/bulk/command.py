"""What the commands for work in bulk share: flags, the run, its summary and its exit code."""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Hashable
from pathlib import Path

from llava_api.cli.bulk.job import Job
from llava_api.cli.endpoint import BASE_URL, base_url_from, find_key, is_web_address
from llava_api.errors import StartupError

DEFAULT_CONCURRENCY = 128
SOME_FAILED = 3
"""The exit code if the run came to its end and some items have no answer."""
INTERRUPTED = 130


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", metavar="URL", help=f"the API; else $OPENAI_BASE_URL, else {BASE_URL}")
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the API key, as key or name=key; else $LLAVA_API_KEY, else $OPENAI_API_KEY",
    )
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=DEFAULT_CONCURRENCY,
        metavar="NUMBER",
        help=f"most requests at once ({DEFAULT_CONCURRENCY}); fewer while the server refuses some",
    )
    parser.add_argument(
        "--order",
        choices=("input", "finished"),
        default="input",
        help="order of the output at the end: that of the input (the default), or as answers came",
    )


def positive(text: str) -> int:
    """Raises ValueError, to which argparse adds the flag."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def existing_file(name: str, flag: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise StartupError(f"{flag}: there is no file {path}")
    return path


def model_of(chosen: argparse.Namespace) -> str:
    """``--model``, else the first model that the server lists. Raises StartupError."""
    from llava_api.cli.api_client import ApiClient

    check_base_url(chosen)

    async def first() -> str:
        client = ApiClient(
            base_url_from(chosen.base_url),
            find_key(chosen.api_key_file),
            start_advice="start one with llava-api serve, or name another with --base-url",
            key_advice="name a file with --api-key-file",
        )
        try:
            return (await client.models())[0]
        finally:
            await client.aclose()

    return chosen.model or asyncio.run(first())


def check_base_url(chosen: argparse.Namespace) -> None:
    if not is_web_address(base_url_from(chosen.base_url)):
        raise StartupError("--base-url must start with http:// or https://, as in " + BASE_URL)


def work(job: Job, output: Path, chosen: argparse.Namespace) -> int:
    """Ask for what ``output`` does not hold yet, and say what came of it. The exit code.

    Failures go to a file beside the output, which each run begins anew: the next run asks for them again.
    Raises StartupError.
    """
    # Imported only now: the other commands do not need them, and they take time to load.
    from llava_api.cli.bulk.progress import Counts, Shown
    from llava_api.cli.bulk.results import ResultFile
    from llava_api.cli.bulk.runner import Runner
    from llava_api.cli.bulk.sender import Sender

    check_base_url(chosen)
    key = find_key(chosen.api_key_file)
    results = ResultFile(output, job)
    failed = output.with_name(f"{output.name}.errors.jsonl")
    try:
        counts = Counts(count(job, results.done(), output), sum(results.done().values()))
        failed.unlink(missing_ok=True)
        failures = ResultFile(failed, job)
        try:
            with Shown(counts) as shown:
                sender = Sender(base_url_from(chosen.base_url), key, chosen.concurrency)
                asyncio.run(Runner(job, results, failures, sender, shown, chosen.concurrency).run())
            if chosen.order == "input":
                results.sort(item.key for item in job.items())
        except KeyboardInterrupt:
            print("Stopped: the same command goes on from here.", file=sys.stderr)
            return INTERRUPTED
        finally:
            failures.close()
            if not counts.failed:
                failed.unlink(missing_ok=True)
            where = f", {counts.failed} failed: see {failed}" if counts.failed else ""
            print(f"{counts.done} of {counts.total} done in {output}{where}", file=sys.stderr)
        return SOME_FAILED if counts.failed else 0
    finally:
        results.close()


def count(job: Job, done: Counter[Hashable], output: Path) -> int:
    """The number of items. Raises StartupError if the output has lines of other items."""
    total = 0
    for item in job.items():
        total += 1
        if done[item.key]:
            done[item.key] -= 1
    strange = next((key for key, left in done.items() if left), None)
    if strange is not None:
        raise StartupError(f"{output} has a line that the input does not ask for ({strange!r}): name another file")
    return total
