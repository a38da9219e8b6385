"""A task tried on a few examples, before anything is trained or written: whether its methods give what `Task` says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyperstack.errors import InputError
from hyperstack.tasks.base import Data, Task

FEW = 4


def try_out(task: Task, data: Data, device: torch.device) -> None:
    """An InputError that names the method where a task, with what its `load` gave, is not what a task should be.

    What its methods raise themselves is theirs, and goes through.
    """
    _check_data(task, data)
    _check_training(task, data, device)


def _check_data(task: Task, data: object) -> None:
    for name in ("batch_size", "epochs", "test_batch_size"):
        if not isinstance(value := getattr(task, name), int) or value < 1:
            raise _wrong(task, name, f"is {value!r}", "a whole number from 1 up")
    if not isinstance(data, Data):
        raise _wrong(task, "load()", f"gives {_said(data)}", "a hyperstack.tasks.Data")
    for kind in ("train", "test"):
        pair = [getattr(data, f"{kind}_{name}") for name in ("inputs", "targets")]
        if not all(isinstance(x, Tensor) and x.dim() for x in pair):
            raise _wrong(task, "load()", f"gives {kind} data that are no tensors", "tensors of as many examples")
        if not len(pair[0]) == len(pair[1]) > 0:
            counts = f"gives {len(pair[0])} {kind}_inputs and {len(pair[1])} {kind}_targets"
            raise _wrong(task, "load()", counts, "as many of both, and one at least")


def _check_training(task: Task, data: Data, device: torch.device) -> None:
    model = task.model()
    if not isinstance(model, nn.Module):
        raise _wrong(task, "model()", f"gives {_said(model)}", "a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise _wrong(task, "model()", "gives a network without parameters to train", "one that has some")
    draw = torch.Generator(device)
    inputs, targets = _prepared(task, data.train_inputs[:FEW], data.train_targets[:FEW], draw, True)
    losses = task.losses(model.to(device)(inputs), targets)
    _check_shape(task, "losses()", losses, len(data.train_inputs[:FEW]), "the loss of each example")
    with torch.no_grad():
        inputs, targets = _prepared(task, data.test_inputs[:FEW], data.test_targets[:FEW], draw, False)
        errors = task.error(model.eval()(inputs), targets)
    _check_shape(task, "error()", errors, len(data.test_inputs[:FEW]), "a number from 0 to 1 for each example")
    if bool((errors < 0).any() | (errors > 1).any()):
        raise _wrong(task, "error()", f"gives {float(errors.max()):g}", "a number from 0 to 1 for each example")


def _prepared(task: Task, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Any, Any]:
    found: object = task.prepare(inputs, targets, draw, training)
    if not isinstance(found, tuple) or len(found) != 2:
        raise _wrong(task, "prepare()", f"gives {_said(found)}", "a pair, inputs and targets")
    return found


def _check_shape(task: Task, method: str, found: object, count: int, wanted: str) -> None:
    if not (isinstance(found, Tensor) and found.is_floating_point() and found.shape == (count,)):
        raise _wrong(task, method, f"gives {_said(found)} for {count} examples", f"{wanted}, floating point, [{count}]")


def _said(found: object) -> str:
    if isinstance(found, Tensor):
        return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    return f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"


def _wrong(task: Task, what: str, found: str, wanted: str) -> InputError:
    return InputError(f"the task {task.name}: {what} {found}", instead=f"let it be {wanted}: see docs/extending.md")
