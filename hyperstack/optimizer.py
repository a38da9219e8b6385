"""`HyperOptimizer`: a stack as an ordinary `torch.optim.Optimizer`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from hyperstack.admission import (
    check_group,
    check_nonfinite,
    check_params,
    check_stacks,
    check_state,
    gradients,
    made_of,
    refuse_written,
    shapes,
)
from hyperstack.averaging import make_tower
from hyperstack.dsl import parse
from hyperstack.engine import Tower
from hyperstack.errors import InputError
from hyperstack.losses import Losses
from hyperstack.probing import Probing
from hyperstack.rule import Rule, RuleType, Stack
from hyperstack.sharing import step_together

StackLike = Stack | Rule | RuleType | str


def _untraced(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that torch.compile leaves alone, as it does torch's own optimizers.

    Torch's decorator loads all of torch.compile at the first call, which takes as long as loading torch: here that is
    put off until somebody else has done so, and before that nothing can look into the method.
    """
    hidden: list[Callable[..., Any]] = []

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        if not hidden:
            hidden.append(torch.compiler.disable(method))
        return hidden[0](*args, **kwargs)

    return call


_TORCHS = torch.optim.Optimizer
_add_param_group, _state_dict, _load_state_dict, _zero_grad = (
    inspect.unwrap(f) for f in (_TORCHS.add_param_group, _TORCHS.state_dict, _TORCHS.load_state_dict, _TORCHS.zero_grad)
)


