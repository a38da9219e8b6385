"""What is written by a name and its arguments, beside rules and numbers: gradient transforms, and where to measure."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from hyperstack.errors import InputError
from hyperstack.hyperparameter import Interval


def option(default: Any = MISSING, domain: Interval | tuple[str, ...] | None = None, doc: str = "") -> Any:
    """A field whose values are checked: `domain` is where numbers lie, or the texts to choose from.

    A number whose default is an int is a whole one.
    """
    return field(default=default, metadata={"domain": domain, "doc": doc})


@dataclass(frozen=True)
class Choice:
    """Base: subclasses are frozen dataclasses whose fields are their arguments: numbers, flags or texts.

    Immutable, comparable, hashable; prints as the text form. A field made by `option` is checked.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            if "domain" in f.metadata:
                object.__setattr__(self, f.name, _checked(f"{self.name}'s {f.name}", f, getattr(self, f.name)))

    def __str__(self) -> str:
        ordered = sorted(fields(self), key=lambda f: f.kw_only is True)
        given = [(f.default, f.name, getattr(self, f.name)) for f in ordered]
        parts = [repr(value) for default, _, value in given if default is MISSING][:1]
        given = [g for g in given if g[0] is not MISSING] if parts else given
        parts += [name for default, name, value in given if value is True and default is not True]
        parts += [f"{n}={v!r}" for default, n, v in given if v != default and not (v is True and default is not True)]
        return f"{self.name}({', '.join(parts)})" if parts else self.name

    def in_full(self) -> str:
        """The text form with every argument, by name."""
        given = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{self.name}({given})" if given else self.name


def _checked(what: str, f: Field[Any], value: Any) -> Any:
    """The value of a field in its own type, or an InputError."""
    domain = f.metadata["domain"]
    if isinstance(f.default, bool):
        if isinstance(value, bool):
            return value
        raise InputError(f"{what} is a flag, not {value!r}", instead=f"write {f.name}=True or leave it out")
    if isinstance(domain, tuple):
        if value in domain:
            return value
        hint = " or ".join(f'{f.name}="{choice}"' for choice in domain)
        raise InputError(f"{what} is {value!r}", instead=f"write {hint}")
    kind = int if isinstance(f.default, int) else float
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value in domain and kind(value) == value:
        return kind(value)
    wanted = "a whole number" if kind is int else "a number"
    raise InputError(f"{what} is {value!r}", instead=f"give {wanted} in {domain}")
