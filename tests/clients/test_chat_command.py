"""``llava-api chat`` at a terminal and in scripts, with a scripted API."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_api.cli.flags import demo_folder
from llava_api.cli.main import main
from tests.support.scripted_api import KEY, ScriptedApi, closed_port, scripted_api
from tests.support.terminal import CONTROL_C, CONTROL_D, Terminal, terminal

IMAGE = demo_folder() / "red-circle.png"
VARIABLES = (
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "LLAVA_API_KEY",
    "NO_COLOR",
    "COLORTERM",
    "FORCE_COLOR",
    "TTY_COMPATIBLE",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedApi]:
    with scripted_api() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


class Shell:
    """Runs a command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def chat(self, *flags: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        with pytest.raises(SystemExit) as ended:
            main(["chat", *flags])
        out, err = self.capsys.readouterr()
        # Python writes an exit code that is a text to standard error.
        return (
            (1, out, f"{err}{ended.value.code}\n")
            if isinstance(ended.value.code, str)
            else (
                int(ended.value.code or 0),
                out,
                err,
            )
        )


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_one_answer_and_nothing_else(api: ScriptedApi, shell: Shell) -> None:
    flags = ("--system", "Be short.", "--temperature", "0", "--max-tokens", "9", "--seed", "3", "--top-p", "0.5")
    assert shell.chat("--query", "What?", "--image", str(IMAGE), *flags) == (0, "A red circle.\n", "")
    (request,) = api.requests
    system, question = request["messages"]
    assert system == {"role": "system", "content": "Be short."}
    assert [part["type"] for part in question["content"]] == ["image_url", "text"]
    assert question["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0, 9)
    assert (request["seed"], request["top_p"]) == (3, 0.5)


def test_what_is_not_said_is_left_to_the_server(api: ScriptedApi, shell: Shell) -> None:
    shell.chat("--query", "What?")
    assert set(api.requests[0]) == {"model", "messages", "stream", "stream_options"}


def test_llavas_own_spellings(api: ScriptedApi, shell: Shell) -> None:
    images = f"{IMAGE},https://example.org/a.jpg"
    flags = ("--max_new_tokens", "5", "--top_p", "0.9", "--num_beams", "1", "--sep", ",")
    code, *_ = shell.chat("--model-path", "other", "--image-file", images, "--query", "What?", *flags)
    assert code == 0
    (request,) = api.requests
    assert (request["model"], request["max_tokens"], request["top_p"]) == ("other", 5, 0.9)
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]]
    assert urls[0].startswith("data:image/png;base64,")
    assert urls[1] == "https://example.org/a.jpg"


def test_json_for_scripts(api: ScriptedApi, shell: Shell) -> None:
    api.said = "Für \x1b[31m\x9b1m."
    code, out, err = shell.chat("--json", "--query", "What?")
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == {
        "answer": api.said,
        "model": "tiny",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    code, out, err = shell.chat("--json", "--query", "refuse")
    assert (code, err) == (1, "")
    assert json.loads(out) == {"error": {"message": "The image cannot be read.", "code": "invalid_image"}}
    code, out, err = shell.chat("--json", "--query", "What?", "--image", "no-such.png")
    assert (code, err) == (1, "")
    assert "no-such.png cannot be read" in json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    ("question", "out", "words"),
    [
        ("refuse", "", "The image cannot be read."),
        # After the client's own retries; in one line, although the server's message has two.
        ("busy", "", "Come [31magain later."),
        ("break", "A red circle.", "The answer broke off"),
        ("fail", "A red circle.", "The engine could not answer."),
    ],
)
def test_failures_are_one_line_and_exit_code_1(
    api: ScriptedApi, shell: Shell, question: str, out: str, words: str
) -> None:
    code, printed, err = shell.chat("--query", question)
    assert (code, printed) == (1, out)
    assert err.strip().splitlines() == [err.strip()]
    assert err.startswith("llava-api: ")
    assert words in err


def test_a_question_that_is_no_text_is_reported(api: ScriptedApi, shell: Shell) -> None:
    # Python reads a byte of a command line that is not UTF-8 as such a letter.
    code, out, err = shell.chat("--query", "What is \udcff?")
    assert (code, out) == (1, "")
    assert "halves of letters" in err


