"""The fields of a JSON table, each read once and of the kind that is expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class Damaged(Exception):
    """What is wrong with a file, and where in it."""


class Fields:
    """A table of a file. `place` is what messages begin with: where in the file it stands."""

    def __init__(self, content: object, place: str) -> None:
        if not isinstance(content, dict):
            raise Damaged(f"{place or 'the file '}is not a table of names and values")
        self.content: dict[str, Any] = content
        self.place = place
        self.read: set[str] = set()

    def end(self) -> None:
        """Damaged where a field was never asked for."""
        if unknown := sorted(set(self.content) - self.read):
            raise Damaged(f"{self.place}{', '.join(unknown)} is not known")

    def _take(self, name: str, fallback: Any = None) -> Any:
        self.read.add(name)
        if name not in self.content:
            if fallback is None:
                raise Damaged(f"{self.place}{name} is missing")
            return fallback
        return self.content[name]

    def text(self, name: str) -> str:
        """A text that says something."""
        found = self._take(name)
        if not isinstance(found, str) or not found.strip():
            raise Damaged(f"{self.place}{name} is not a text")
        return found

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        found = self._take(name)
        if not isinstance(found, list) or not all(isinstance(each, str) and each.strip() for each in found):
            raise Damaged(f"{self.place}{name} is not a list of texts")
        return found

    def number(self, name: str) -> float:
        """A positive number."""
        found = self._take(name)
        if not is_number(found) or found <= 0:
            raise Damaged(f"{self.place}{name} is not a positive number")
        return float(found)

    def whole(self, name: str, least: int) -> int:
        """A whole number from `least` up."""
        found = self._take(name)
        if not isinstance(found, int) or isinstance(found, bool) or found < least:
            raise Damaged(f"{self.place}{name} is not a whole number from {least} up")
        return found

    def flag(self, name: str) -> bool:
        """true or false; false where it is missing."""
        found = self._take(name, False)
        if not isinstance(found, bool):
            raise Damaged(f"{self.place}{name} is not true or false")
        return found

    def figures(self, name: str, count: int | None, fallback: Sequence[float | None] | None = None) -> list[Any]:
        """A list of numbers and nulls, `count` of them."""
        found = self._take(name, fallback)
        if not isinstance(found, list) or not all(each is None or is_number(each) for each in found):
            raise Damaged(f"{self.place}{name} is not a list of numbers")
        if count is not None and len(found) != count:
            raise Damaged(f"{self.place}{name} has {len(found)} figures, and {count} are expected")
        return [None if each is None else float(each) for each in found]

    def grid(self, name: str) -> dict[str, list[float]]:
        """Names with a list of different numbers each; none where it is missing."""
        inner = Fields(self._take(name, {}), f"{self.place}{name}: ")
        found = {key: inner.figures(key, None) for key in inner.content}
        for key, values in found.items():
            if not values or None in values or len(set(values)) < len(values):
                raise Damaged(f"{inner.place}{key} is not a list of different numbers")
        return found

    def table(self, name: str) -> Fields:
        """A table within."""
        return Fields(self._take(name), f"{self.place}{name}: ")

    def tables(self, name: str, fallback: list[Any] | None = None) -> list[Fields]:
        """A list of tables."""
        found = self._take(name, fallback)
        if not isinstance(found, list):
            raise Damaged(f"{self.place}{name} is not a list")
        return [Fields(each, f"{self.place}{name} {i}: ") for i, each in enumerate(found, 1)]


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that can be computed with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
