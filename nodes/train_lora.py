"""Train LoRA: trains in a thread of its own while ComfyUI's executor shows its progress and listens for a cancel."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

from comfy_api.latest import InputImpl, Types, io

from ..trainer_core.api import (
    ASK,
    GO_ON,
    IF_CHANGED,
    Beginning,
    Skipped,
    TrainingJob,
    ValidationDone,
    beginning,
    new_run,
    read_lora_tensors,
    resume_run,
    video_frames,
)
from ..trainer_core.config import (
    AdapterConfig,
    DatasetConfig,
    JobConfig,
    ModelConfig,
    SampleConfig,
    description,
)
from ..trainer_core.errors import ResumeRefused, RunHeld, TrainingError
from . import host, pictures, sockets
from .failures import in_widgets
from .following import follow, result
from .job import job_config, notes
from .lora_files import lora_stem, note
from .node import Node, checked_name
from .save_checkpoint import chosen_name
from .setting import NEEDS, ON, Values, advanced, main
from .settings import TRAIN_LORA
from .shutdown import SHUTDOWN, Ending
from .text_fields import read_lines
from .training_view import TrainingView
from .widgets import widgets

_left_unfinished: Counter[str] = Counter()
"""How often runs of a name were paused, or stopped on request, in this session."""
_MORE_DATASETS = ("dataset_2", "dataset_3", "dataset_4")
"""Named inputs and not a growing list: saved workflows link by position, and a growing list is not in every page."""


class TrainLoRA(Node):
    """Trains a LoRA on a base and one or several data sets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = "Another data set: trained on together with the first, or in the role that Load Dataset gives it."
        prompts = f"{description(SampleConfig, 'prompts')} One a line. Empty: no previews."
        again = (
            "If a run of this name was paused, cancelled or killed or failed, or has made all of its steps and now "
            "gets more, and nothing else that training depends on has changed, go on where it stopped. Off: always "
            "start a new run."
        )
        changed = (
            "If the latest run of this name is not finished and something that training depends on has changed: `ask` "
            "stops and lists what; `go on with the new values` does so from the next step on, where that is possible "
            "(learning rate, pictures and captions, steps); `start a new run` leaves the other as it is."
        )
        return io.Schema(
            node_id="FoundryTrainLoRA",
            display_name="Train LoRA (Foundry)",
            category=sockets.CATEGORY,
            description=(
                "Trains a LoRA. Cancelling or pausing saves a checkpoint; queueing again goes on from it. Runs are "
                "kept in output/lora_foundry, the finished LoRA in output/loras."
            ),
            search_aliases=["train", "training", "finetune", "lora training"],
            is_output_node=True,
            inputs=[
                sockets.Base.Input("base", tooltip="From Base Model."),
                sockets.LoraConfig.Input("lora", tooltip="From Configure LoRA."),
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset or Caption with Trigger."),
                *(sockets.Dataset.Input(name, optional=True, tooltip=more) for name in _MORE_DATASETS),
                sockets.TrainingOptions.Input(
                    "training_options", optional=True, tooltip="From Training Options. Not linked: its defaults."
                ),
                sockets.Regularization.Input(
                    "regularization", optional=True, tooltip="From Regularization. Not linked: nothing is preserved."
                ),
                sockets.SampleSettings.Input(
                    "sample_settings", optional=True, tooltip="From Sample Settings. Not linked: what suits the base."
                ),
                io.String.Input("name", default="my_lora", tooltip=description(JobConfig, "name")),
                *widgets(main(TRAIN_LORA)),
                io.String.Input("sample_prompts", multiline=True, default="", tooltip=prompts),
                io.Boolean.Input("continue_stopped", default=True, tooltip=again, advanced=True),
                *widgets(advanced(TRAIN_LORA)),
                # optional, and so the last: graphs that were saved before there was this choice have no value for it
                io.Combo.Input(
                    "if_settings_changed",
                    options=list(IF_CHANGED),
                    default=ASK,
                    optional=True,
                    tooltip=changed,
                    advanced=True,
                    extra_dict={NEEDS: {"continue_stopped": ON}},
                ),
            ],
            outputs=[
                sockets.Run.Output("run", tooltip="The run, for Save Checkpoint and Preview Samples."),
                io.LoraModel.Output("lora_model", tooltip="The LoRA itself, for the stock node Load LoRA Model."),
                io.AnyType.Output("lora_name", tooltip="Its name, for `lora_name` of the stock LoRA loaders."),
                io.Image.Output(
                    "samples",
                    tooltip="The last previews, or of a video model the frames of the last one; nodes behind it do not "
                    "run if there are none.",
                ),
                io.LossMap.Output("loss_map", tooltip="The losses, for the stock node Plot Loss Graph."),
                io.Video.Output(
                    "video", tooltip="The last preview of a video model; nodes behind it do not run if there is none."
                ),
                io.LoraModel.Output("lora_model_low_noise", tooltip=sockets.LOW_NOISE),
                io.AnyType.Output("lora_name_low_noise", tooltip=sockets.LOW_NOISE),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuses a bad name before anything runs."""
        return name is None or checked_name(name)

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **_: Any) -> int:
        """Changes when a run is paused or stopped on request: ComfyUI takes what the node gave then for its result."""
        return _left_unfinished.total() if name is None else _left_unfinished[name]

    @classmethod
    def execute(
        cls,
        base: ModelConfig,
        lora: AdapterConfig,
        dataset: DatasetConfig,
        name: str,
        sample_prompts: str,
        continue_stopped: bool,
        dataset_2: DatasetConfig | None = None,
        dataset_3: DatasetConfig | None = None,
        dataset_4: DatasetConfig | None = None,
        training_options: Values | None = None,
        regularization: Values | None = None,
        sample_settings: Values | None = None,
        if_settings_changed: str = ASK,
        **settings: Any,
    ) -> io.NodeOutput:
        if SHUTDOWN.ending:
            host.end_prompt()  # the next one of ComfyUI's queue: it is not even looked at
        datasets = [one for one in (dataset, dataset_2, dataset_3, dataset_4) if one is not None]
        linked = [one for one in (training_options, regularization, sample_settings) if one is not None]
        job = host.checked_job(job_config(name, base, lora, datasets, read_lines(sample_prompts), settings, linked))
        host.free_vram()
        root = host.runs_root()
        try:
            begins = beginning(root, job, if_settings_changed) if continue_stopped else Beginning()
        except RunHeld as error:
            raise RunHeld(f"{error} (by turning continue_stopped off)") from None
        except ResumeRefused as refused:
            changed = [{"name": field, "now": what} for field, what in refused.changed.items()]
            host.send_to_node("changed", {"changed": changed, "may_go_on": GO_ON in str(refused)})
            where = "The choice is if_settings_changed, an advanced input of Train LoRA"
            raise ResumeRefused(f"{refused}. {where}", refused.changed) from None
        if begins.run:
            training = resume_run(begins.run, job, begins.accept)
            view = earlier_view(training)
        else:
            training = new_run(root, job)
            view = new_view(training, begins.why_new)
        view.notes = notes(job)
        try:
            with SHUTDOWN.held_up_by(training):
                if follow(training, view):
                    return results(training, view)
            _left_unfinished[name] += 1
            blocked = (host.no_output() for _ in cls.SCHEMA.outputs)
            return io.NodeOutput(*blocked, ui=result(training, view))
        except Ending:
            host.end_prompt()


def new_view(training: TrainingJob, why: str) -> TrainingView:
    """What the node shows of a new run, before it begins: its name where that is not the job's, and the reason."""
    name = training.run.name
    if name == training.job.name and not why:
        return TrainingView()
    return TrainingView(origin=f"new run {name}" + (f": {in_widgets(why)}" if why else ""))


def earlier_view(training: TrainingJob) -> TrainingView:
    """What the node shows of a run that goes on, before it does: where it stopped, and what it did and measured."""
    run, checkpoint = training.run, training.run.latest()
    step = checkpoint.step if checkpoint else 0
    done = step == training.job.train.steps
    view = TrainingView(
        origin=f"the run {run.name} has made its {step} steps" if done else f"goes on with {run.name} from step {step}"
    )
    for line in run.metrics() if checkpoint else ():
        if line["step"] > step:
            continue  # came after the last checkpoint, and is made again
        if "validation_loss" in line:
            view.apply(ValidationDone(line["step"], line["validation_loss"]))
        elif "skipped" in line:
            view.apply(Skipped(line["step"], line["not_finite"], tuple(line["skipped"])))
    return view


def results(training: TrainingJob, view: TrainingView) -> io.NodeOutput:
    """A finished run as outputs and as what the node shows."""
    run = training.run
    checkpoint = run.latest()
    if checkpoint is None:
        raise TrainingError(f"the run {run.name!r} holds no intact checkpoint; {run.path / 'log.txt'} says more")
    files = zip(checkpoint.loras, checkpoint.endings, strict=True)
    named = chosen_name(run, checkpoint.step) or lora_stem(run.name, checkpoint.step)
    exported = [host.export_to_output(path, f"{named}{ending}") for path, ending in files]
    view.notes += note(host.earlier_loras(training.job.name, exported))
    first, *others = exported
    low_noise = [(read_lora_tensors(one.path), one.name) for one in others] or [(host.no_output(), host.no_output())]
    samples = run.sample_paths()
    clip = video_frames(samples[-1]) if run.sample_clips() else None
    drawn = clip[0] if clip else [pictures.opened(path) for path in samples]
    images = pictures.to_batch(drawn) if drawn else host.no_output()
    video = host.no_output()
    if clip:
        rate = Fraction(str(clip[1]))
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=rate))
    return io.NodeOutput(
        str(run.path),
        read_lora_tensors(first.path),
        first.name,
        images,
        {"loss": run.losses()},
        video,
        *low_noise[0],
        ui=result(training, view, saved_as=", ".join(one.name for one in exported)),
    )