def test_an_answer_that_was_cut_is_reported_aside(api: ScriptedApi, shell: Shell) -> None:
    code, out, err = shell.chat("--query", "long")
    assert (code, out) == (0, "A red circle.\n")
    assert "--max-tokens" in err


def test_an_answer_cannot_command_the_terminal(api: ScriptedApi, shell: Shell) -> None:
    api.said = "red\x1b]0;title\x07 [bold]\x9b2J\r\n\tand\u202e so"
    assert shell.chat("--query", "What?")[1] == "red]0;title [bold]2J\n\tand so\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--json",), "--json needs --query"),
        (("--query", " "), "--query is empty"),
        (("--image", "-"), "needs --query"),
        (("--image", "-", "-", "--query", "a"), "one image only"),
        (("--image", "a.png,-", "--sep", ","), "needs --query"),
        (("--serve", "--base-url", "http://there/v1"), "leave --base-url out"),
        (("--base-url", "localhost:8000"), "must start with http"),
        (("--num_beams", "4"), "beam search"),
        (("--conv-mode", "vicuna_v1"), "--prompt-family"),
        (("--device", "cuda"), "llava-api serve"),
        (("--load-4bit",), "add --serve"),
        (("--model-base", "vicuna"), "add --serve"),
        (("--temperature", "nan"), "--temperature"),
        (("--max-tokens", "few"), "--max-tokens"),
    ],
)
def test_wrong_usage_is_exit_code_2(shell: Shell, flags: tuple[str, ...], words: str) -> None:
    code, out, err = shell.chat(*flags)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_no_server_says_how_to_start_one(shell: Shell) -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    for more in (("--query", "What?"), ()):
        code, out, err = shell.chat("--base-url", url, *more)
        assert (code, out) == (1, "")
        assert url in err
        assert "`llava-api serve`" in err
        assert "--serve" in err


def test_what_is_no_api_is_reported(api: ScriptedApi, shell: Shell) -> None:
    code, _, err = shell.chat("--base-url", api.base_url.removesuffix("/v1"), "--query", "What?")
    assert code == 1
    assert "does not speak OpenAI's API: does its base URL end in /v1?" in err


@pytest.mark.parametrize("url", ["http://[::1", "http://there/v1\r\nx: y", "http://there\udcff/v1"])
def test_what_is_no_url_is_reported(shell: Shell, url: str) -> None:
    code, out, err = shell.chat("--base-url", url, "--query", "What?")
    assert (code, out) == (1, "")
    assert "is no URL" in err


def test_https_where_there_is_none_is_reported(api: ScriptedApi, shell: Shell) -> None:
    url = api.base_url.replace("http:", "https:").replace("//", "//anne:secret@")
    code, out, err = shell.chat("--base-url", url, "--query", "What?")
    assert (code, out) == (1, "")
    assert "is it http, or its certificate not trusted?" in err
    assert "secret" not in err


@pytest.mark.parametrize(
    "event",
    [
        [1],
        "text",
        {"choices": "text"},
        {"choices": [None]},
        {"choices": [{"delta": {"content": ["text"]}}]},
        {"choices": [], "usage": "much"},
    ],
)
def test_what_is_no_part_of_an_answer_is_reported(api: ScriptedApi, shell: Shell, event: Any) -> None:
    api.odd_event = event
    code, out, err = shell.chat("--query", "odd")
    assert (code, out) == (1, "A red circle.")
    # Because of the event, and not only because the answer has no end.
    assert "The answer broke off (" in err


def test_a_last_chunk_without_a_delta_is_an_end(api: ScriptedApi, shell: Shell) -> None:
    api.odd_event = {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}
    assert shell.chat("--query", "odd") == (0, "A red circle.\n", "")


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    api: ScriptedApi, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed_port()}")
    assert shell.chat("--query", "What?")[0] == 0


def test_the_key_goes_to_the_server_and_nowhere_else(
    api: ScriptedApi, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.needed_key = KEY
    code, _, err = shell.chat("--query", "What?")
    assert code == 1
    assert "The server asks for an API key: name a file with it (--api-key-file)" in err
    file = tmp_path / "key.txt"
    file.write_text(f"anne={KEY}\n")
    assert shell.chat("--query", "What?", "--api-key-file", str(file)) == (0, "A red circle.\n", "")
    assert api.headers[-1]["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-secret")
    code, out, err = shell.chat("--query", "What?")
    assert (code, out) == (1, "")
    assert "The server does not accept this API key" in err
    assert "another-secret" not in err


def run(arguments: list[str], given: bytes) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "llava_api", "chat", *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=False)


def test_lines_from_a_pipe_are_a_conversation(api: ScriptedApi, tmp_path: Path) -> None:
    file = tmp_path / "my chat.json"
    lines = [
        "/image " + str(IMAGE),
        "What?",
        "",
        "refuse",
        "/nonsense",
        "Sure?\\",
        "Really?",
        f"/save {file}",
        "/quit",
        "no",
    ]
    done = run([], "\n".join(lines).encode())
    # Only answers are on standard output. One question failed.
    assert (done.returncode, done.stdout) == (1, b"A red circle.\nA red circle.\n")
    told = done.stderr.decode()
    assert "The image cannot be read." in told
    assert "/nonsense is no command: /help" in told
    assert "\x1b" not in told
    first, _, last = api.requests
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "user"]
    assert last["messages"][0] == first["messages"][0]
    assert last["messages"][-1]["content"] == "Sure?\nReally?"
    saved = json.loads(file.read_text())
    assert saved["messages"] == [*last["messages"], {"role": "assistant", "content": "A red circle."}]


def test_another_model_of_the_server_answers(api: ScriptedApi) -> None:
    done = run([], b"Who?\n/model\n/model third\n/model other\nAnd you?\n")
    told = done.stderr.decode()
    assert "tiny answers. The server has tiny, other." in told
    assert "the server has no model third; it has tiny, other" in told
    assert "other answers." in told
    assert [request["model"] for request in api.requests] == ["tiny", "other"]
    assert [message["content"] for message in api.requests[1]["messages"]] == ["Who?", "A red circle.", "And you?"]


def test_an_image_on_standard_input(api: ScriptedApi) -> None:
    done = run(["--image", "-", "--query", "What?"], IMAGE.read_bytes())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"A red circle.\n", b"")
    assert "iVBOR" in json.dumps(api.requests[0])


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_empty_ones(api: ScriptedApi, closed: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m llava_api chat {closed}"
    done = subprocess.run(["sh", "-c", line], input=b"What?", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"A red circle.\n" if closed == "2>&-" else b"")


def test_a_reader_that_went_away_is_no_news_and_ends_the_answer(api: ScriptedApi) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "llava_api", "chat", "--query", "slow"]
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert api.hung_up.wait(20)


def at_terminal(*flags: str, **more: str) -> Any:
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **more}
    return terminal(["-m", "llava_api", "chat", *flags], environment)


def test_control_c_ends_the_one_answer(api: ScriptedApi) -> None:
    with at_terminal("--query", "slow") as opened:
        opened.wait_for("word3 ")
        opened.type(CONTROL_C)
        assert opened.end() == 130
    assert "Traceback" not in opened.raw
    assert api.hung_up.wait(20)


def begin(opened: Terminal) -> None:
    opened.wait_for("/help lists the commands")
    opened.wait_for("> ")


def ask(opened: Terminal, question: str, answer: str) -> str:
    opened.enter(question)
    shown = opened.wait_for(answer)
    opened.wait_for("\n> ")
    return shown


