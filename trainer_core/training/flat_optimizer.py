"""The job's optimizer over an adapter's buffers: one tensor to it where it is elementwise, and else all parameters.

Its state is that of each parameter, whatever the optimizer was given, so checkpoints know nothing of buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.flat import Flat, located
from ..config import TrainConfig
from .optimizer_state import State, device_of, name_of, optimizer_tensors, read_state
from .optimizers import make_optimizer

_TORCHS = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "Adadelta", "ASGD")
ELEMENTWISE = frozenset({*(f"torch.{name}" for name in _TORCHS), "lion_pytorch.Lion"})
"""Those that do the same to each element, bit for bit, in whatever tensor it lies (see their tests). Not among them:
adamw8bit, whose blocks of 256 values would be others, and Adagrad, whose state is there before any gradient."""


class FlatOptimizer:
    """An optimizer of which steps can be made that a flag on the device undoes.

    An elementwise one has a parameter for each run of neighbours in a buffer that have the same history: all of them,
    unless backward passes reach some never or later than others.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        flats: Sequence[Flat],
        config: TrainConfig,
    ) -> None:
        """Takes parameters in the order of checkpoints; those of a second `Flat` are text encoders'.

        Raises:
            ConfigError: as `make_optimizer`.
        """
        self.parameters, self.flats = list(parameters), list(flats)
        self._places = located(parameters, flats)
        text = [one for one, (flat, _) in zip(parameters, self._places, strict=True) if flat in flats[1:]]
        self.optimizer = make_optimizer(self.parameters, config, text)
        """torch's own; who sets a learning rate sets it in its groups."""
        self.elementwise = name_of(type(self.optimizer)) in ELEMENTWISE
        self._runs: dict[nn.Parameter, tuple[Flat, range]] = {}
        self._arranged: list[int] = []
        """The versions of the buffers that the optimizer's parameters are parts of."""
        if self.elementwise:
            for group in self.optimizer.param_groups:
                group["params"] = []

    # --- steps -------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """To be called before each step, when all gradients are in the buffers."""
        if self._arranged != [flat.version for flat in self.flats]:
            self._arrange(self.states())

    def step(self, fine: Tensor | None = None) -> None:
        """One step with the gradients that are there.

        Args:
            fine: True or False on the device: whether the step counts. If not, all tensors stay as they are, bit for
                bit; what the host counts is for the caller to set back (`remember`).
        """
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # torch's fused kernels look at a flag
            self.optimizer.found_inf = None if fine is None else (~fine).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif fine is None:
            self.optimizer.step()
        else:
            changed = [flat.weights for flat in self.flats]
            changed += [one for state in self.optimizer.state.values() for one in state.values() if _on_device(one)]
            before = [tensor.clone() for tensor in changed]  # activations are gone: there is room
            self.optimizer.step()
            for tensor, was in zip(changed, before, strict=True):
                torch.where(fine, tensor, was, out=tensor)

    def remember(self) -> Callable[[], None]:
        """What sets back all that the host knows of the steps made after this call, which the device has undone."""
        optimizer = self.optimizer
        states = {parameter: _with_counters_of_its_own(state) for parameter, state in optimizer.state.items()}
        groups = [dict(group) for group in optimizer.param_groups]
        runs = dict(self._runs)

        def forget() -> None:
            optimizer.state.clear()
            optimizer.state.update(states)
            for group, was in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(was)
            self._runs, self._arranged = runs, []

        return forget

    # --- state -------------------------------------------------------------------------------------------------------

    def states(self) -> list[State]:
        """What the optimizer keeps of each parameter; tensors are views of its own."""
        # `get`, since asking for an entry makes one, which says that a step was made
        if not self.elementwise:
            return [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        found: dict[tuple[int, int], State] = {}
        for run, (flat, numbers) in self._runs.items():
            start = flat.spans[numbers[0]][0]
            for number in numbers:
                first, last = (place - start for place in flat.spans[number])
                found[id(flat), number] = {
                    name: value[first:last].view(flat.parameters[number].shape) if _is_whole(value, run) else value
                    for name, value in self.optimizer.state.get(run, {}).items()
                }
        return [found.get((id(flat), number), {}) for flat, number in self._places]

    def state_dict(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by name, copied to the CPU, and the rest as JSON."""
        return optimizer_tensors(self.optimizer, self.states())

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: str) -> None:
        """The inverse of `state_dict`, bit for bit; the job's settings stay.

        Raises:
            RunError: if the state is another optimizer's, or of other parameters; nothing is changed then.
        """
        states, groups = read_state(self.optimizer, len(self.parameters), tensors, values)
        for flat in self.flats:
            of = {number: state for (lies, number), state in zip(self._places, states, strict=True) if lies is flat}
            flat.reach([self.elementwise and bool(of[number]) for number in range(len(of))])
        self._arrange(states)
        for number, entry in groups.items():
            self.optimizer.param_groups[number].update(entry)

    def _arrange(self, states: Sequence[State]) -> None:
        """Has the optimizer train what is reached, where it lies now, going on from these states."""
        optimizer = self.optimizer
        self._arranged = [flat.version for flat in self.flats]
        known = {(id(flat), number): state for (flat, number), state in zip(self._places, states, strict=True)}
        if not self.elementwise:
            # written directly, since Optimizer.load_state_dict casts what it loads to the parameter's precision
            for group in optimizer.param_groups:
                for parameter, state in zip(self.parameters, states, strict=True):
                    if state and any(parameter is one for one in group["params"]):
                        optimizer.state[parameter] = {
                            name: _put(value, device_of(name, group, parameter)) for name, value in state.items()
                        }
            return
        optimizer.state.clear()
        self._runs = {}
        for group, flat in zip(optimizer.param_groups, self.flats, strict=True):
            group["params"] = []
            histories = [
                _history(known[id(flat), number], parameter) if parameter.grad is not None else None
                for number, parameter in enumerate(flat.parameters)
            ]
            for history, members in groupby(range(len(histories)), lambda number: histories[number]):  # noqa: B023
                if history is None:
                    continue
                numbers = list(members)
                start, end = flat.spans[numbers[0]][0], flat.whole(flat.spans[numbers[-1]][1])
                run = nn.Parameter(flat.weights[start:end])
                run.grad = flat.gradient[start:end]
                group["params"].append(run)
                self._runs[run] = flat, range(numbers[0], numbers[-1] + 1)
                state = known[id(flat), numbers[0]]
                if state:
                    optimizer.state[run] = {
                        name: self._joined(name, run, known)
                        if _is_whole(value, flat.parameters[numbers[0]])
                        else _put(value, device_of(name, group, run))
                        for name, value in state.items()
                    }

    def _joined(self, name: str, run: nn.Parameter, states: Mapping[tuple[int, int], State]) -> Tensor:
        """An elementwise tensor of the state of all parameters of a run."""
        flat, numbers = self._runs[run]
        first: Tensor = states[id(flat), numbers[0]][name]
        whole, start = torch.zeros(run.shape, dtype=first.dtype, device=run.device), flat.spans[numbers[0]][0]
        for number in numbers:
            begin, end = (place - start for place in flat.spans[number])
            whole[begin:end].view(flat.parameters[number].shape).copy_(states[id(flat), number][name])
        return whole


def _is_whole(value: Any, parameter: Tensor) -> bool:
    """Whether part of a parameter's state has an element for each of its own."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _history(state: State, parameter: Tensor) -> str:
    """What parameters must have in common to be one: numbers such as how many steps were made."""
    told = {name: f"{value.dtype}" if _is_whole(value, parameter) else _plain(value) for name, value in state.items()}
    return repr(sorted(told.items()))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _put(value: Any, device: torch.device) -> Any:
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def _is_counter(value: Any) -> bool:
    """Whether it is a number that the optimizer keeps on the host, though it is a tensor."""
    return isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu"


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and not _is_counter(value)


def _with_counters_of_its_own(state: State) -> State:
    return {name: value.clone() if _is_counter(value) else value for name, value in state.items()}
