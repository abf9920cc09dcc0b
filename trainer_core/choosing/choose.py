"""Which checkpoint of a run is best: what is not known yet is measured, and kept in the run's folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..data.cache import key_of
from ..data.progress import silent
from ..data.summary import digest as dataset_digest
from ..errors import AdapterError, RunError
from ..reading import parse_json
from ..runs.checkpoints import Checkpoint, Checkpoints
from ..runs.metrics import is_number
from ..safetensors_file import read_header
from .embedding import identity_of, model_of
from .record import BASE, Record, digest_of, model_text, read_record, write_record
from .statistics import Statistics
from .verdict import Alarm, Measures, verdict

if TYPE_CHECKING:
    from ..config import JobConfig, ModelConfig
    from ..data.progress import Progress
    from ..runs.run_folder import RunFolder

PICTURES = 6
"""Of each checkpoint with the trigger, and as many without: few enough to take about as long as the previews do."""
_TRAIN_STEPS = 50
"""Steps over which the training loss before a checkpoint is averaged."""
_NO_HOLD_OUT = (
    "Held-out loss is not measured, as nothing is held out: validation.share is 0, and no data set has the role "
    "validation."
)
_COARSE = (
    "Likeness does not count beside held-out loss: by the data's own statistics it tells no more than chance. A vision "
    "model's does count."
)


@dataclass(frozen=True)
class Choice:
    """What is known of a run's checkpoints, and what it comes to."""

    run: str
    base: Measures
    """Of the base alone, as step 0."""
    checkpoints: tuple[Measures, ...]
    """Of those that are there, oldest first."""
    best: int | None
    """A step; None where nothing tells one from another."""
    reasons: tuple[str, ...]
    alarm: Alarm | None
    notes: tuple[str, ...]
    """What was not measured, and why."""
    embedding: str | None
    """By what pictures were compared; None if none were."""
    pictures: int
    """Of each checkpoint."""
    unmeasured: tuple[int, ...]
    """Steps of checkpoints that came since."""
    drawn: int = 0
    """Pictures that were drawn for it now; others were there."""
    seconds: float = 0.0
    """That it took now."""


def known_choice(run: RunFolder) -> Choice | None:
    """What was measured of a run before; None if nothing was. Measures nothing, and reads no checkpoint."""
    record = read_record(run)
    if record is None:
        return None
    return _choice(run, record, _digests(Checkpoints(run.path / "checkpoints").listed()))


def choose_checkpoint(
    run: RunFolder,
    *,
    model: ModelConfig | None = None,
    draw: bool = True,
    pictures: int = PICTURES,
    prompts: Sequence[str] = (),
    embedding: str | None = None,
    progress: Progress = silent,
) -> Choice:
    """Measures what is not known yet; see `api.choose_checkpoint`."""
    started = time.monotonic()
    job = run.job() if model is None else run.job().model_copy(update={"model": model})
    record = read_record(run) or Record()
    before = deepcopy(record)
    examined = run.examine_checkpoints()
    record.notes = [
        f"Step {one.step} is left out, as it is damaged: {problem}." for one, problem in examined if problem
    ]
    checkpoints = _digests(one for one, problem in examined if not problem)
    if not checkpoints:
        raise RunError(" ".join([f"{run.path}: has no intact checkpoint, so there is none to choose.", *record.notes]))
    vision = model_of(embedding)
    about = [model_text(job.model), *map(dataset_digest, job.datasets), job.preview_trigger]
    _read_metrics(run, record, checkpoints)
    record.held_out = record.held_out.under(key_of("held out", *about, job.validation.model_dump_json()))
    holds_out = bool(job.validation.share) or any(one.role == "validation" for one in job.datasets)
    if holds_out:
        record.held_out.values |= _logged(job, record, checkpoints)
    else:
        record.held_out.notes = [_NO_HOLD_OUT]
    if draw:
        asked = job.sample.model_dump_json(), job.regularization.classes, pictures, identity_of(vision), *prompts
        record.pictures = record.pictures.under(key_of("pictures", *about, *asked))
    wanted = [BASE, *checkpoints]
    lacking_loss = [one for one in wanted if holds_out and one not in record.held_out.values]
    lacking_pictures = [one for one in wanted if draw and one not in record.pictures.values]
    drawn = 0
    if lacking_loss or lacking_pictures:
        from .measuring import Measuring

        work = Measuring(run, job, record, checkpoints, progress)
        work.measure(lacking_loss, lacking_pictures, pictures, prompts, vision)
        drawn = work.drawn
        checkpoints = {digest: one for digest, one in checkpoints.items() if one.path.is_dir()}  # a run may be at work
    if record != before:
        write_record(run, record, checkpoints)
    return _choice(run, record, checkpoints, drawn, time.monotonic() - started)


