"""What differs between several texts: parts of each, marked where another of the texts lacks them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import combinations, groupby

TOKEN = re.compile(r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\w+|\s+|.", re.DOTALL)  # a number, a word, space, or a sign
Pieces = list[tuple[str, bool]]


def marked(texts: Sequence[str | None]) -> list[Pieces]:
    """Each text in pieces (part, differs): a part differs that has no counterpart in at least one other text.

    Numbers and words count as wholes. None is a text that is not there: all of the others differ from it, and it has
    no pieces. Equal texts have no marks; the parts of a text joined are the text.
    """
    tokens = {text: TOKEN.findall(text or "") for text in texts}
    common = {text: [True] * len(found) for text, found in tokens.items()}
    for one, other in combinations(tokens, 2):
        shared: dict[str | None, set[int]] = {one: set(), other: set()}
        for match in SequenceMatcher(None, tokens[one], tokens[other], autojunk=False).get_matching_blocks():
            shared[one].update(range(match.a, match.a + match.size))
            shared[other].update(range(match.b, match.b + match.size))
        for text, places in shared.items():
            common[text] = [before and i in places for i, before in enumerate(common[text])]
    return [_joined(tokens[text], common[text]) for text in texts]


def _joined(tokens: list[str], common: list[bool]) -> Pieces:
    """Neighbours of one kind as one piece."""
    runs = groupby(zip(tokens, common, strict=True), key=lambda pair: pair[1])
    return [("".join(token for token, _ in pairs), not same) for same, pairs in runs]
