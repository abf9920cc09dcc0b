"""Deterministic mode: the same job on the same machine gives the same bits, or the run says why not.

torch's switches for this are the process's, not a thread's: while a job in deterministic mode is at work, the rest of
the process (ComfyUI's own graphs) computes deterministically as well, more slowly, and an operation of theirs that has
no deterministic algorithm raises. Afterwards every switch is as it was. Jobs in several threads share one mode, which
the last of them takes down. The same bits also need the same environment (`environment.py`).
"""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch.backends import cudnn
from torch.utils import deterministic as fill
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import TrainingError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED_WORKSPACES = (":4096:8", ":16:8")
"""With these, cuBLAS promises the same bits (its documentation, "Results Reproducibility")."""

_OFF = "train.deterministic is off, and on a GPU torch then takes fast algorithms that may add in any order"
_NO_MODE = "torch has no deterministic algorithms for the device type {0}"
_NOT_WATCHED = "no update was watched"
_CUBLAS = (
    f"cuBLAS was in use before {_WORKSPACE} could be set: set it to {_FIXED_WORKSPACES[0]} before the program starts "
    "(ComfyUI does with --deterministic)"
)
_INDEXING = "the gradient of indexing by a tensor (index_put_) is added up in any order on several threads"


Mode = Literal["off", "lax", "strict"]
"""off: without the mode; strict: an operation that is not deterministic raises; lax: it does not, and is found."""


class Findings:
    """Why the same bits cannot be promised of a run; empty if they can."""

    def __init__(self, mode: Mode = "off", device_type: str = "cpu", probes: bool = True) -> None:
        self.reasons: list[str] = []
        self._probes = probes
        self._watch_indexing = mode == "off" and device_type == "cpu"
        self._watched = mode == "strict"

    def add(self, reason: str) -> None:
        """Takes a reason in, unless it is known."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def summary(self) -> str:
        """`yes`, or `no: ` and the reasons: for a LoRA's metadata."""
        reasons = self.reasons if self._watched else [*self.reasons, _NOT_WATCHED]
        return f"no: {'; '.join(reasons)}" if reasons else "yes"

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Goes around every update; watches a run's first one for operations that may give other bits each time.

        Watching makes torch take deterministic algorithms where it has them. So a resumed run must not watch a second
        update: what was found goes into the checkpoint (`dumps`, `loads`).
        """
        if self._watched or not self._probes:
            yield
            return
        indexing = _IndexingWatched(self) if self._watch_indexing else nullcontext()
        with _ONE_PROBE, _held("warn"), indexing, _warnings_taken(self):
            yield
        self._watched = True

    def dumps(self) -> str:
        """What was found, for `loads`."""
        return json.dumps({"watched": self._watched, "reasons": self.reasons})

    def loads(self, text: str) -> None:
        """Takes in what an earlier process found about the same run; nothing for an empty text."""
        if text:
            saved = json.loads(text)
            self._watched = self._watched or bool(saved["watched"])
            for reason in saved["reasons"]:
                self.add(reason)


@contextmanager
def deterministic(device: torch.device, wanted: bool, probes: bool = True) -> Iterator[Findings]:
    """The mode for a job's work on a device; gives what is found while in it.

    If not wanted, no switch is touched but during a run's first update (`Findings.probing`), and that only if it
    `probes`: what is compiled there would be compiled once more for the next, or not at all while it is watched.

    Raises:
        TrainingError: in place of torch's error for an operation that has no deterministic algorithm.
    """
    with ExitStack() as stack:
        mode: Mode = "off"
        if wanted:
            with _held("raise"):  # cuBLAS reads its variable once; if that was too late, every matrix product raises
                mode = "strict" if device.type != "cuda" or _cublas_obeys(device) else "lax"
            stack.enter_context(_held("raise" if mode == "strict" else "all but raise"))
        findings = Findings(mode, device.type, probes)
        if device.type == "cuda" and mode != "strict":
            findings.add(_OFF if mode == "off" else _CUBLAS)
        elif device.type not in ("cpu", "cuda"):
            findings.add(_NO_MODE.format(device.type))
        try:
            yield findings
        except RuntimeError as error:
            operation = _operation(str(error))
            if operation is None:
                raise
            whose = "train.deterministic" if wanted else "train.deterministic of the other job in this process"
            raise TrainingError(
                f"{operation} has no algorithm on this device ({device}) that gives the same bits each time. Switch "
                f"{whose} off, which takes a new run; what was saved before is intact"
            ) from error


# --- the switches ----------------------------------------------------------------------------------------------------


class _Switches(NamedTuple):
    """All of the process's switches that the mode sets."""

    algorithms: bool
    warn_only: bool
    warn_always: bool
    fill_memory: bool
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    workspace: str | None

    @classmethod
    def now(cls) -> _Switches:
        return cls(
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.is_warn_always_enabled(),
            fill.fill_uninitialized_memory,  # type: ignore[attr-defined]
            cudnn.deterministic,
            cudnn.benchmark,
            os.environ.get(_WORKSPACE),
        )

    def put(self) -> None:
        torch.use_deterministic_algorithms(self.algorithms, warn_only=self.warn_only)
        torch.set_warn_always(self.warn_always)
        fill.fill_uninitialized_memory = self.fill_memory  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark = self.cudnn_deterministic, self.cudnn_benchmark
        os.environ.pop(_WORKSPACE, None)
        if self.workspace is not None:
            os.environ[_WORKSPACE] = self.workspace