def _digests(checkpoints: Iterable[Checkpoint]) -> dict[str, Checkpoint]:
    """Checkpoints by their digests, oldest first; those without a readable manifest are left out."""
    return {digest: one for one in checkpoints if (digest := digest_of(one))}


def _read_metrics(run: RunFolder, record: Record, checkpoints: Mapping[str, Checkpoint]) -> None:
    """What training logged: the loss before each checkpoint, and held-out losses."""
    lines = run.metrics()
    record.curve = [(line["step"], line["validation_loss"]) for line in lines if _finite(line.get("validation_loss"))]
    losses = [(line["step"], line["loss"]) for line in lines if _finite(line.get("loss"))]
    record.train_loss = {}
    for digest, one in checkpoints.items():
        own = [loss for step, loss in losses if one.step - _TRAIN_STEPS < step <= one.step]
        if own:
            record.train_loss[digest] = sum(own) / len(own)


def _finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _logged(
    job: JobConfig, record: Record, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, dict[str, float | None]]:
    """Held-out losses that training has measured, if all checkpoints were measured on the same pictures and draws."""
    told = [_facts(one) for one in checkpoints.values()]
    settings = job.validation.model_dump(mode="json") | {"every": None}
    alike = {(facts.get("dataset_digest"), _validation(facts) == settings) for facts in told}
    if len(alike) != 1 or not alike.pop()[1]:
        return {}
    losses = dict(record.curve)
    found = {digest: losses[one.step] for digest, one in checkpoints.items() if one.step in losses}
    if 0 in losses and not job.adapter.warm_start:
        found[BASE] = losses[0]
    return {digest: {"held_out": loss} for digest, loss in found.items()}


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    """What a checkpoint says of its job and data; nothing if that cannot be read."""
    with suppress(AdapterError, KeyError, TypeError):
        return dict(read_header(checkpoint.state)["__metadata__"])
    return {}


def _validation(facts: Mapping[str, str]) -> object:
    """How a checkpoint's run validated, but for how often."""
    with suppress(KeyError, TypeError, ValueError):
        return parse_json(facts["config"])["validation"] | {"every": None}
    return None


def _choice(
    run: RunFolder, record: Record, checkpoints: Mapping[str, Checkpoint], drawn: int = 0, seconds: float = 0.0
) -> Choice:
    """What is known of checkpoints that are there, and the verdict on it."""

    def row(digest: str, step: int) -> Measures:
        values: dict[str, Any] = record.held_out.values.get(digest, {}) | record.pictures.values.get(digest, {})
        return Measures(step, record.train_loss.get(digest), **values)

    measured = record.held_out.values.keys() | record.pictures.values.keys() | record.train_loss.keys()
    base = row(BASE, 0)
    rows = [row(digest, one.step) for digest, one in checkpoints.items() if digest in measured]
    notes = [*record.notes, *record.held_out.notes, *record.pictures.notes]
    coarse = record.embedding == Statistics.name and all(one.held_out is not None for one in (base, *rows))
    if coarse and any(one.likeness is not None for one in rows):
        notes.append(_COARSE)
    counted = [replace(one, likeness=None) for one in rows] if coarse else rows
    found = verdict(base, counted, record.curve)
    return Choice(
        run=run.name,
        base=base,
        checkpoints=tuple(rows),
        best=found.best,
        reasons=found.reasons,
        alarm=found.alarm,
        notes=tuple(notes),
        embedding=record.embedding if record.pictures.values else None,
        pictures=record.count if record.pictures.values else 0,
        unmeasured=tuple(one.step for digest, one in checkpoints.items() if digest not in measured),
        drawn=drawn,
        seconds=round(seconds, 1),
    )
