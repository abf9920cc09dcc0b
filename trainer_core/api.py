"""The one door of the trainer: what its nodes, its command line and web pages use, and nothing else of it but `config`
(what a job is) and `errors`.

    summary = inspect_dataset(dataset)            # what is in it, its captions as the text encoder sees them
    report = lint_job(job)                        # what is wrong with it
    begins = beginning(runs, job, ASK)            # which earlier run the job would go on with, and what changed
    run = resume_run(begins.run, job, begins.accept) if begins.run else new_run(runs, job)
    run.start()                                   # on a thread of its own; run.run_here(listener) on this one
    while run.alive:
        for event in run.events(): ...            # StepDone, SampleReady, …; run.pause(), run.stop(), run.save_now() …
    pictures = sample(model, prompts, lora=run.run.latest().lora)

Every failure that a user can cause is a `FoundryError`. Importing this loads neither torch nor any model library.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapters.export import describe_lora, export_lora, read_lora_tensors
from .assignments import accepted_by, changed_job
from .captioning.drafting import draft_captions
from .captioning.models import CaptionModel, find_models
from .checks import check_job
from .choosing.choose import PICTURES, Choice, known_choice
from .choosing.embedding import STATISTICS
from .choosing.verdict import Alarm, Measures
from .choosing.vision import VISION
from .config import JobConfig, ModelConfig, SampleConfig
from .data.cache import CACHE_FOLDER, CacheUsage, TensorCache
from .data.captions import PLACEHOLDER, encoder_text, prompt_with_trigger
from .data.clips.decode import first_picture
from .data.given import keep_images
from .data.library.drafts import Drafts
from .data.library.editing import read_edits, write_captions
from .data.library.library import Library, Places
from .data.library.listing import folder_id
from .data.library.opened import OpenSet
from .data.lint import LintReport, find_tokenizers, lint_job, usual_model
from .data.lint import lint as lint_dataset
from .data.summary import DatasetSummary
from .data.summary import digest as dataset_digest
from .data.summary import summarize as inspect_dataset
from .data.thumbnails import Thumbnails
from .demo import demo_job, run_demo
from .errors import SaveError
from .families.base import Base, FamilySpec
from .families.conditioning import MAIN
from .families.registry import (
    can_find,
    family_names,
    family_spec,
    file_parts,
    open_base,
    register_family,
    register_provider,
    spec_of,
    with_family,
)
from .families.sources.tokenizers import register_tokenizers
from .importing.draft import Note
from .importing.imported import Imported, import_config
from .job import TrainingJob, serve
from .loras import FoundLora, find_lora
from .memory.recovery_job import RecoverySettings, make_recovery
from .presets import SUBJECTS, VRAM_GB, Change, Subject, by_part, preset
from .presets import warning as preset_warning
from .resuming import ASK, GO_ON, IF_CHANGED, Beginning, Changed, beginning, changed_since
from .roots import Roots, is_below
from .runs.checkpoints import Checkpoint
from .runs.details import (
    checkpoint_facts,
    checkpoint_file,
    log_of,
    sample_file,
    samples_of,
    settings_shown,
    told_in_log,
)
from .runs.events import (
    CheckpointSaved,
    Event,
    Listener,
    MemoryPlanned,
    Phase,
    RequestDone,
    SampleReady,
    Skipped,
    StateChanged,
    StepDone,
    ValidationDone,
    Warning,
)
from .runs.find import find_checkpoint, find_run, find_waiting, free_name, run_called, runs_in, waiting_alone
from .runs.moving import TRASH, Trashed, rename_run, restore_run, trash_run, trashed_in
from .runs.news import RunNews
from .runs.queue import DeviceQueue, Waiting, device_key, queue_places, queues
from .runs.requests import CONTINUE, PAUSE, REQUESTS, SAMPLE, SAVE, STOP
from .runs.requests import ask as ask_run
from .runs.run_folder import RunFolder
from .runs.series import series
from .runs.status import RunState, run_state
from .runs.summary import RunList, RunSummary, read_settings
from .sampling.animation import video_frames, webp_bytes
from .secrets import redacted
from .training.parallel import Ranks, join
from .training.resume_rules import MAY_BE_ACCEPTED
from .units import GB, duration, size

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from .memory.planning import Planned
    from .sampling.preview import Drawn
    from .sampling.sampler import SamplerSettings


def cache_of(runs: Path) -> TensorCache:
    """What all runs of a folder share, encoded images and captions and quantized weights: `usage`, `prune`, `clear`."""
    return TensorCache(runs / CACHE_FOLDER)


def new_run(runs: Path, job: JobConfig, queue_up: bool = True) -> TrainingJob:
    """A new run of a job, in a folder that is made only if `check_job` finds nothing wrong. It is not started yet.

    Args:
        queue_up: wait until no other run trains on the device.

    Raises:
        FoundryError: what is wrong with the job, or with writing the folder; then nothing is left behind.
    """
    return TrainingJob.new(runs, job, queue_up)


def resume_run(
    run: RunFolder, job: JobConfig | None = None, accept: Collection[str] = (), queue_up: bool = True
) -> TrainingJob:
    """Goes on with a run from its newest intact checkpoint. It is not started yet; refusals come when it is.

    Args:
        job: in place of the run's own.
        accept: what may differ from the checkpoint by the user's wish; `beginning` and `accepted_by` give it.
        queue_up: wait until no other run trains on the device.

    Raises:
        ConfigError: if the run's job.yaml cannot be read.
    """
    return TrainingJob(run, job, accept, queue_up)


def queue_run(runs: Path, job: JobConfig) -> tuple[RunFolder, DeviceQueue, int]:
    """Makes a run of a job and gives it a place in its device's queue, for a process that trains what waits.

    Returns:
        The run, the queue and the place, counted from 1.

    Raises:
        FoundryError: as `new_run`, or if the queue cannot be written; then nothing is left behind.
    """
    from .families.device import pick_device

    run, queue = new_run(runs, job).run, DeviceQueue(device_key(pick_device(job.model.device)))
    try:
        queue.add(run.path)
    except SaveError:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run, queue, [one.run for one in queue.tickets()].index(run.path.resolve()) + 1


def plan_job(job: JobConfig, cards: Sequence[float] = ()) -> Planned:
    """What a job takes of the device's memory under each setting, and which one is chosen; loads no weights.

    Args:
        cards: GB of memory that are planned for; if none, what is free here or `memory.limit_gb`.

    Raises:
        FoundryError: what is wrong with the job's base or its data.
    """
    from .memory.planning import plan_job as plan

    return plan(job, cards)


def sample(model: ModelConfig, prompts: Sequence[str], **options: Any) -> list[Image]:
    """`sample_frames` as one picture for each prompt: of videos their first frames."""
    return sample_frames(model, prompts, **options).pictures


def sample_frames(
    model: ModelConfig,
    prompts: Sequence[str],
    *,
    lora: Path | dict[str, Tensor] | None = None,
    strength: float = 1.0,
    settings: SampleConfig | None = None,
    controls: Sequence[Sequence[Image]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: TensorCache | None = None,
) -> Drawn:
    """Draws one picture or video for each prompt with a base and, if given, a LoRA.

    Args:
        lora: a file (a run's is `find_lora(…).path`), or tensors in ComfyUI's names.
        controls: control images of each prompt; if not told, those that `settings` name.
        progress: hears, before each step, how many pictures of how many are drawn; ends the drawing by raising.
        cache: `cache_of` a folder of runs, where quantized weights are kept.

    Raises:
        FoundryError: if base or LoRA cannot be loaded or do not fit each other, or control images do not fit the base.
    """
    from .sampling.preview import preview_frames

    return preview_frames(
        model,
        prompts,
        lora=lora,
        strength=strength,
        sample=settings,
        controls=controls,
        progress=progress,
        cache=cache,
    )


def drawing_settings(model: ModelConfig, sample: SampleConfig) -> tuple[SamplerSettings, bool]:
    """How previews are drawn, with the base's own values where the job says nothing, and whether guidance is distilled.

    Raises:
        FoundryError: if the base cannot be opened, or the settings do not fit it.
    """
    from contextlib import closing

    from .sampling.sampler import SamplerSettings

    with closing(open_base(model)) as base:
        return SamplerSettings.of(sample, base), base.guidance_distilled


def choose_checkpoint(
    run: RunFolder,
    *,
    model: ModelConfig | None = None,
    draw: bool = True,
    pictures: int = PICTURES,
    prompts: Sequence[str] = (),
    embedding: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Choice:
    """Measures each checkpoint of a run, on held-out pictures and on drawn ones, and says which is best and why.

    What was measured is kept in the run's folder (`choice.json`, and pictures in `choosing/`), so only checkpoints that
    are new are measured again; `known_choice` reads it. The run may be at work meanwhile: nothing of it is changed, and
    no checkpoint is pinned or deleted.

    Args:
        model: in place of the run's own base, which a host may have elsewhere.
        draw: also draw and compare pictures; without it, only losses are looked at.
        pictures: of each checkpoint and of the base: so many with the trigger, and as many without.
        prompts: in place of the run's previews, with `[trigger]` or without.
        embedding: what compares pictures: a vision model's file or folder, or `STATISTICS`; if not told, a model that
            is found on this machine, else the data's own statistics.
        progress: hears what is done, how much of it and of how much; ends the work by raising. What was measured until
            then is kept.

    Raises:
        RunError: if the run has no intact checkpoint.
        FoundryError: if base, data or embedding cannot be used.
    """
    from .choosing.choose import choose_checkpoint as choose
    from .data.progress import silent

    return choose(
        run,
        model=model,
        draw=draw,
        pictures=pictures,
        prompts=prompts,
        embedding=embedding,
        progress=progress or silent,
    )


def export_lora_as(form: str, lora: Path, model: ModelConfig, name: str, out: Path | None = None) -> Path:
    """Writes a LoRA as another tool reads it: `diffusers`, `peft` or `kohya`; see `adapters.export_as.export_as`.

    Raises:
        AdapterError: if the file is no LoRA for the base, or cannot be expressed in this form.
        SaveError: if it cannot be written, or `out` is there.
    """
    from .adapters.export_as import export_as

    return export_as(form, lora, model, name, out)