_Wish = Literal["warn", "all but raise", "raise"]
"""warn: torch tells what is not deterministic; else all switches are set, and torch raises instead or does not."""

_lock = threading.Lock()
_wishes: list[_Wish] = []
"""What the threads that are in the mode wish of the process's switches."""
_before: _Switches | None = None
"""What the switches stood at before the first of them came."""


@contextmanager
def _held(wish: _Wish) -> Iterator[None]:
    """Sees to a wish for a while; the last to leave restores every switch."""
    try:
        _apply(_wishes.append, wish)
        yield
    finally:
        _apply(_wishes.remove, wish)


def _apply(change: Callable[[_Wish], None], wish: _Wish) -> None:
    global _before
    with _lock:
        change(wish)
        before = switches = _before or _Switches.now()
        if "warn" in _wishes:
            # torch tells some things once in a process only, unless told otherwise
            lenient = before.warn_only or not before.algorithms
            switches = before._replace(algorithms=True, warn_only=lenient, warn_always=True)
        if set(_wishes) - {"warn"}:
            workspace = before.workspace if before.workspace in _FIXED_WORKSPACES else _FIXED_WORKSPACES[0]
            switches = _Switches(True, "raise" not in _wishes, switches.warn_always, True, True, False, workspace)
        switches.put()
        _before = before if _wishes else None


def _cublas_obeys(device: torch.device) -> bool:
    """Whether cuBLAS counts as deterministic, asked with the mode on."""
    try:
        torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
    except RuntimeError as error:
        if _operation(str(error)) is None:
            raise
        return False
    return True


# --- what torch says -------------------------------------------------------------------------------------------------

_ONE_PROBE = threading.Lock()
"""Python's list of warning filters is the process's too: two probes would restore each other's."""


def _operation(message: str) -> str | None:
    """What torch's message says is not deterministic; None for a message about something else."""
    if match := re.match(r"(\S+) does not have a deterministic implementation", message):
        return match[1]
    if match := re.match(r"([\w ]+?) defaults to a non-deterministic algorithm", message):
        return match[1]
    return "cuBLAS" if message.startswith("Deterministic behavior was enabled") and "CuBLAS" in message else None


@contextmanager
def _warnings_taken(findings: Findings) -> Iterator[None]:
    """Turns torch's warnings about determinism into findings; all others are shown at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="(?s).*determinis", category=UserWarning)
        yield
    for warning in caught:
        if operation := _operation(str(warning.message)):
            findings.add(f"{operation} has no deterministic algorithm here")
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


class _IndexingWatched(TorchDispatchMode):
    """Looks for what torch never warns of, since watching itself makes it deterministic on a CPU: adding by index.

    It is the only one: those that torch's documentation of the mode names were run on two threads.
    """

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        accumulates = kwargs.get("accumulate", args[3] if len(args) > 3 else False)
        if "index_put" in func.name() and accumulates and torch.get_num_threads() > 1:
            self._findings.add(_INDEXING)
        return func(*args, **kwargs)
