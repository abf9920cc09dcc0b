"""Several processes that train one run, each with a base of its own and its part of every micro-batch.

`accelerate launch` or `torchrun` start them and say by environment variables who is who. Each computes the gradients
of its part; their sum is what one process would have had of the whole micro-batch, and all make the same update with
it. Rank 0 owns the run: it alone writes the run's folder, hears the user, measures and draws.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..config import JobConfig
from ..errors import TrainingError, first_line

if TYPE_CHECKING:
    from torch import Tensor

_PATIENCE = timedelta(hours=24)
"""For which a rank waits for others: rank 0 encodes, measures and draws meanwhile, or the run is paused. That one has
died is no matter of time: its connections break, and who started the ranks ends all of them."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; by default this one alone."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Place of this process on its machine."""

    @property
    def leads(self) -> bool:
        """Whether the run is this process's."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of the samples of a micro-batch are this rank's; of a short one maybe none."""
        size = -(-count // self.count)
        return slice(self.rank * size, (self.rank + 1) * size)

    def job(self, job: JobConfig) -> JobConfig:
        """The job on this rank's own GPU."""
        if self.local and job.model.device in ("auto", "cuda"):
            return job.but(model={"device": f"cuda:{self.local}"})
        return job

    def add_up(self, *tensors: Tensor) -> None:
        """Makes tensors of the same shapes on all ranks their sums, the same bits everywhere; waits for no device."""
        if self.count == 1:
            return
        import torch.distributed as dist

        with _broken():
            for tensor in tensors:
                dist.all_reduce(tensor)

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """Numbers of each rank, by rank; all of them give equally many."""
        if self.count == 1:
            return [list(numbers)]
        import torch
        import torch.distributed as dist

        given = torch.tensor(numbers, dtype=torch.int64)
        found = [torch.empty_like(given) for _ in range(self.count)]
        with _broken():
            dist.all_gather(found, given)
        return [one.tolist() for one in found]

    def tell(self, what: Any = None) -> Any:
        """What rank 0 gives, on every rank; the others wait for it."""
        if self.count == 1:
            return what
        import torch
        import torch.distributed as dist

        box = [what]
        with _broken():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Ranks()


def launched() -> bool:
    """Whether this process is one of several that a launcher has started for one run."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def join() -> Ranks:
    """Joins the other processes, and waits until all are there.

    Raises:
        TrainingError: if they do not come together.
    """
    import torch
    import torch.distributed as dist

    rank, count, local = (int(os.environ.get(name) or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "cpu:gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
        backend += ",cuda:nccl"
    with _broken():
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(rank, count, local)


@contextmanager
def _broken() -> Iterator[None]:
    """Says what a broken connection means."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"another process of this run has ended, or cannot be reached ({first_line(error)}). What was saved before "
            "is intact: see what it said, and resume with as many processes"
        ) from error