class HyperOptimizer(torch.optim.Optimizer):
    """Trains parameters with the primary level of a stack, and the hyperparameters of each level with the level above.

    It replaces `torch.optim.Adam` in a loop that stays as it is:

        opt = HyperOptimizer(model.parameters(), "Adam / SGD(1e-5)")
        opt.zero_grad(); loss.backward(); opt.step()

    params: tensors, named parameters, or dicts of param groups. A group may carry its own `stack`; each group has
        a tower, and so hyperparameters, of its own.
    stack: a text such as "Adam / SGD(1e-5, clip)", or `hs.Adam / hs.SGD(1e-5, clip=True)`.
    nonfinite: "skip" (default) leaves a hyperparameter whose hypergradient is not finite, with its state, where it is
        for that step, and counts it; "propagate" lets it through, as the published implementation does.
    compile: whether torch.compile makes kernels of the large parts of a step, which takes some seconds once and a C++
        compiler (Triton on a GPU): less than half the time from about a million parameters on. The results are the
        same but for rounding. It is no part of the state: a state goes on under whatever its optimizer was given.

    `param_groups[i]["lr"]` is not the learning rate but a *schedule factor*, 1.0 at first, that multiplies the learned
    rate, so that the schedulers of `torch.optim.lr_scheduler` compose with learning. The learned rate is
    `hyperparameters()["0.lr"]`.

    Raises InputError (a ValueError) for a stack that cannot be read or has free names left, for complex or integer
    parameters, and for a state of another stack; RunError (a RuntimeError) for a sparse gradient.
    """

    def __init__(self, params: ParamsT, stack: StackLike, *, nonfinite: str = "skip", compile: bool = False) -> None:
        check_nonfinite(nonfinite)
        self._towers: list[Tower] = []
        self._made: list[dict[str, Any]] = []
        self._losses = Losses()
        self._probing = Probing()
        text = str(_as_stack(stack))
        super().__init__(params, {"lr": 1.0, "stack": text, "nonfinite": nonfinite, "compile": bool(compile)})

    @_untraced
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with a tower of their own; the group may carry its own `stack`.

        The towers of the groups that are already there go on undisturbed.
        """
        if isinstance(param_group, dict):
            check_group(param_group)
            stack = _as_stack(param_group.get("stack", self.defaults["stack"]))
            stack.resolve()
            param_group["stack"] = str(stack)
        _add_param_group(self, param_group)
        group = self.param_groups[-1]
        try:
            check_params(group["params"])
            check_stacks([each["stack"] for each in self.param_groups])
            tower = _tower(group)
        except InputError:
            self.param_groups.pop()
            raise
        self._towers.append(tower)
        self._made.append(made_of(group))

    @_untraced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every level of every tower, then the parameters; returns what `closure` returns.

        closure: reevaluates the model with gradients and returns the loss, as in torch.optim: it calls zero_grad,
            computes the loss and calls backward. A stack that measures at averages needs one, and calls it twice in
            some steps, first with the averaged weights in place.

        Parameters without a gradient stay where they are; a step in which none has one changes nothing. Raises RunError
        where a closure is missing, and after `eval()`.
        """
        for group, made in zip(self.param_groups, self._made, strict=True):
            refuse_written(group, made)
        self._probing.refuse(self._with_params(), closure)
        with self._showing():
            loss = None if closure is None else self._probing.call(self._with_params(), closure)
            towers = self._with_params()  # as the closure has left them
            params, grads = [own for _, own in towers], [gradients(own) for _, own in towers]
            if len(towers) > 1:  # refuse before any of them has moved
                for (tower, own), found in zip(towers, grads, strict=True):
                    tower.admit(own, found)
            tangents = [None for _ in grads] if self._limiter() is None else self._losses.taken(params, grads)
            factors = [group["lr"] for group in self.param_groups]
            step_together(self._towers, list(zip(params, grads, factors, tangents, strict=True)))
        return loss

    def _with_params(self) -> list[tuple[Tower, list[Tensor]]]:
        """The tower of each group with its parameters."""
        return [(tower, group["params"]) for tower, group in zip(self._towers, self.param_groups, strict=True)]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """`with opt.averaged():` the parameters have their averages, by which a stack that measures there is judged.

        They come back bit for bit. Where a stack keeps no averages, nothing changes. BatchNorm's statistics stay those
        of the live weights: torch.optim.swa_utils.update_bn finds others.
        """
        if self._probing.live is not None:
            yield
            return
        try:
            self.eval()
            yield
        finally:
            self.train()

    def eval(self) -> None:
        """Put the averages in place until `train()`, as in schedule_free. Where a stack keeps none, nothing changes."""
        self._probing.begin(self._with_params())

    def train(self) -> None:
        """Put the live weights back, bit for bit."""
        self._probing.end()

    def backward(self, losses: Tensor, weight: float = 1.0) -> None:
        """Backpropagate per-example losses of any shape, reduced as the primary level wants them: see `loss`."""
        self.loss(losses, weight).backward()

    def loss(self, losses: Tensor, weight: float = 1.0) -> Tensor:
        """The scalar that `backward` differentiates, for those who scale it (AMP) or call `backward` themselves.

        losses: one number an example, of any shape; their mean is taken, or under ALRC that of the limited losses.
        weight: multiplies the result; 1/4 for each of 4 batches whose gradients are accumulated. Under an ALRC that is
            learned it belongs here, and not behind the call, so that the hypergradient of n knows of it.

        Under ALRC each step needs at least one call of this or of `backward`. Without gradients, as under
        `torch.no_grad()`, the running means of the losses stay as they are.
        """
        limiter = self._limiter()
        if limiter is None:
            return losses.mean() * weight if weight != 1 else losses.mean()
        heard = torch.is_grad_enabled() and losses.requires_grad and not self._probing.under_way
        found = limiter.limit(losses, heard)
        limited = (found.weights * losses + found.offsets).mean()
        if weight != 1:
            limited = limited * weight
        if heard:
            params = [p for group in self.param_groups for p in group["params"]]
            call = self._losses.hear(losses, found, weight, limiter.tangents, params)
            limited.register_hook(call.backpropagated)
        return limited

    def _limiter(self) -> Tower | None:
        """The tower that limits losses, if any does: the first."""
        return self._towers[0] if self._towers[0].levels[0].limits else None

    def hyperparameters(self) -> dict[str, Tensor]:
        """Every hyperparameter in use, in natural units, by key: "LEVEL.NAME", such as "0.lr" and "1.lr".

        0-dim tensors, or one number a tensor where it is per tensor; copies, on the parameters' device. The keys of
        further param groups begin with "group1.", "group2.", and so on.
        """
        return self._by_key(Tower.hyperparameters)

    def hypergradients(self) -> dict[str, Tensor]:
        """The gradient that each hyperparameter's raw tensor received at the last step, before clipping; same keys.

        0 where it is fixed, at the first step, and throughout in a stack of one level, where nobody asks for it. Where
        a stack measures at averages, it is what the last measurement found.
        """
        return self._by_key(Tower.hypergradients)

    def clip_factors(self) -> dict[str, Tensor]:
        """The factor that the level above applied to each hypergradient at the last step, 1 where it did not clip."""
        return self._by_key(Tower.clip_factors)

    def nonfinite_counts(self) -> dict[str, Tensor]:
        """How many steps each hyperparameter was left out of because its hypergradient was not finite."""
        return self._by_key(Tower.nonfinite_counts)

    @_untraced
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, for the same stack and parameters of the same shapes.

        The next step is bit for bit the one that the saved optimizer would have made. A state of another stack, of
        another optimizer or of other shapes is an InputError, and changes nothing.
        """

        def admitted(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            check_state(self.param_groups, state)
            self._probing.abandon(self._with_params())
            pairs = zip(self.param_groups, state["param_groups"], strict=True)
            return {**state, "param_groups": [dict(theirs, compile=ours["compile"]) for ours, theirs in pairs]}

        # The last of the hooks: those of the user may make a state of ours of what is none.
        with self.register_load_state_dict_pre_hook(admitted):
            _load_state_dict(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        state = self.state.copy()
        state["towers"] = self._export()  # type: ignore[index]
        return {**super().__getstate__(), "state": state}

    @_untraced
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's. What `loss` heard of these gradients is forgotten; losses still to come are remembered."""
        self._losses.zeroed()
        _zero_grad(self, set_to_none)

    @_untraced
    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only; safe for `torch.save` and `torch.load(weights_only=True)`."""
        self.state.pop("towers", None)  # type: ignore[call-overload]  # so that it stands last, whenever it is made
        self.state["towers"] = self._export()  # type: ignore[index]
        try:
            state: dict[str, Any] = _state_dict(self)
            return state
        finally:
            del self.state["towers"]  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._losses = Losses()
        self._probing = Probing()
        saved = self.state.pop("towers", {})  # type: ignore[call-overload]
        self._towers = [_tower(group) for group in self.param_groups]
        self._made = [made_of(group) for group in self.param_groups]
        for i, (tower, group) in enumerate(zip(self._towers, self.param_groups, strict=True)):
            if i in saved:
                tower.restore(saved[i], group["params"])
                if "live" in saved[i]:
                    live = [(group["params"][j], x.clone()) for j, x in saved[i]["live"]]
                    self._probing.live = [*(self._probing.live or []), *live]
                self._show_state(tower, group["params"])

    def __repr__(self) -> str:
        stacks = dict.fromkeys(group["stack"] for group in self.param_groups)
        count = sum(p.numel() for group in self.param_groups for p in group["params"])
        return f"HyperOptimizer({', '.join(stacks)}; {count:,} parameters in {len(self.param_groups)} groups)"

    def _export(self) -> dict[int, dict[str, Any]]:
        pairs = zip(self._towers, self.param_groups, strict=True)
        return {
            i: {**tower.export(), "shapes": shapes(group), **self._kept(group)}
            for i, (tower, group) in enumerate(pairs)
        }

    def _kept(self, group: dict[str, Any]) -> dict[str, Any]:
        """The live weights of a group, where averages are in place."""
        if self._probing.live is None:
            return {}
        place = {id(p): i for i, p in enumerate(group["params"])}
        return {"live": [(place[id(p)], x) for p, x in self._probing.live if id(p) in place]}

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Towers may arrange their buckets anew: `state[p]` goes on showing what they hold."""
        before = [tower.buckets for tower in self._towers]
        try:
            yield
        finally:
            for (tower, params), buckets in zip(self._with_params(), before, strict=False):
                if buckets is not tower.buckets:
                    self._show_state(tower, params)

    def _show_state(self, tower: Tower, params: list[Tensor]) -> None:
        """Let `state[p]` show each parameter's part of the flat buffers, as torch's optimizers do."""
        for bucket, step in zip(tower.buckets, tower.steps, strict=True):
            for position, i in enumerate(bucket.index):
                self.state[params[i]] = {"step": step, **bucket.views(position, params[i].shape)}

    def _by_key(self, read: Callable[[Tower], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{prefix}{k}": v for prefix, tower in self.towers() for k, v in read(tower).items()}

    def towers(self) -> Iterator[tuple[str, Tower]]:
        """The tower of each param group, with the prefix of its keys: "" for the first, then "group1." and so on."""
        for i, tower in enumerate(self._towers):
            yield (f"group{i}." if i else ""), tower


def _as_stack(stack: object) -> Stack:
    return parse(stack) if isinstance(stack, str) else Stack.of(stack)


def _tower(group: dict[str, Any]) -> Tower:
    names = group.get("param_names")
    return make_tower(parse(group["stack"]), group["params"], group["nonfinite"], group["compile"], names)
