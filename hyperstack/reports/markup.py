"""HTML that is safe by construction: whatever is not marked as HTML is escaped."""

from __future__ import annotations

import html


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Html:
    """An element; the values of attributes are escaped, and children unless they are `Html`.

    In the names of attributes `_` stands for `-`, and one at the end is dropped: `class_`, `aria_label`.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printable(text))}"' for name, text in attributes.items()
    )
    return Html(f"<{tag}{named}>{joined(*children)}</{tag}>")


def joined(*children: str) -> Html:
    """Pieces one behind another, escaped unless they are `Html`."""
    return Html("".join(map(_safe, children)))


def _safe(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(printable(text))


def printable(text: str) -> str:
    """Text without control characters, which neither a terminal nor an XML file may be given."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
