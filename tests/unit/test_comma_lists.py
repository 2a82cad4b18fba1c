"""Several texts in one environment variable, with commas between them."""

import pytest

from llava_api.settings import Settings


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("a, b", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("a=/x,b=/y", ["a=/x", "b=/y"]),
        ('hf_overrides={"a": 1, "b": 2}', ['hf_overrides={"a": 1, "b": 2}']),
        ('block_size=32,hf_overrides={"a":[1,2],"b":{"c":3,"d":4}}, seed=1', 3),
        ('a={"text": "one, } two", "other": "\\", }"},b=1', 2),
        ('a="one, two",b=1', ['a="one, two"', "b=1"]),
        # Brackets and quotes that are none of JSON's part nothing and join nothing.
        ("a=/odd[path,b=/y", ["a=/odd[path", "b=/y"]),
        ('a=/odd"path,b=/y', ['a=/odd"path', "b=/y"]),
        ("a=/odd]path,b=/y", ["a=/odd]path", "b=/y"]),
    ],
)
def test_commas_inside_json_part_nothing(monkeypatch: pytest.MonkeyPatch, given: str, parts: list[str] | int) -> None:
    monkeypatch.setenv("LLAVA_ENGINE_ARG", given)
    found = Settings().engine_arg
    assert (len(found) if isinstance(parts, int) else found) == parts
