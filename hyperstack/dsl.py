"""The text form of a stack: a strict subset of Python expressions, read with `ast`, never evaluated.

    stack      level / level / ...
               auto(level), with the arguments of `auto` by name, in the place of the first two
    level      Rule   or   Rule(lr, flag, name=value, ...)
    value      number, free name, or one of these in fixed, learned, per_tensor, shared, lin, log, square, logit, or
               with a number of steps in fixed_after
    flag       clip, or an option of the rule that is true or false
    clip=      True, a transform, or a list of transforms, whose arguments are numbers, flags and quoted texts
    at=        live, or average(0.99, every=100)

All mistakes of one text are found together and raised as one `StackError`.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import hyperstack.rules  # noqa: F401  (they are known from then on)
from hyperstack.choices import Choice
from hyperstack.errors import InputError, StackError
from hyperstack.hyperparameter import MODIFIERS, WORDS, Setting, as_setting, fixed_after, free
from hyperstack.measuring import MEASURED
from hyperstack.recipe import auto
from hyperstack.rule import RULES, Rule, Stack, nearest, unfinished
from hyperstack.transforms import TRANSFORMS
from hyperstack.wrapper import WRAPPERS, Wrapper

MAX_LENGTH = 10_000
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


def parse(text: str) -> Stack:
    """The stack that a text describes; `parse(str(stack)) == stack`.

    Raises StackError, which shows every mistake with a caret under its place, what was expected and the nearest
    known name.
    """
    if not isinstance(text, str):
        raise InputError(f"a stack is written as text, not {text!r}", instead="write, for example: Adam / SGD(1e-5)")
    return _Reader(text).stack()


LEVELS = ChainMap(RULES, WRAPPERS)


class _Reader:
    """Reads one text; a mistake is noted with its place, and reading goes on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.mistakes: list[tuple[int, int, str]] = []

    def stack(self) -> Stack:
        tree = self._tree()
        nodes = [] if tree is None else self._levels(tree)
        if len(nodes) > Stack.MAX_HEIGHT:
            self._note(nodes[Stack.MAX_HEIGHT], f"a stack has at most {Stack.MAX_HEIGHT} levels, here are {len(nodes)}")
        short = self._auto(nodes.pop(0)) if nodes and self._is_auto(nodes[0]) else ()
        levels = [*short, *(self._placed(node, k) for k, node in enumerate(nodes, len(short)))]
        if self.mistakes:
            raise StackError(self.text, self.mistakes)
        return Stack(level for level in levels if level is not None)

    def _is_auto(self, node: ast.expr) -> bool:
        name, _ = self._call(node)
        return name is not None and name.id == auto.__name__

    def _auto(self, node: ast.expr) -> tuple[Rule | None, ...]:
        """The levels that `auto(...)` is short for."""

        def read(key: str, value: ast.expr) -> Any:
            if key not in known:
                place = "the arguments of average(...) are auto's own: auto(Adam, decay=0.999)"
                raise InputError(f"auto has no {key!r}", instead=place if key == "at" else nearest(key, known))
            if key == "base":
                return self._level(value)
            return self._value(value) if key == "rate" else self._literal(value)

        known, before = list(inspect.signature(auto).parameters), len(self.mistakes)
        found = self._arguments(self._call(node)[1], [], "base", read)
        try:
            return auto(**found).levels if len(self.mistakes) == before else (None, None)
        except InputError as error:
            self._note(node, _on_one_line(error))
            return (None, None)

    def _tree(self) -> ast.expr | None:
        """The syntax tree, or None with the mistake noted."""
        text = self.text
        if not text.strip():
            self.mistakes.append((0, 1, "a stack was expected, and the text is empty"))
        elif len(text) > MAX_LENGTH:
            message = f"a stack has at most {MAX_LENGTH} characters, here are {len(text)}"
            self.mistakes.append((MAX_LENGTH, len(text), message))
        elif strange := [i for i, c in enumerate(text) if not c.isprintable() and not c.isspace()]:
            self.mistakes += [(i, i + 1, f"U+{ord(text[i]):04X} is no character of a stack") for i in strange]
        elif "#" in text:
            self.mistakes.append((text.index("#"), len(text), "a stack has no comments"))
        if self.mistakes:
            return None
        self.offset = len(text) - len(text.lstrip())
        self.line = "".join(" " if c.isspace() else c for c in text.strip())
        try:
            return _python(self.line)
        except SyntaxError as error:
            for late in self._late_arguments() if "positional argument follows" in error.msg else []:
                self._note(late, _explain(error.msg))
            if self.mistakes:
                return None
            start = (error.offset or len(self.line) + 1) - 1
            end = max(start + 1, (error.end_offset or 0) - 1)
            self.mistakes.append((self.offset + start, self.offset + end, _explain(error.msg)))
        except UNREADABLE:
            self.mistakes.append((0, len(text), "this is too long or too deeply nested for a stack"))
        return None

    def _late_arguments(self) -> list[ast.expr]:
        """What stands by position behind name=value: Python refuses it, but reads it with < in the place of =."""
        try:
            tree = _python(self.line.replace("=", "<"))
        except UNREADABLE:
            return []
        calls = [node.args for node in ast.walk(tree) if isinstance(node, ast.Call)]
        named = [next((i for i, a in enumerate(args) if isinstance(a, ast.Compare)), len(args)) for args in calls]
        return [a for args, i in zip(calls, named, strict=True) for a in args[i:] if not isinstance(a, ast.Compare)]

    def _levels(self, node: ast.expr) -> list[ast.expr]:
        """The levels from left to right; iterative, because a tower may be high."""
        found: list[ast.expr] = []
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                waiting += [node.left, node.right]
            else:
                found.append(node)
        return found[::-1]

    def _placed(self, node: ast.expr, k: int) -> Rule | None:
        """Level `k`, which may stand there."""
        level = self._level(node)
        if level is not None and k < Stack.MAX_HEIGHT:
            try:
                level.check_place(k)
            except InputError as error:
                self._note(node, _on_one_line(error))
        return level

    def _level(self, node: ast.expr) -> Rule | None:
        name, arguments = self._call(node)
        if name is None or name.id not in LEVELS:
            if self._is_auto(node):
                self._note(node, "auto makes the first two levels of a stack, and stands at its beginning")
            elif name is None or name.id in {*WORDS, *TRANSFORMS, *MEASURED}:
                self._note(node, "a rule was expected, such as Adam or SGD(1e-5)")
            elif lacking := unfinished(name.id):
                self._note(name, f"the rule {name.id} is not whole: it lacks {', '.join(lacking)}")
            else:
                self._note(name, f"no rule is called {name.id}: {nearest(name.id, [*LEVELS, auto.__name__])}")
            return None
        rule = LEVELS[name.id]
        flags = ["clip", *(k for k, option in rule.options.items() if isinstance(option.default, bool))]

        def read(key: str, value: ast.expr) -> Any:
            return rule.check(key, self._argument(rule, key, value))

        before = len(self.mistakes)
        found = self._arguments(arguments, flags, "base" if issubclass(rule, Wrapper) else "lr", read)
        try:
            return rule(**found) if len(self.mistakes) == before else None
        except InputError as error:
            self._note(node, _on_one_line(error))
            return None

    def _argument(self, rule: type[Rule], key: str, node: ast.expr) -> Any:
        """The value of one argument of a rule, not yet checked against the rule."""
        if key == "base":
            return self._level(node)
        if key == "clip":
            items = node.elts if isinstance(node, ast.List) else [node]
            literal = node.value if isinstance(node, ast.Constant) else None
            if isinstance(literal, bool):
                return literal
            return [
                made for item in items if (made := self._choice(item, TRANSFORMS, "gradient transform")) is not None
            ]
        if key == "at":
            return self._choice(node, MEASURED, "place to measure at")
        if key in rule.options:
            return self._literal(node)
        if key in rule.hyperparameters:
            return self._value(node)
        return None

    def _arguments(
        self, call: ast.Call | None, flags: list[str], first: str | None, read: Callable[[str, ast.expr], Any]
    ) -> dict[str, Any]:
        """The arguments of a call by name: `first` by position, then flags by their bare names, then name=value."""
        found: dict[str, Any] = {}
        pairs: list[tuple[str | None, ast.expr, ast.AST]] = []
        for i, node in enumerate(call.args if call else []):
            if isinstance(node, ast.Name) and node.id in flags:
                pairs.append((node.id, ast.Constant(True), node))
            elif "clip" in flags and _names_transform(node, bare=i > 0):
                self._note(node, f"this is a gradient transform: write clip={ast.unparse(node)}")
            elif i == 0 and first:
                pairs.append((first, node, node))
            elif isinstance(node, ast.Name) and flags:
                self._note(node, f"no flag is called {node.id}: {nearest(node.id, flags)}")
            else:
                self._note(node, f"{f'only {first} is' if first else 'nothing is'} given by position: write name=value")
        pairs += [(k.arg, k.value, k) for k in (call.keywords if call else [])]
        for key, value, place in pairs:
            if key is None or key in found:
                self._note(place, "write name=value" if key is None else f"{key} is given twice")
                continue
            try:
                found[key] = read(key, value)
            except InputError as error:
                self._note(place, _on_one_line(error))
        return found

    def _value(self, node: ast.expr) -> Setting | float:
        """A number, a free name, or one of these inside modifiers; raises InputError."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name not in WORDS:
                raise InputError(f"{name}(...) is no kind of value", instead=nearest(name, [*MODIFIERS, "fixed_after"]))
            if name == fixed_after.__name__:
                return self._fixed_after(node)
            if len(node.args) != 1 or node.keywords:
                raise InputError(f"{name} takes one value", instead=f"write {name}(1e-3)")
            return MODIFIERS[name](self._value(node.args[0]))
        if isinstance(node, ast.Name):
            return free(node.id)
        number = self._literal(node)
        if isinstance(number, bool):
            raise InputError(f"a number was expected, not {number}", instead="write a number such as 1e-3")
        return number

    def _fixed_after(self, node: ast.Call) -> Setting:
        """A value and a number of steps."""
        if len(node.args) != 2 or node.keywords:
            raise InputError("fixed_after takes a value and a number of steps", instead="write fixed_after(1e-3, 1000)")
        steps = self._literal(node.args[1])
        return fixed_after(self._value(node.args[0]), steps)  # type: ignore[arg-type]  # which it refuses

    def _literal(self, node: ast.expr) -> float | bool:
        """A number, with a sign perhaps, or True or False; raises InputError."""
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            as_setting(node.value)
            return sign * node.value
        raise InputError("a number was expected", instead="write a number such as 1e-3")

    def _choice(self, node: ast.expr, known_names: Mapping[str, type[Choice]], kind: str) -> Choice | None:
        """One gradient transform, or place to measure at, or None with its mistakes noted."""
        name, arguments = self._call(node)
        if name is None or name.id not in known_names:
            what = f"no {kind} is called {name.id}" if name else f"a {kind} was expected"
            self._note(node, f"{what}: {nearest(name.id if name else '', known_names)}")
            return None
        cls = known_names[name.id]
        known = {f.name: f for f in sorted(fields(cls), key=lambda f: f.kw_only is True)}
        required = [f.name for f in known.values() if f.default is MISSING]
        flags = [f.name for f in known.values() if isinstance(f.default, bool)]

        texts = [f.name for f in known.values() if isinstance(f.default, str)]

        def read(key: str, value: ast.expr) -> float | bool | str:
            if key not in known:
                hint = nearest(key, known) if known else "it takes nothing"
                raise InputError(f"{cls.name} has no {key!r}", instead=hint)
            if key in texts:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    return value.value
                raise InputError(f"{cls.name}'s {key} is a text", instead=f"write {key}={known[key].default!r}")
            literal = self._literal(value)
            if (key in flags) != isinstance(literal, bool):
                raise InputError(f"{cls.name}'s {key} is {'a flag' if key in flags else 'a number'}, not {literal}")
            return literal

        before = len(self.mistakes)
        found = self._arguments(arguments, flags, required[0] if required else None, read)
        if len(self.mistakes) > before:
            return None
        if missing := [name for name in required if name not in found]:
            self._note(node, f"{cls.name} needs {' and '.join(missing)}")
            return None
        try:
            return cls(**found)
        except InputError as error:
            self._note(node, _on_one_line(error))
            return None

    def _call(self, node: ast.expr) -> tuple[ast.Name | None, ast.Call | None]:
        """The name and the arguments of `Name` or `Name(...)`."""
        if isinstance(node, ast.Name):
            return node, None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func, node
        return None, None

    def _note(self, node: ast.AST, message: str) -> None:
        """Remember a mistake at the place of `node`; ast counts bytes, people count characters."""
        raw = self.line.encode()
        columns = (getattr(node, "col_offset", 0), getattr(node, "end_col_offset", None) or 0)
        start, end = (self.offset + len(raw[:c].decode(errors="replace")) for c in columns)
        self.mistakes.append((start, end, message))


def _python(line: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what looks odd in Python: it is either right or a mistake here
        return ast.parse(line, mode="eval").body


def _names_transform(node: ast.expr, bare: bool) -> bool:
    """Whether this is written like a gradient transform, `agc(0.01)`, or where no free name may stand, `agc`."""
    called = node.func if isinstance(node, ast.Call) else node if bare else None
    return isinstance(called, ast.Name) and called.id in TRANSFORMS


def _on_one_line(error: InputError) -> str:
    return ": ".join(part for part in (error.what, error.why, error.instead) if part)


def _explain(message: str) -> str:
    """Python's word for a syntax error, where one of ours helps more."""
    if "positional argument follows keyword" in message:
        return "flags come before name=value: move this forward, or write it as name=value"
    if "unterminated string" in message or "string literal" in message:
        return "a quoted text does not end here"
    if message.startswith("Exceeds the limit"):
        return "this whole number is too large: write it as a float"
    if "invalid syntax" in message or "Perhaps you forgot a comma" in message:
        return "this does not fit here: a stack reads Rule(...) / Rule(...)"
    return message.split(" (")[0]
