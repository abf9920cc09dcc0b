"""All commands and their options, as argparse reads them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path

from .. import __version__
from . import values
from .options import (
    base_options,
    caption_options,
    comfyui_option,
    debug_option,
    json_option,
    parts_of_bases,
    queue_option,
    run_argument,
    runs_option,
)


def parser_of(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """All commands and their options; those that depend on the families only for commands that are asked for."""
    parser = argparse.ArgumentParser(prog="lora-foundry", description="Trains LoRAs of diffusion models.")
    debug_option(parser, default=False)
    parser.add_argument("--version", action="version", version=f"LoRA Foundry {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, module: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        debug_option(command, default=argparse.SUPPRESS)  # given before the command, it must not be reset here
        module, _, function = module.partition(".")
        command.set_defaults(command=_lazy(module, function or name))
        return command

    _training_commands(add)
    _run_commands(add)
    _queue_commands(add)
    parts = parts_of_bases() if {"sample", "export", "choose"} & set(arguments) else ()
    _sample_command(add, parts)
    _choose_command(add, parts)
    _recover_command(add)
    _export_command(add, parts)
    _listing_commands(add)
    _data_commands(add)
    return parser


def _training_commands(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """demo, init, import, train, plan, resume."""
    demo = add("demo", "pictures", "teach the embedded base a new shape and measure what came of it")
    demo.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="default: ./demo")
    demo.add_argument("--json", metavar="FILE", type=Path, help="also write the figures as JSON")
    demo.add_argument("--seed", metavar="N", type=values.seed, default=42, help="default: 42")

    init = add("init", "starter", "write a commented starter job that trains the embedded base")
    init.add_argument("file", metavar="FILE", nargs="?", type=Path, default=Path("job.yaml"), help="default: job.yaml")
    init.add_argument("--preset", choices=("character", "style", "object"), help="settings for what is to be learned")
    init.add_argument("--vram", metavar="GB", type=values.positive, help="with --preset: the GPU's memory; default: 12")
    init.add_argument("--family", metavar="NAME", help="with --preset: the base's family; default: sdxl")

    take_over = add("import", "importing.import_", "make a job of the files of AI Toolkit, sd-scripts and others")
    take_over.add_argument("files", metavar="FILE", nargs="+", type=Path, help="YAML or TOML; then what belongs to it")
    take_over.add_argument("--out", metavar="JOB.yaml", type=Path, help="default: job.yaml; with --json none")
    json_option(take_over)

    train = add("train", "training", "train a job")
    train.add_argument("job", metavar="JOB.yaml", type=Path)
    comfyui_option(train, "job")
    queue_option(train)
    runs_option(train)

    plan = add("plan", "planning", "tell what a job takes of the GPU's memory, and how it is made to fit (low VRAM)")
    plan.add_argument("job", metavar="JOB.yaml", type=Path)
    plan.add_argument("--memory", metavar="GB", type=values.number, nargs="+", help="of cards; default: what is free")
    comfyui_option(plan, "job")
    json_option(plan)

    resume = add("resume", "training", "go on with a run that was stopped, from its last checkpoint")
    run_argument(resume)
    change = "change a setting (train.steps=900); repeat"
    resume.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[], help=change)
    resume.add_argument("--job", metavar="JOB.yaml", type=Path, help="go on with this job instead of the run's own")
    resume.add_argument(
        "--accept", metavar="WHAT", action="append", default=[], help="data: go on though the data set changed; repeat"
    )
    queue_option(resume)
    runs_option(resume)
    comfyui_option(resume, "run")


def _run_commands(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """runs, tell, pin, rename, delete, restore."""
    runs = add("runs", "runs", "list the runs, their state and their place in the queue")
    runs_option(runs)
    json_option(runs)

    tell = add("tell", "runs", "ask something of the process that works on a run")
    run_argument(tell)
    tell.add_argument("request", choices=("stop", "pause", "continue", "save", "sample"))
    runs_option(tell)

    pin = add("pin", "runs", "keep a checkpoint for good, whatever save.keep says")
    run_argument(pin)
    pin.add_argument("step", metavar="STEP", type=values.count)
    pin.add_argument("--remove", action="store_true", help="let it go the way of the others again")
    runs_option(pin)

    rename = add("rename", "runs", "give a run that nobody works on another name")
    run_argument(rename)
    rename.add_argument("name", metavar="NAME")
    runs_option(rename)

    delete = add("delete", "runs", "move a run to the trash of its runs folder, .trash, which is yours to empty")
    run_argument(delete)
    runs_option(delete)

    restore = add("restore", "runs", "bring a run back from the trash")
    restore.add_argument("run", metavar="RUN", help="its name, or that of its folder in .trash")
    runs_option(restore)


def _queue_commands(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """queue, and its own commands."""
    queue = add("queue", "queue.show", "list the runs that wait for a device, or change their order")
    json_option(queue)
    own = queue.add_subparsers(title="commands", metavar="[COMMAND]")

    def under(name: str, summary: str) -> argparse.ArgumentParser:
        command = own.add_parser(name, help=summary, description=f"{summary}.")
        debug_option(command, default=argparse.SUPPRESS)
        command.set_defaults(command=_lazy("queue", name))
        runs_option(command)
        return command

    queue_add = under("add", "make a run of a job and let it wait")
    queue_add.add_argument("job", metavar="JOB.yaml", type=Path)
    comfyui_option(queue_add, "job")
    comfyui_option(under("start", "train the runs that wait and have no process, one after the other"), "queue")
    move = under("move", "put a run at another place")
    run_argument(move)
    move.add_argument("place", metavar="PLACE", type=values.count, help="counted from 1")
    run_argument(under("remove", "take a run out of the queue; its folder stays"))


def _sample_command(add: Callable[[str, str, str], argparse.ArgumentParser], parts: Iterable[str]) -> None:
    """sample."""
    sample = add("sample", "pictures", "draw pictures with a LoRA")
    sample.add_argument("lora", metavar="RUN_OR_LORA", help="a run (its last checkpoint is used) or a LoRA file")
    sample.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what to draw; repeat for more; a run has its own as default"
    )
    sample.add_argument(
        "--control",
        action="append",
        nargs="+",
        metavar="FILE",
        help="for edit models: the control images of a prompt; once for all prompts, or repeated, once for each; a run "
        "has its own as default, or those of its first training images",
    )
    sample.add_argument("--out", metavar="DIR", type=Path, default=Path("samples"), help="default: ./samples")
    sample.add_argument(
        "--strength", metavar="X", type=values.number, default=1.0, help="of the LoRA; 0 is the base alone"
    )
    sample.add_argument("--seed", metavar="N", type=values.seed, help="seed of the first picture")
    sample.add_argument("--width", metavar="PX", type=int)
    sample.add_argument("--height", metavar="PX", type=int)
    sample.add_argument("--steps", metavar="N", type=int, help="sampling steps")
    sample.add_argument("--guidance", metavar="X", type=values.number)
    sample.add_argument("--frames", metavar="N", type=int, help="of a video model")
    base_options(sample, parts)
    sample.add_argument("--device", help="auto, cpu, cuda …")
    runs_option(sample)
    json_option(sample)


def _choose_command(add: Callable[[str, str, str], argparse.ArgumentParser], parts: Iterable[str]) -> None:
    """choose."""
    choose = add("choose", "choosing", "measure a run's checkpoints, and tell which is best and whether it over-trains")
    run_argument(choose)
    choose.add_argument("--no-draw", dest="draw", action="store_false", help="look at losses alone, draw no pictures")
    choose.add_argument(
        "--pictures",
        metavar="N",
        type=values.count,
        help="to compare of each checkpoint, with the trigger, and as many without; default: 6",
    )
    choose.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what to draw, with [trigger] or without; repeat; default: the run's previews, then its captions",
    )
    choose.add_argument(
        "--embedding",
        metavar="MODEL",
        help="what compares pictures: a file or folder of CLIP vision, SigLIP or DINOv2, or `statistics`, the data's "
        "own; default: a model that is found here, else statistics",
    )
    choose.add_argument("--known", action="store_true", help="show what was measured before, measure nothing")
    base_options(choose, parts)
    choose.set_defaults(bases="chosen")
    choose.add_argument("--device", help="auto, cpu, cuda …")
    runs_option(choose)
    json_option(choose)


def _export_command(add: Callable[[str, str, str], argparse.ArgumentParser], parts: Iterable[str]) -> None:
    """export."""
    export = add("export", "exporting", "write a LoRA as diffusers, PEFT or kohya's sd-scripts read it")
    export.add_argument("lora", metavar="RUN_OR_LORA", help="a run or a LoRA file")
    export.add_argument("--to", required=True, choices=("diffusers", "peft", "kohya"), help="who is to read it")
    export.add_argument(
        "--step", metavar="N|best|latest", type=values.which_step, help="which checkpoint of a run; default: latest"
    )
    export.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        help="the file to make (for peft, the folder), or a folder to put it into; default: ./NAME_FORM here",
    )
    base_options(export, parts)
    runs_option(export)
    json_option(export)


def _recover_command(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """recover."""
    recover = add("recover", "recovering", "make a recovery adapter: what a quantized base needs to predict as before")
    recover.add_argument("job", metavar="JOB.yaml", type=Path, help="its base, as it is quantized there, and its data")
    recover.add_argument("--quantization", metavar="NAME", help="in place of the job's: 4bit, 3bit, 2bit …")
    recover.add_argument("--rank", metavar="N", type=values.count, default=16, help="default: model.low_rank, or 16")
    recover.add_argument("--batches", metavar="N", type=values.count, default=16, help="of the data; default: 16")
    recover.add_argument("--steps", metavar="N", type=values.whole, default=100, help="refining each; default: 100")
    recover.add_argument(
        "--whole-steps",
        metavar="N",
        type=values.whole,
        default=200,
        help="of refining all blocks at once, which takes as much memory as training does; default: 200",
    )
    recover.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="default: here")
    comfyui_option(recover, "job")
    runs_option(recover)
    json_option(recover)


def _listing_commands(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """families, inspect, captions."""
    families = add("families", "listing", "list the model families that can be trained")
    comfyui_option(families, "none")
    json_option(families)

    inspect = add("inspect", "listing", "show what a LoRA file holds")
    inspect.add_argument("lora", metavar="LORA", type=Path)
    json_option(inspect)

    captions = add("captions", "listing", "show a folder's captions exactly as the text encoder sees them")
    captions.add_argument("folder", metavar="FOLDER", type=Path)
    caption_options(captions)
    json_option(captions)


def _data_commands(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """lint, cache."""
    lint = add("lint", "data", "tell everything that is wrong with a data set, or with all of a job")
    lint.add_argument("what", metavar="FOLDER_OR_JOB", type=Path, help="a folder of images, or a job.yaml")
    lint.add_argument("--style", metavar="WORD", action="append", help="names the style; captions should not; repeat")
    job = lint.add_argument_group("for a folder (a job says these itself)")
    caption_options(job)
    job.add_argument("--class", metavar="WORD", dest="classes", action="append", help="what the trigger is; repeat")
    job.add_argument("--family", help="model family; default: that of --base, or flux1")
    job.add_argument(
        "--base", metavar="SOURCE", help="whose tokenizers to ask: embedded, a file, a folder, a repository id"
    )
    job.add_argument("--tokenizers", metavar="DIR", type=values.absolute, help="of a base in a single file")
    job.add_argument("--resolutions", metavar="PX", type=int, nargs="+", help="default: 512 768 1024")
    job.add_argument("--validation-share", metavar="X", type=values.share, default=0.0, help="held out; default: 0")
    comfyui_option(lint, "none")
    json_option(lint)

    cache = add("cache", "data", "show, shrink or clear the cache of encoded images and captions")
    runs_option(cache)
    action = cache.add_mutually_exclusive_group()
    action.add_argument("--clear", action="store_true", help="delete all of it; runs make again what they need")
    action.add_argument(
        "--limit", metavar="GB", type=values.size, help="delete what was not used for longest, down to this"
    )
    json_option(cache)


def _lazy(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """A command whose module is imported when it runs, so that `--help` costs nothing."""

    def run(args: argparse.Namespace) -> int:
        return getattr(import_module(f".{module}", __package__), function)(args)

    return run
