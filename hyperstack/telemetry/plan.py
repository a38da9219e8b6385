"""What a run is asked to do, as it stands in plan.json, in checkpoints and in summaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from hyperstack.errors import InputError
from hyperstack.schedule import CONSTANT, Schedule


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do. `stack` is canonical text with every name bound; `device` as torch names it.

    `threads`: on how many of the CPU's cores PyTorch computes; None leaves that as it is. `compile`: whether
    torch.compile makes kernels of the optimizer's step. `sinks`: what is written beside the record, see `outputs`.
    `schedule`: text of a `Schedule`, of the primary level's rate over the planned steps.
    """

    task: str
    stack: str
    epochs: int
    seed: int
    device: str
    batch_size: int
    record_every: int = 1
    threads: int | None = None
    compile: bool = False
    sinks: tuple[str, ...] = ()
    schedule: str = CONSTANT

    @classmethod
    def of(cls, content: object) -> Plan:
        """The plan that was saved as `content`; ValueError where it is none."""
        if not isinstance(content, dict):
            raise ValueError("it is not a table of names and values")
        kinds: dict[Any, Any] = {"str": str, "int": int, "int | None": (int, type(None)), "bool": bool}
        kinds["tuple[str, ...]"] = (list, tuple)
        chosen: dict[str, Any] = {f.name: content.get(f.name) for f in fields(cls)}
        chosen["sinks"] = content.get("sinks", [])  # which earlier versions did not have
        chosen["schedule"] = content.get("schedule", CONSTANT)
        wrong = [f.name for f in fields(cls) if not isinstance(chosen[f.name], kinds[f.type])]
        if wrong:
            raise ValueError(f"it lacks {', '.join(wrong)}, or holds something else there")
        return cls(**{**chosen, "sinks": tuple(map(str, chosen["sinks"]))})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "sinks": list(self.sinks)}

    def check_resumes(self, saved: Plan) -> None:
        """An InputError unless a run under plan `saved` can go on under this one.

        More or fewer epochs are the same run, unless its schedule knows where it ends. So it is elsewhere, but no
        longer bit for bit.
        """
        if self.epochs != saved.epochs and Schedule.parse(saved.schedule).knows_the_end:
            raise InputError(
                f"a run with the schedule {saved.schedule} ends with the epochs that were planned",
                why=f"  the run: {saved.epochs}\n  asked:   {self.epochs}",
                instead="leave --epochs out, or start a new run",
            )
        for name, mine in self.as_dict().items():
            theirs = getattr(saved, name)
            if name not in ("epochs", "device", "threads", "compile", "sinks") and theirs != mine:
                raise InputError(
                    f"the checkpoint belongs to another {name.replace('_', ' ')}",
                    why=f"  the run: {theirs}\n  asked:   {mine}",
                    instead="leave the option out to take the run's own, or start a new run",
                )
