"""What is wrong with a config, and where: the word that the readers and the checkers of it share.

A message never repeats a value that was given, nor a key that is no name, for either may be a secret in a wrong place.
"""

from dataclasses import dataclass

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """`place` is the path from the top, keys and indices; `line` is given where the place does not tell it."""

    place: Place
    message: str
    line: int | None = None
