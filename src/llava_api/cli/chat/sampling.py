"""How answers are to be drawn; what is not said is left to the server."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def fields(self) -> dict[str, float | int]:
        """For the request."""
        return {name: value for name, value in asdict(self).items() if value is not None}
