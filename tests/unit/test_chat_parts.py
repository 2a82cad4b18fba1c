"""The parts of ``llava-api chat``: the conversation, its file, keys, images, cells, typed lines."""

import argparse
import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from llava_api.cli.chat.files import load, names_in, open_image, path_in, save
from llava_api.cli.chat.interactive import COMMANDS
from llava_api.cli.chat.prompt import Prompt
from llava_api.cli.conversation import Conversation, Sampling
from llava_api.cli.endpoint import NO_KEY, base_url_from, find_key, is_on_this_machine, without_password
from llava_api.cli.main import build_parser
from llava_api.cli.terminal import without_controls
from llava_api.errors import BadImage, StartupError
from llava_api.images.previews import miniature

DOCS = Path(__file__).parents[2] / "docs"
KEY = "sk-llava-0123456789abcdef"


def image_bytes(image: Image.Image, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def test_a_turn_is_added_and_the_one_before_stays_as_it_was() -> None:
    start = Conversation("Be short.")
    asked = start.asked("What is it?", ["data:one", "http://two"])
    done = asked.answered("A cat.").asked("Sure?")
    assert start.messages() == [{"role": "system", "content": "Be short."}]
    assert done.messages() == [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:one"}},
                {"type": "image_url", "image_url": {"url": "http://two"}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert done.without_open_question() == asked.answered("A cat.")
    assert Conversation().without_open_question() == Conversation()


def test_what_is_saved_is_loaded_and_is_a_chat_request(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    conversation = Conversation("Be short.").asked("Was für ein Tier?", ["data:one"]).answered("A cat 🐈.\n\x9b")
    sampling = Sampling(temperature=0.5, max_tokens=12)
    save(path, conversation, "tiny", sampling)
    loaded = load(path)
    assert (loaded.conversation(), loaded.model, loaded.sampling()) == (conversation, "tiny", sampling)
    request = json.loads(path.read_text())
    assert request["messages"] == conversation.messages()
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0.5, 12)
    # A conversation is overwritten, anything else is not.
    save(path, conversation.asked("More?"), "tiny", sampling)
    assert load(path).conversation() == conversation.asked("More?")
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not text"),
        (b"[]", "no saved conversation"),
        (b"{}", "messages: Field required"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}', "messages.0.content"),
        (b'{"messages": [], "temperature": "hot"}', "temperature"),
        # No JSON request can hold these.
        (b'{"messages": [], "temperature": NaN}', "temperature"),
        (b'{"messages": [], "top_p": 1e999}', "top_p"),
    ],
)
def test_a_broken_file_is_told_and_never_written_over(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(StartupError, match=r"broken\.json") as failed:
        load(path)
    assert words in str(failed.value)
    with pytest.raises(StartupError, match="is no saved conversation: choose another name"):
        save(path, Conversation().asked("a"), "tiny", Sampling())
    assert path.read_bytes() == text


def test_places_that_cannot_be_written_or_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot be written \(No such file or directory\)"):
        save(tmp_path / "none" / "chat.json", Conversation(), "tiny", Sampling())
    with pytest.raises(StartupError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)
    for name, words in {"x" * 300: "File name too long", "a\0b": "that cannot be a file's name"}.items():
        with pytest.raises(StartupError, match=f"cannot be written .{words}"):
            save(tmp_path / name, Conversation(), "tiny", Sampling())
        with pytest.raises(StartupError, match=f"cannot be read .{words}"):
            load(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_what_is_no_saved_conversation_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "none")
    with pytest.raises(StartupError, match="is no saved conversation"):
        save(tmp_path / "link.json", Conversation(), "tiny", Sampling())
    assert not (tmp_path / "none").exists()


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(StartupError, match="/dev/zero has more than 256 MiB"):
        load(Path("/dev/zero"))


def test_the_key_is_found_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAVA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert find_key(None) == NO_KEY
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai=")
    assert find_key(None) == "of-openai="
    # In the server's form.
    monkeypatch.setenv("LLAVA_API_KEY", f"bob=sha256:{'0' * 64},anne={KEY}")
    assert find_key(None) == KEY
    monkeypatch.delenv("LLAVA_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nsecrets")
    with pytest.raises(StartupError) as failed:
        find_key(None)
    assert "secrets" not in str(failed.value)
    file = tmp_path / "keys.txt"
    for text in (KEY, f"# of anne\n\nanne={KEY}\n", f"bob=sha256:{'0' * 64}\nanne = {KEY}"):
        file.write_text(text)
        assert find_key(str(file)) == KEY
    for text in ("", "# nothing\n", f"bob=sha256:{'0' * 64}"):
        file.write_text(text)
        with pytest.raises(StartupError, match="holds no key"):
            find_key(str(file))
    file.write_text("my secret words")
    with pytest.raises(StartupError) as failed:
        find_key(str(file))
    assert "secret" not in str(failed.value)
    with pytest.raises(StartupError, match="cannot be read"):
        find_key(str(tmp_path / "none"))
    with pytest.raises(StartupError, match="cannot be read"):
        find_key("~no-such-person/key")


def test_the_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert base_url_from(None) == "http://127.0.0.1:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://there/v1")
    assert base_url_from(None) == "https://there/v1"
    assert base_url_from("http://here/v1") == "http://here/v1"
    here = ["http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:80/v1"]
    there = ["https://api.example.org/v1", "http://10.0.0.1/v1", "http://["]
    assert [is_on_this_machine(url) for url in (*here, *there)] == [True] * 3 + [False] * 3


def test_a_password_in_a_base_url_is_not_shown() -> None:
    assert without_password("https://anne:secret@there:8000/v1") == "https://there:8000/v1"
    assert without_password("https://there/v1/@a") == "https://there/v1/@a"


def test_nothing_that_commands_a_terminal_is_left() -> None:
    assert without_controls("a\tb\nc \x1b[31mred\x1b[0m \x9b2J\x07\x08\r\x7f \u202eevil\u202c \ud800") == (
        "a\tb\nc [31mred[0m 2J evil \ufffd"
    )
    # People's own letters stay.
    assert without_controls("für 猫 🏳️‍🌈 עברית\u200f [bold]") == "für 猫 🏳️‍🌈 עברית\u200f [bold]"


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_is_sent_as_it_is(tmp_path: Path, image_format: str) -> None:
    data = image_bytes(Image.new("RGB", (9, 7), "red"), image_format)
    path = tmp_path / "no-telling-name"
    path.write_bytes(data)
    image = open_image(str(path))
    header, _, encoded = image.url.partition(",")
    assert header == f"data:image/{image_format.lower()};base64"
    assert base64.b64decode(encoded) == image.data == data


def test_addresses_are_left_to_the_server() -> None:
    for url in (
        "https://example.org/cat.jpg",
        "HTTP://example.org/cat",
        "file:///srv/cat.png",
        "data:image/png;base64,",
    ):
        assert open_image(url).url == url


def test_what_is_no_image_is_told_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("paper.pdf").write_bytes(b"%PDF-1.7 and so on")
    Path("empty.png").write_bytes(b"")
    for name, words in {
        "paper.pdf": "paper.pdf: This is a PDF file",
        "empty.png": "empty.png is empty",
        "none.png": r"none.png cannot be read \(No such file",
        ".": r"cannot be read \(Is a directory",
        "a\0b": "cannot be a file's name",
        "~no-such-person/a.png": "cannot be read",
    }.items():
        with pytest.raises(StartupError, match=words):
            open_image(name)


def test_names_with_spaces_and_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my cat's.png").touch()
    assert names_in("my cat's.png") == ["my cat's.png"]
    assert names_in("'my cat.png' dog.png") == ["my cat.png", "dog.png"]
    assert names_in(r"my\ cat.png") == ["my cat.png"]
    assert names_in("it's.png") == ["it's.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_in("'~/my chat.json'") == tmp_path / "my chat.json"
    for text in ("my\\ chat.json", "my chat.json", '"my chat.json"'):
        assert path_in(text) == Path("my chat.json")
    assert path_in("cat's.json") == Path("cat's.json")
    assert path_in("~no-such-person/chat.json") == Path("~no-such-person/chat.json")


def test_cells_show_the_image_small_and_in_its_proportions() -> None:
    image = Image.new("RGB", (400, 200), "red")
    image.paste((0, 0, 255), (200, 0, 400, 200))
    cells = miniature(image_bytes(image), 40, 30)
    assert cells is not None
    assert (len(cells), {len(row) for row in cells}) == (20, {40})
    assert (cells[10][5], cells[10][35]) == ((255, 0, 0), (0, 0, 255))
    # Small images keep their size.
    cells = miniature(image_bytes(Image.new("RGB", (3, 5), (1, 2, 3))), 40, 30)
    assert cells == [[(1, 2, 3)] * 3] * 5
    # Long ones keep at least one row; EXIF turns this one upright.
    strip = Image.new("RGB", (4000, 2))
    strip.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", exif=strip.getexif())
    cells = miniature(buffer.getvalue(), 40, 30)
    assert cells is not None
    assert (len(cells), len(cells[0])) == (30, 1)


def test_a_damaged_image_is_no_miniature() -> None:
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    with pytest.raises(BadImage):
        miniature(image_bytes(noise)[:5000], 40, 30)


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    lines = Prompt((), colours=False)
    found = []
    while True:
        try:
            found.append(lines.read())
        except EOFError:
            return found


def test_lines_that_belong_together_are_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(monkeypatch, " one \n\ntwo\\\nthree\nfour\n") == ["one", "", "two\nthree", "four"]
    assert typed(monkeypatch, '"""one\n two\n"""\n"""three"""\nfour') == ["one\n two", "three", "four"]
    # The end of the input ends a text that is not complete.
    assert typed(monkeypatch, 'one\n"""two\n') == ["one"]


def test_tab_completes_commands_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat.png", "my cat.png", "[x].png", 'it\'s \\"q".png'):
        Path(name).touch()
    Path("cats").mkdir()
    lines = Prompt(("/image", "/new"), colours=False)
    assert lines.candidates("/i", []) == ["/image "]
    assert lines.candidates("", []) == lines.candidates("What", []) == lines.candidates("ca", ["What"]) == []
    assert lines.candidates("ca", ["/image"]) == ["cat.png", "cats/"]
    assert lines.candidates("my\\ ", ["/image"]) == ["my\\ cat.png"]
    assert lines.candidates("~/ca", ["/image"]) == ["~/cat.png", "~/cats/"]
    assert lines.candidates("[", ["/load"]) == ["[x].png"]
    # The commands find what Tab completes.
    for start in ("my", "it\\'"):
        (whole,) = lines.candidates(start, ["/image"])
        (name,) = names_in(whole)
        assert Path(name).exists()
        assert path_in(whole) == Path(name)


def test_the_page_names_every_flag_and_command() -> None:
    page = (DOCS / "chat.md").read_text()
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    flags = {flag for action in commands.choices["chat"]._actions for flag in action.option_strings}
    assert {flag for flag in flags | set(COMMANDS) if f"`{flag}" not in page} == {"-h", "--help", "--num-beams"}


def test_the_recording_loads_nothing_and_shows_right_answers() -> None:
    drawing = (DOCS / "chat.svg").read_text()
    assert not re.search(r"@font-face|@import|href|<script|url\((?!#)", drawing)
    words = " ".join(re.sub(r"<[^>]+>", " ", drawing).replace("&#160;", " ").split())
    for answer in ("Describe this image. A red circle and a green star.", "What color is the star? Green."):
        assert answer in words
