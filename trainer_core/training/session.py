"""The work of a job while it has the device: from its data to the last step, or to a stop or pause on the way."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import closing

from ..config import JobConfig
from ..data.cache import CACHE_FOLDER, TensorCache
from ..data.prepare import PreparedData
from ..errors import Interrupted
from ..families.registry import job_with_family, open_base
from ..memory.attention_kernels import tuned_attention
from ..memory.recovery_file import recovery_notes
from ..runs.events import Listener, Phase, StateChanged, Warning
from ..runs.requests import PAUSE, STOP, Requests
from ..runs.run_folder import RunFolder
from ..sampling.sampler import SamplerSettings
from ..units import GB
from .determinism import deterministic
from .environment import environment
from .loop import Trainer
from .parallel import ALONE, Ranks
from .previews import negative_text, preview_texts
from .products import choose_products


def work(
    run: RunFolder, job: JobConfig, emit: Listener, requests: Requests, accept: Collection[str], ranks: Ranks = ALONE
) -> str:
    """Prepares the data, loads the base, trains; when it returns, nothing of it is in memory.

    Args:
        accept: what may differ from the checkpoint by the user's explicit wish (`resume_rules`).
        ranks: the processes that do this at once, each in its own.

    Returns:
        `finished`, `stopped` or `paused`.

    Raises:
        FoundryError: whatever keeps the run from going on.
    """

    def progress(what: str, done: int, total: int) -> None:
        requests.check()
        emit(Phase(what, done, total))

    if not ranks.leads and not ranks.tell():
        return "stopped"  # rank 0 was, before the data were ready
    for note in run.repair():
        emit(Warning(note))
    latest = run.latest()
    for damaged, problem in run.examine_checkpoints():
        if problem:
            emit(Warning(f"checkpoint {damaged.path.name} is damaged and not used: {problem}"))
    step = latest.step if latest else 0
    run.write_status("running", step, job.train.steps)
    emit(StateChanged("running", step, job.train.steps))
    finished, waiting = False, ranks.leads
    try:
        job = job_with_family(job)
        with (
            closing(open_base(job.model)) as base,
            deterministic(base.device, job.train.deterministic, probes=not job.memory.compile) as findings,
        ):
            base.check_parts()
            SamplerSettings.of(job.sample, base)  # a wrong preview size is told now, not after an hour
            progress("scanning the data", 0, 1)
            cache = TensorCache(run.path.parent / CACHE_FOLDER)
            base.packed_cache = cache
            # on another device, or on more threads, encoders give other last bits
            data = PreparedData(job, base, cache, json.dumps(environment(base.device)))
            progress("checking the base", 0, 1)
            base.encoders_fingerprint()
            base.denoiser_fingerprint()
            for note in recovery_notes(base):
                emit(Warning(note))
            prompts = preview_texts(job)
            data.encode_texts([*prompts, negative_text(job)] if prompts else [], progress)
            data.encode_images(progress)
            for reason in _other_bits(job, data):
                findings.add(reason)
            if waiting:
                cache.prune(int(job.cache.limit_gb * GB))
            progress("loading the base", 0, 1)
            waiting = waiting and not ranks.tell("ready")
            with tuned_attention(run.path, base.device, job.memory.attention, emit, ranks.rank):
                trainer = Trainer(run, job, base, data, emit, requests, findings, ranks)
                choose_products(run.path, job, base, trainer.experts, emit, ranks)
                trainer.restore(accept)
                run.write_job(job)  # not before: a job that is refused must not take the place of the run's own
                finished = trainer.train()
    except Interrupted:
        if waiting:
            ranks.tell()
    return "finished" if finished else ("paused" if requests.asked(PAUSE) and not requests.asked(STOP) else "stopped")


def _other_bits(job: JobConfig, data: PreparedData) -> Iterator[str]:
    """Why the same job may give other bits here than elsewhere, whatever its steps do."""
    if data.encoded_elsewhere():
        yield "pictures or captions came from the cache, encoded in another or an unknown environment"
    if job.memory.compile and job.memory.plan == "auto":
        yield "blocks are compiled for the memory that is free, and round otherwise where that is another"
