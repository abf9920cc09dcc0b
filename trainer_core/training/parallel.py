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
from typing import TYPE_CHECKING

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
            return job.but(model=job.model.but(device=f"cuda:{self.local}").model_dump(mode="json"))
        return job

    def add_up(self, *tensors: Tensor) -> None:
        """Makes tensors of the same shapes on all ranks their sums, the same bits everywhere; waits for no GPU."""
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

    def agreed(self, asked: bool) -> bool:
        """What rank 0 says, on every rank."""
        return bool(self.exchange([asked])[0][0])

    def tell(self, text: str = "") -> str:
        """What rank 0 says, on every rank; the others wait for it."""
        if self.count == 1:
            return text
        import torch
        import torch.distributed as dist

        data = text.encode()
        (size, *_), *_ = self.exchange([len(data)])
        letters = torch.tensor([*data] if self.leads else [0] * size, dtype=torch.uint8)
        with _broken():
            dist.broadcast(letters, src=0)
        return bytes(letters.tolist()).decode()

    def leave(self) -> None:
        """To be called when the run is at its end."""
        if self.count > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


ALONE = Ranks()


class RanksDiffer(TrainingError):
    """Ranks do not have the same weights any more, and nobody knows who is right."""


def join() -> Ranks:
    """Waits for the other processes that a launcher has started for the same run; gives this one alone if none has.

    Raises:
        TrainingError: if they do not come together.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return ALONE
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
