"""`choice.json` in a run's folder: what was measured of its checkpoints, by their digests, so that it is measured once.

Values hold for what they were measured with: under another key (other prompts, data, embedding …) a part begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ..config import LINKS, ModelConfig
from ..data.cache import key_of
from ..files import write_atomically
from ..reading import read_json
from ..runs.checkpoints import MANIFEST, STATE, Checkpoint
from ..runs.metrics import is_number
from ..runs.run_folder import RunFolder

FILE = "choice.json"
_VERSION = 1
BASE = "base"
"""What stands for a checkpoint's digest where the base alone was measured."""


@dataclass
class Part:
    """Some measures of each checkpoint, by its digest or `BASE`."""

    key: str = ""
    values: dict[str, dict[str, float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def under(self, key: str) -> Part:
        """This part, if it was measured under the same key, or a new one."""
        return self if self.key == key else Part(key)


@dataclass
class Record:
    """All that is known."""

    held_out: Part = field(default_factory=Part)
    pictures: Part = field(default_factory=Part)
    train_loss: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    """All held-out losses that training logged, by step."""
    embedding: str | None = None
    count: int = 0
    """Pictures of each checkpoint."""
    notes: list[str] = field(default_factory=list)
    """On checkpoints that could not be measured at all, and why."""


def model_text(model: ModelConfig) -> str:
    """What a base is told apart by; where it is computed does not count, nor which link of a graph it came over."""
    return model.but(device="auto", source="" if model.source.startswith(LINKS) else model.source).model_dump_json()


def digest_of(checkpoint: Checkpoint) -> str | None:
    """A digest of a checkpoint's LoRA files, as its manifest has it; None if it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        files = read_json(checkpoint.path / MANIFEST)["files"]
        return key_of(*(f"{name} {files[name]['sha256']}" for name in sorted(files) if name != STATE))
    return None


def read_record(run: RunFolder) -> Record | None:
    """What is known of a run; None if nothing is, or the file is damaged or another version's."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        data = read_json(run.path / FILE)
        if data["version"] == _VERSION:
            return Record(
                held_out=_part(data["held_out"]),
                pictures=_part(data["pictures"]),
                train_loss={str(digest): _number(loss) for digest, loss in data["train_loss"].items()},
                curve=[(int(step), _number(loss)) for step, loss in data["curve"]],
                embedding=None if data["embedding"] is None else str(data["embedding"]),
                count=int(data["count"]),
                notes=[str(note) for note in data["notes"]],
            )
    return None


def write_record(run: RunFolder, record: Record, there: Collection[str]) -> None:
    """Replaces the file in one step.

    Args:
        there: digests of the checkpoints that are there; of others nothing is kept.

    Raises:
        SaveError: if it cannot be written; then nothing has changed.
    """
    kept = {BASE, *there}
    for part in (record.held_out, record.pictures):
        part.values = {digest: value for digest, value in part.values.items() if digest in kept}
    record.train_loss = {digest: loss for digest, loss in record.train_loss.items() if digest in kept}
    text = json.dumps({"version": _VERSION, **asdict(record)}, indent=1) + "\n"
    write_atomically(run.path / FILE, text.encode(), inside=run.path)


def _part(data: Any) -> Part:
    values = {
        str(digest): {str(name): None if one is None else _number(one) for name, one in measures.items()}
        for digest, measures in data["values"].items()
    }
    return Part(str(data["key"]), values, [str(note) for note in data["notes"]])


def _number(value: Any) -> float:
    if not is_number(value):
        raise TypeError(value)
    return float(value)
