"""What a prompt family is: the conversation form that a checkpoint was trained on, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptFamily:
    """One conversation form. ``{system}``, ``{user}`` and ``{assistant}`` are the only slots.

    A prompt is ``system``, then ``user`` (and ``assistant``, for answered turns) once a turn. A message with k
    pictures is k times ``<image>`` and a newline before its text, wherever the image parts stood.
    """

    name: str
    default_system: str
    """Used when the caller gives no system message; empty for none."""
    system: str
    user: str
    """From the start of the user's turn to where the model begins to write."""
    assistant: str
    """An earlier answer, up to where the next user turn starts."""
    specials: tuple[str, ...]
    """Texts in these templates that are special tokens where the tokenizer knows them."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, besides the tokenizer's own end token."""
    stop_texts: tuple[str, ...] = ()
    """Texts that end an answer, for families whose separator is ordinary text."""
    system_in_first_user: bool = False
    """True where the system text stands inside the first user turn."""
