"""Options and arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from . import values


def caption_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """How captions are found, and where the trigger goes."""
    parser.add_argument("--trigger", metavar="WORD", help="replaces [trigger], or is added where --placement says")
    parser.add_argument("--placement", choices=("start", "end", "only_placeholder"), default="start")
    parser.add_argument("--extension", metavar="EXT", default="txt", help="of caption files; default: txt")
    parser.add_argument("--column", metavar="NAME", default="text", help="of captions in metadata; default: text")
    parser.add_argument("--caption-per-line", action="store_true", help="each line of a file is a caption of its own")
    parser.add_argument("--kohya-folders", action="store_true", help="folders named 10_name repeat their images")
    parser.add_argument("--default", metavar="TEXT", dest="default_caption", help="for images without a caption")


def run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name under --runs, or its folder")


def queue_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-queue", dest="queue_up", action="store_false", help="train at once, though another run uses the device"
    )


def debug_option(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument("--debug", action="store_true", default=default, help="show tracebacks, not just one message")


def parts_of_bases() -> Iterable[str]:
    """Parts of bases that may be files of their own; the libraries that read settings are imported for them only."""
    from ..api import file_parts

    return file_parts()


def base_options(parser: argparse.ArgumentParser, parts: Iterable[str]) -> None:
    """The base of a LoRA, where it is not told or lies elsewhere."""
    parser.add_argument("--family", help="family of the base; default: the one that the LoRA names")
    parser.add_argument(
        "--base", metavar="SOURCE", help="the base model: embedded, a file, a folder, or a repository id"
    )
    parser.add_argument("--tokenizers", metavar="DIR", type=values.absolute, help="of a base in a single file")
    for part in parts:
        flag = f"--{part.replace('_', '-')}"
        parser.add_argument(flag, metavar="FILE", help="of the base, where --base lacks it")
    comfyui_option(parser, "lora")


def comfyui_option(parser: argparse.ArgumentParser, bases: str) -> None:
    """The host of a command's bases; `bases` says which those are."""
    usual = "" if bases == "none" else "; default, if the base needs one: COMFYUI_DIR, or the one around this pack"
    parser.add_argument("--comfyui", metavar="DIR", type=Path, help=f"a ComfyUI whose models can be trained too{usual}")
    parser.set_defaults(bases=bases)


def runs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs"), help="runs folder; default: ./runs")


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
