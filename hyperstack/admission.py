"""What `HyperOptimizer` takes: each of these is an InputError for what it does not, before anything has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyperstack.dsl import parse
from hyperstack.errors import InputError, RunError
from hyperstack.rule import RULES
from hyperstack.wrapper import Wrapper

KNOWN = {"params", "param_names", "lr", "initial_lr", "stack", "nonfinite", "compile"}
MADE_OF = ("stack", "nonfinite", "compile")
"""What a tower is made of, for good."""
FOREIGN = "load a state_dict that HyperOptimizer wrote"


def check_group(group: dict[str, Any]) -> None:
    """A param group as the user gives it: keys that are known, and no rate where the factor of schedulers belongs."""
    unknown = sorted(group.keys() - KNOWN)
    if unknown:
        raise InputError(
            f"a param group has no {', '.join(map(repr, unknown))}",
            why="hyperparameters are part of the stack",
            instead='give the group its own stack: {"params": ..., "stack": "Adam(weight_decay=0.1) / SGD(1e-5)"}',
        )
    check_nonfinite(group.get("nonfinite", "skip"))
    if float(group.get("lr", 1.0)) != 1.0:
        raise InputError(
            f"'lr' of a param group is the factor that schedulers set, 1.0 at first, and not {float(group['lr']):g}",
            instead='for a rate of its own give the group its own stack: {"params": ..., "stack": "Adam(1e-4)"}',
        )


def made_of(group: dict[str, Any]) -> dict[str, Any]:
    """What the tower of a param group is made of."""
    return {name: group.get(name) for name in MADE_OF}


def refuse_written(group: dict[str, Any], made: dict[str, Any]) -> None:
    """A RunError where a hyperparameter was written into a param group since, as for torch's optimizers, or what its
    tower was `made` of.
    """
    if made != (now := made_of(group)):
        name = next(name for name in MADE_OF if made[name] != now[name])
        raise RunError(
            f"{name!r} of a param group was changed, and its tower was made already",
            why=f"  then: {made[name]}\n  now:  {now[name]}",
            instead="write back what it was, or make another HyperOptimizer",
        )
    others = group.keys() - KNOWN  # those of schedulers, mostly
    if written := [n for n in others if n == "betas" or any(n in rule.hyperparameters for rule in RULES.values())]:
        raise RunError(
            f"{written[0]!r} was written into a param group, where nobody reads it",
            why="hyperparameters are part of the stack, and may be learned",
            instead=f"take it out, del group[{written[0]!r}], and give the optimizer a stack that has it",
        )


def check_nonfinite(nonfinite: object) -> None:
    """What is to happen to hypergradients that are not finite."""
    if nonfinite not in ("skip", "propagate"):
        raise InputError(f"nonfinite={nonfinite!r}", instead='choose "skip" or "propagate"')


def check_params(params: list[Tensor]) -> None:
    """Parameters of floating point."""
    for p in params:
        if not p.is_floating_point():
            kind = str(p.dtype).removeprefix("torch.")
            raise InputError(
                f"HyperOptimizer does not train {kind} parameters",
                instead="pass floating-point parameters; a complex one can be kept as its torch.view_as_real",
            )


def gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    """Those of parameters; a RunError for sparse ones."""
    found = [p.grad for p in params]
    if any(grad is not None and grad.layout is not torch.strided for grad in found):
        raise RunError(
            "HyperOptimizer does not take sparse gradients",
            instead="make the embedding dense (sparse=False), or give it to an optimizer of its own",
        )
    return found


def check_stacks(stacks: list[str]) -> None:
    """Stacks of param groups that can stand side by side; the last is new."""
    _refuse_apart(stacks[0], stacks[-1])
    _refuse_unmoved(stacks)


def _refuse_apart(first: str, stack: str) -> None:
    """All groups have one loss: it is limited for all of them, and by the same rule, or for none."""
    limits = [level if isinstance(level, Wrapper) else None for level in (parse(first)[0], parse(stack)[0])]
    one, other = (level and (type(level), dict(level.chosen)) for level in limits)
    if one != other:
        raise InputError(
            "the loss is limited for one param group, and otherwise or not at all for another",
            why=f"  {first}\n  {stack}",
            instead="wrap the primary level of every group alike, as in ALRC(SGD) and ALRC(Adam)",
        )


def _refuse_unmoved(stacks: list[str]) -> None:
    """What is shared has levels above it in all groups, or it would go apart."""
    above: dict[str, set[bool]] = {}
    for stack in map(parse, stacks):
        for name, resolved in stack.resolve()[0].items():
            if resolved.shared and resolved.learned:
                above.setdefault(name, set()).add(len(stack) > 1)
    if apart := [name for name, found in above.items() if len(found) > 1]:
        raise InputError(
            f"param groups share {apart[0]}, and only some have a level above that moves it",
            why="\n".join(f"  {stack}" for stack in stacks),
            instead="give the primary level of each of them a level above, or fix it",
        )


def check_state(groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> None:
    """A state of an optimizer with these param groups."""
    theirs = state_dict.get("param_groups")
    if not isinstance(theirs, list):
        raise InputError("this is not a state of HyperOptimizer", instead=FOREIGN)
    if len(theirs) != len(groups):
        what = f"this state has {len(theirs)} param groups, the optimizer {len(groups)}"
        raise InputError(what, instead="load a state_dict that the same optimizer wrote")
    towers = state_dict.get("state", {}).get("towers", {})
    for i, (own, other) in enumerate(zip(groups, theirs, strict=True)):
        _refuse_foreign(own, other, towers.get(i), i)


def _refuse_foreign(ours: dict[str, Any], theirs: dict[str, Any], tower: dict[str, Any] | None, i: int) -> None:
    if "stack" not in theirs or tower is None:
        raise InputError("this is not a state of HyperOptimizer", instead=FOREIGN)
    if theirs["stack"] != ours["stack"]:
        raise InputError(
            "this state belongs to another stack",
            why=f"  group {i} of the state:     {theirs['stack']}\n  group {i} of the optimizer: {ours['stack']}",
            instead="make the optimizer with the stack of the state",
        )
    if tower.get("shapes") != shapes(ours):
        raise InputError("this state belongs to parameters of other shapes", instead="load it for the same model")


def shapes(group: dict[str, Any]) -> list[list[int]]:
    """Those of its parameters, as a state keeps them."""
    return [list(p.shape) for p in group["params"]]
