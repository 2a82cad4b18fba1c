"""The programs of ``docs/recipes.md`` as a reader finds them: a program, commands, and what they print."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
PICTURES = PAGE.with_suffix("")


@dataclass(frozen=True, slots=True)
class Step:
    command: str
    output: str


@dataclass(frozen=True, slots=True)
class Recipe:
    heading: str
    file: str
    """The name in the program's first line."""
    program: str
    steps: tuple[Step, ...]

    def lay_out(self, folder: Path) -> None:
        """The program beside a copy of the page's images."""
        shutil.copytree(PICTURES, folder, dirs_exist_ok=True)
        (folder / self.file).write_text(self.program)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def read_steps(console: str) -> tuple[Step, ...]:
    return tuple(Step(*re.findall(r"(.*)\n?([\s\S]*)", part)[0]) for part in re.split(r"^\$ ", console, flags=re.M)[1:])


def read_section(section: str) -> Recipe:
    """Raises ValueError if it is not one program that begins with its name, and one block of commands."""
    heading = section.split("\n", 1)[0]
    (program,) = blocks(section, "python")
    (console,) = blocks(section, "console")
    named = re.match(r"# (\w+\.py)\n", program)
    if named is None:
        raise ValueError(f"the program of '{heading}' does not begin with its file's name")
    return Recipe(heading, named[1], program, read_steps(console))


def read_recipes() -> list[Recipe]:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return [read_section(section) for section in sections if "```python" in section or "```console" in section]
