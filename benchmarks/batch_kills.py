"""Kills a server with SIGKILL at random moments while it runs a batch, and checks the batch's answers at the end.

``python -m benchmarks.batch_kills`` does it to ``llava-api serve`` with the demo checkpoint; ``--scripted`` to the same
server with an engine that only waits.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.servers import free_port

SCRIPTED = (sys.executable, "-c", "from tests.support.scripted_serve import main; main()")
REAL = (sys.executable, "-m", "llava_api")
START_SECONDS = 120.0
POLL_SECONDS = 0.02
CHAT = "/v1/chat/completions"
IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
)
"""Red, 8 x 8 pixels."""
REFUSED = 10
"""Each request of such a number is one that the server refuses, so that there is an error file."""


class Victim:
    """A server that is started again and again on one folder. None of its processes outlives a ``with``."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.command = [*command, "serve", "llava-tiny-1.5", "--served-model-name", "demo", "--log-level", "warning"]
        self.command += ["--data-dir", str(folder / "data"), "--min-free-disk-bytes", "0"]
        self.log = folder / "log"
        self.api = httpx.Client(timeout=60)

    def __enter__(self) -> "Victim":
        port = free_port()
        self.api.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(port)], stdout=log, stderr=log, start_new_session=True
            )
        give_up_at = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up_at and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if self.api.get("/health/ready").status_code == 200:
                    return self
            time.sleep(POLL_SECONDS)
        self.__exit__()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def get(self, path: str) -> Any:
        answer = self.api.get(path)
        answer.raise_for_status()
        return answer.json()

    def answers(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        return [json.loads(line) for line in self.api.get(f"/v1/files/{file_id}/content").iter_lines()]

    def create(self, count: int) -> str:
        lines = b"".join(json.dumps(request(number)).encode() + b"\n" for number in range(count))
        file = self.api.post("/v1/files", data={"purpose": "batch"}, files={"file": ("requests.jsonl", lines)}).json()
        wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch: str = self.api.post("/v1/batches", json=wanted).json()["id"]
        return batch


def request(number: int) -> dict[str, Any]:
    model = "no such model" if number % REFUSED == REFUSED - 1 else "demo"
    parts = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": f"Say {number}."}]
    body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    return {"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}


def run(command: Sequence[str], folder: Path, requests: int, kills: int, longest: float, seed: int) -> dict[str, Any]:
    """Raises AssertionError if an answer is lost or there twice, or if the server no longer knows what it has told."""
    drawn = random.Random(seed)
    victim = Victim(command, folder)
    batch, told, tolds = "", 0, []
    for _ in range(kills):
        with victim:
            batch = batch or victim.create(requests)
            moment = time.monotonic() + drawn.uniform(0, longest)
            while True:
                counts = victim.get(f"/v1/batches/{batch}")["request_counts"]
                done = counts["completed"] + counts["failed"]
                assert done >= told, f"{told} requests were told as done, and now there are {done}"
                told = done
                if time.monotonic() >= moment:
                    break
                time.sleep(POLL_SECONDS)
        tolds.append(told)
    with victim:
        while (ended := victim.get(f"/v1/batches/{batch}"))["status"] in ("validating", "in_progress", "finalizing"):
            time.sleep(0.1)
        output, errors = victim.answers(ended["output_file_id"]), victim.answers(ended["error_file_id"])
    victim.api.close()
    found = Counter(line["custom_id"] for line in (*output, *errors))
    wanted = set(map(str, range(requests)))
    assert ended["status"] == "completed", ended
    assert {line["custom_id"] for line in errors} == {each for each in wanted if int(each) % REFUSED == REFUSED - 1}
    result = {
        "requests": requests,
        "kills": kills,
        "done at the kills": tolds,
        "lost": len(wanted - found.keys()),
        "twice": sum(count > 1 for count in found.values()),
    }
    assert (result["lost"], result["twice"]) == (0, 0), result
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripted", action="store_true", help="an engine that only waits")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds from the start to a kill")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    command = SCRIPTED if chosen.scripted else REAL
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        found = run(command, Path(folder), chosen.requests, chosen.kills, chosen.longest, chosen.seed)
    print(json.dumps(found | {"seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