def test_a_conversation_at_a_terminal(api: ScriptedApi, tmp_path: Path) -> None:
    """Images, turns, Ctrl-C, errors, save and load, all in one test because a start takes seconds."""
    image = tmp_path / "my circle.png"
    image.write_bytes(IMAGE.read_bytes())
    file = tmp_path / "chat.json"
    with at_terminal() as opened:
        begin(opened)
        ask(opened, f"/image '{image}'", "image for the next question: " + str(image))
        # The red of the image, drawn in cells.
        assert "\x1b[38;2;230;25;25" in opened.raw
        ask(opened, "What?", "A red circle.")
        # Ctrl-C ends the answer and the request, but not the program, and the answer so far stays.
        opened.enter("slow")
        opened.wait_for("word3 ")
        opened.type(CONTROL_C)
        opened.wait_for("(stopped; the answer so far stays in the conversation)")
        opened.wait_for("\n> ")
        assert api.hung_up.wait(20)
        ask(opened, "Sure?", "A red circle.")
        said = api.requests[-1]["messages"]
        assert [message["role"] for message in said] == ["user", "assistant"] * 2 + ["user"]
        assert said[3]["content"].startswith("word0 word1 word2 word3 ")
        # At the prompt Ctrl-C says how to leave.
        opened.type("half a line")
        opened.wait_for("half a line")
        opened.type_until(CONTROL_C, "/quit or Ctrl-D ends")
        opened.wait_for("> ")
        # A refused question is not kept; the error for a file that is no image names it.
        ask(opened, "refuse", "The image cannot be read.")
        ask(opened, f"/image {file}", "chat.json cannot be read (No such file or directory)")
        ask(opened, f"/save {file}", "Saved to")
        ask(opened, f"/image {file}", "chat.json: The image cannot be read")
        ask(opened, "/system Be kind.", "The system prompt: Be kind.")
        ask(opened, "/new", "A new conversation.")
        ask(opened, "Who?", "A red circle.")
        assert api.requests[-1]["messages"] == [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Who?"},
        ]
        (tmp_path / "broken.json").write_text("{")
        ask(opened, f"/load {tmp_path / 'broken.json'}", "is not valid JSON")
        # The conversation is as it was before.
        ask(opened, "And?", "A red circle.")
        assert [message["content"] for message in api.requests[-1]["messages"][1:]] == ["Who?", "A red circle.", "And?"]
        shown = ask(opened, f"/load {file}", "assistant: A red circle.")
        assert "user: [image] What?" in shown
        ask(opened, "Still?", "A red circle.")
        assert api.requests[-1]["messages"][:-2] == said
        # A pasted text of two lines is one question; the arrow keys bring it back.
        opened.type("\x1b[200~one\ntwo\x1b[201~")
        ask(opened, "", "A red circle.")
        assert api.requests[-1]["messages"][-1]["content"] == "one\ntwo"
        # The question at the end of a request in a file is asked.
        file.write_text(
            json.dumps({"stream": True, "model": "other", "messages": [{"role": "user", "content": "Ready?"}]})
        )
        shown = ask(opened, f"/load {file}", "A red circle.")
        assert "user: Ready?" in shown
        assert (api.requests[-1]["model"], len(api.requests[-1]["messages"])) == ("other", 1)
        opened.type(CONTROL_D)
        assert opened.end() == 0


def test_a_server_that_goes_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_api() as api:
        opened_for = at_terminal("--image", str(IMAGE), "--base-url", api.base_url, NO_COLOR="1")
        with opened_for as opened:
            begin(opened)
            ask(opened, "busy", "Come [31magain later.")
            # The server was busy, so the image waits for the next try.
            ask(opened, "What?", "A red circle.")
            assert "iVBOR" in json.dumps(api.requests[-1]["messages"])
            assert len(api.requests[-1]["messages"]) == 1
            ask(opened, "break", "The answer broke off")
            opened.enter("/quit")
            assert opened.end() == 0
    # Without colours no image is drawn.
    assert "\x1b[38" not in opened.raw
    assert "\u2580" not in opened.raw


def modules_of(imports: str) -> set[str]:
    program = f"import sys, {imports}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_other_commands_do_not_wait_for_the_client() -> None:
    # (rich is loaded anyway: httpx imports it if it is installed.)
    assert not {"openai", "llava_api.cli.chat.screen"} & modules_of("llava_api.cli.main")


def test_the_chat_loads_no_engine_and_no_server() -> None:
    loaded = modules_of("llava_api.cli.chat.interactive, llava_api.cli.chat.once")
    assert {"openai", "rich"} <= loaded
    assert not {"torch", "vllm", "transformers", "fastapi", "uvicorn"} & loaded
