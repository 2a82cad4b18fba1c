"""A hub with some files, as huggingface_hub asks Hugging Face's: for downloads without the internet."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    def __init__(self, repositories: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        """Hub id -> folder of its files."""
        self.fetched: list[str] = []
        """id/file of every file that was fetched."""
        self.tokens: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.tokens.add(self.headers.get("authorization", ""))
        repository, _, rest = path.removeprefix("api/models/").partition("/resolve/")
        if path.startswith("api/models/"):
            repository = "/".join(repository.split("/")[:2])
        folder = self.server.repositories.get(repository)
        if folder is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.content(path, folder, rest)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)
            if rest:
                self.server.fetched.append(f"{repository}/{rest.partition('/')[2]}")

    def content(self, path: str, folder: Path, rest: str) -> bytes:
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if path.startswith("api/models/") and "/tree/" in path:
            return json.dumps([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]).encode()
        if path.startswith("api/models/"):
            return json.dumps({"id": "x", "sha": COMMIT, "siblings": [{"rfilename": one} for one in names]}).encode()
        return (folder / rest.partition("/")[2]).read_bytes()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(repositories: Mapping[str, Path]) -> Iterator[Hub]:
    """A running hub; its ``address`` is what HF_ENDPOINT takes."""
    with Hub(repositories) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield listening
        finally:
            listening.shutdown()
            thread.join()
