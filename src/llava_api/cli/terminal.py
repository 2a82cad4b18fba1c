"""Other people's text on somebody's terminal."""


def printable(text: str) -> str:
    """The same with control characters spelled out, line breaks apart: none can move the cursor or turn the text."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )
