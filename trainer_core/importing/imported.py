"""Configurations of other trainers as jobs: which format it is, and one job of all its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..config import JobConfig, dump_job
from ..config.yaml_text import LIMIT
from ..errors import ConfigError
from ..reading import read_regular
from .ai_toolkit import reader as ai_toolkit
from .diffusion_pipe import reader as diffusion_pipe
from .draft import Captions, Draft, Note
from .files import Files, FilesOnDisk, Text
from .kohya import reader as kohya
from .musubi import reader as musubi
from .rules import plain, run_name
from .texts import parse


@dataclass(frozen=True)
class Imported:
    """A job out of another trainer's files."""

    tool: str
    """`AI Toolkit`, `sd-scripts`, `musubi-tuner` or `diffusion-pipe`."""
    job: JobConfig
    notes: tuple[Note, ...]
    """What became of each setting of these files."""
    captions: tuple[Captions, ...] = ()
    """Captions that stood in one file for a whole data set."""

    @property
    def text(self) -> str:
        """The job as YAML."""
        return dump_job(self.job)

    @property
    def lost(self) -> tuple[Note, ...]:
        """What did not come over as it was, and why."""
        return tuple(note for note in self.notes if note.lost)


@dataclass(frozen=True)
class _Format:
    tool: str
    is_job: Callable[[Mapping[str, Any]], bool]
    is_data: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Text | None, Sequence[Text], Files, Draft], None]


_FORMATS = (
    _Format("AI Toolkit", ai_toolkit.is_job, lambda _: False, ai_toolkit.read),
    _Format("diffusion-pipe", diffusion_pipe.is_job, diffusion_pipe.is_data, diffusion_pipe.read),
    _Format("musubi-tuner", musubi.is_job, musubi.is_data, musubi.read),
    _Format("sd-scripts", kohya.is_job, kohya.is_data, kohya.read),
)
"""In the order in which they are asked: what has most of its own is first."""
_NO_SETTINGS = {".txt", ".jsonl"}


def import_config(source: Path | Mapping[str, str], beside: Sequence[Path] = ()) -> Imported:
    """A job out of another trainer's files.

    Args:
        source: texts by file name, a configuration and what belongs to it (data sets, prompts): no file is read. Or
            a configuration's path: then the files that it names are read too, from where it says or from beside it,
            and the pictures of its data sets are counted where epochs must become steps.
        beside: more files that belong to it, for a path.

    Raises:
        ConfigError: for texts of no known format, for values that neither the tool nor a job can have, and for a file
            that cannot be read.
    """
    if not isinstance(source, Path):
        return _import(source, Files(source))
    texts = {path.name: _read(path) for path in (source, *beside)}
    return _import(texts, FilesOnDisk(texts, source.absolute().parent))


def _read(path: Path) -> str:
    try:
        return read_regular(path, LIMIT).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _import(texts: Mapping[str, str], files: Files) -> Imported:
    main: list[tuple[_Format, Text]] = []
    data: list[tuple[_Format, Text]] = []
    other: dict[str, Mapping[str, Any]] = {}
    for name, text in texts.items():
        if PurePath(name).suffix.lower() in _NO_SETTINGS:
            continue  # prompts and captions, which belong to a configuration that names them
        values, shown = parse(name, text), plain(name)
        if found := next((one for one in _FORMATS if one.is_job(values)), None):
            main.append((found, (shown, values)))
        elif found := next((one for one in _FORMATS if one.is_data(values)), None):
            data.append((found, (shown, values)))
        else:
            other[name] = values
    if len(main) > 1:
        raise ConfigError(f"{main[1][1][0]}: is a job of its own, as {main[0][1][0]} is: import one after the other")
    if not main and not data:
        told = next((f"{plain(name)}: {_unknown(values)}" for name, values in other.items()), None)
        raise ConfigError(told or "there is no configuration among these files: give a TOML or YAML file")
    kind = (main or data)[0][0]
    if foreign := next((text for one, text in data if one is not kind), None):
        raise ConfigError(f"{foreign[0]}: is not of {kind.tool}, as {(main or data)[0][1][0]} is")
    draft = Draft()
    kind.read(main[0][1] if main else None, [text for _, text in data], files, draft)
    if not main:
        draft.tell(data[0][1][0], "missing", "holds data sets alone: all other settings are at their defaults")
    first = (main or data)[0][1][0]
    draft.finish(files.drawn, run_name(PurePath(first).stem or "imported"))
    for name in texts:
        if name not in files.used and name in other:
            raise ConfigError(f"{plain(name)}: {_unknown(other[name])}")
        if name not in files.used and PurePath(name).suffix.lower() in _NO_SETTINGS:
            draft.tell(plain(name), "dropped", "no other file names it")
    return Imported(kind.tool, draft.job(first), draft.notes, tuple(draft.captions))


def _unknown(values: Mapping[str, Any]) -> str:
    """Why settings are of no format."""
    if "datasets" in values and ("name" in values or "adapter" in values):
        return "is a job of LoRA Foundry already: `lora-foundry train` takes it as it is"
    return (
        "is no configuration of AI Toolkit (config.process), sd-scripts or musubi-tuner (their arguments), or "
        "diffusion-pipe ([model])"
    )
