"""Numbers as people read them in a line of text."""

from __future__ import annotations

import math


def number(x: float | None, digits: int = 4) -> str:
    """A number as people read it, with so many digits: 0.00379, 1.2e-7, 1.175e5; a dash where there is none."""
    if x is None:
        return "-"
    if not math.isfinite(x):
        return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"
    mantissa, e, exponent = f"{x + 0.0:.{digits}g}".partition("e")  # + 0.0 makes 0 of -0
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def natural(x: float | None) -> str:
    """The value of a hyperparameter, with two digits more near 1: of a decay it counts how near."""
    return number(x, 6 if x is not None and abs(1 - x) < 0.01 else 4)


def percent(x: float | None, digits: int = 2) -> str:
    """A share from 0 to 1 in percent."""
    return "-" if x is None else f"{100 * x:.{digits}f} %"


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` characters, with an ellipsis for what does not fit."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def printable(text: str) -> str:
    """`text` in one line, "?" for what would steer a terminal: names in a file are not to be trusted."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
