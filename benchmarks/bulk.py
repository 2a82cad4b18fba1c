"""``llava-api batch run`` beside plain loops over the openai client: requests per second, and the client's CPU time.

``python -m benchmarks.bulk`` starts a server that only waits and answers, so that what differs is the clients'. All
send the same requests, each with one JPEG file that is read from the disk.
"""

import argparse
import asyncio
import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai
import uvicorn

from benchmarks.images import Images

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "bench",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "A word."}, "finish_reason": "stop"}],
}
CLIENTS = ("loop", "gather", "batch run")
"""One request after the other; as many at once as batch run, in one event loop; llava-api batch run."""


def serve(slots: int, milliseconds: float) -> None:
    """Answers ``slots`` requests at once, each after ``milliseconds``, as an engine does."""
    body = json.dumps(ANSWER).encode()
    free = asyncio.Semaphore(slots)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        async with free:
            await asyncio.sleep(milliseconds / 1000)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", access_log=False)
    listener = config.bind_socket()
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def body_of(folder: Path, line: dict[str, Any]) -> dict[str, Any]:
    image = line["body"]["messages"][0]["content"][0]["image_url"]
    data = (folder / image["url"]).read_bytes()
    image["url"] = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    body: dict[str, Any] = line["body"]
    return body


def plain_loop(requests: Path, output: Path) -> None:
    client = openai.OpenAI()
    with open(requests) as lines, open(output, "w") as file:
        for line in map(json.loads, lines):
            reply = client.chat.completions.create(**body_of(requests.parent, line))
            file.write(json.dumps({"custom_id": line["custom_id"], "answer": reply.model_dump()}) + "\n")


async def gathered(folder: Path, lines: list[str], concurrency: int) -> list[dict[str, Any]]:
    client = openai.AsyncOpenAI()
    turns = asyncio.Semaphore(concurrency)

    async def ask(line: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            reply = await client.chat.completions.create(**body_of(folder, line))
            return {"custom_id": line["custom_id"], "answer": reply.model_dump()}

    return await asyncio.gather(*(ask(json.loads(line)) for line in lines))


def measure(client: str, requests: Path, base_url: str, concurrency: int) -> dict[str, Any]:
    """Run a client in a process of its own. Its start is part of it."""
    output = requests.with_name(f"{client.replace(' ', '-')}.jsonl")
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "llava_api", "batch", "run", requests, "--output", output]
    if client != "batch run":
        command = [sys.executable, "-m", "benchmarks.bulk", "--client", client, requests, output]
    environment = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        [*command, "--concurrency", str(concurrency)], env=environment, check=True, stderr=subprocess.DEVNULL
    )
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = len(requests.read_bytes().splitlines())
    assert len(output.read_bytes().splitlines()) == count
    return {
        "client": client,
        "seconds": round(seconds, 2),
        "requests_per_second": round(count / seconds, 1),
        "cpu_ms_per_request": round(cpu / count * 1000, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--milliseconds", type=float, default=100.0, help="what the server takes for an answer")
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.concurrency, chosen.milliseconds)
    elif chosen.client == "loop":
        plain_loop(*map(Path, chosen.files))
    elif chosen.client == "gather":
        requests, output = map(Path, chosen.files)
        answers = asyncio.run(gathered(requests.parent, requests.read_text().splitlines(), chosen.concurrency))
        output.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    else:
        compare(chosen)


def compare(chosen: argparse.Namespace) -> None:
    flags = ["--concurrency", str(chosen.concurrency), "--milliseconds", str(chosen.milliseconds)]
    server_command = [sys.executable, "-m", "benchmarks.bulk", "--serve", *flags]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(server_command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            (Path(name) / "a.jpg").write_bytes(Images((640, 480)).jpeg(0))
            parts = [{"type": "image_url", "image_url": {"url": "a.jpg"}}, {"type": "text", "text": "What is it?"}]
            body = {"model": "bench", "messages": [{"role": "user", "content": parts}]}
            requests = Path(name) / "requests.jsonl"
            with open(requests, "w") as file:
                for number in range(chosen.requests):
                    line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
                    file.write(json.dumps(line) + "\n")
            assert server.stdout is not None
            base_url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            for client in CLIENTS:
                print(json.dumps(measure(client, requests, base_url, chosen.concurrency)), flush=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
