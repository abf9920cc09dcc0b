"""Which folders and files a workflow may name: only what lies in a root.

Workflows come from other people, and prompts from whoever reaches the server. A path is first compared by name alone:
to ask Windows whether `//server/share` is there sends the user's credentials to that server. Only a path that lies in a
root by its name is looked up, and what it leads to (through links) must lie in a root too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from .config import LINKS, DatasetConfig, JobConfig, ModelConfig
from .data.folder import data_files
from .errors import ConfigError
from .families.sources.source import is_repository_id
from .reading import is_file, is_folder, read_regular

VARIABLE = "LORA_FOUNDRY_ROOTS"
"""Environment variable with more roots, separated as in PATH."""
_LIST_LIMIT = 1_000_000


@dataclass(frozen=True)
class Roots:
    """The folders that workflows may name things in."""

    folders: tuple[Path, ...]
    list_file: Path
    """Where the machine's owner lists more."""
    listed: tuple[Path, ...] = ()
    """Those that the owner allows, which are among the folders."""

    @classmethod
    def of(cls, own: Iterable[Path], list_file: Path) -> Roots:
        """The host's own folders, and those that the owner allows by `VARIABLE` and in a file, one a line.

        Only whole paths count, and lines that begin with `#` do not.
        """
        lines = os.environ.get(VARIABLE, "").split(os.pathsep)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines += read_regular(list_file, _LIST_LIMIT).decode("utf-8-sig").splitlines()
        named = [_named(line) for line in lines if _bare(line) and not line.startswith("#")]
        whole = [[folder for folder in folders if folder.is_absolute()] for folders in (own, named)]
        return cls((*whole[0], *whole[1]), list_file, tuple(whole[1]))

    def checked(self, text: str, base: Path, what: str) -> Path:
        """What a workflow names, with links resolved. It need not be there.

        Args:
            text: a whole path, or one below `base`.
            what: the node's input, for the message.

        Raises:
            ConfigError: if it lies in no root; the message says how to allow it.
        """
        place = self._by_name(text, base, what)
        return self._real(place, text, what)

    def source(self, text: str, bases: Sequence[Path], what: str) -> str:
        """A base's source that a workflow names: `embedded`, a repository's id, or a folder or file, as a whole path.

        Args:
            bases: folders that a relative one is looked for in.

        Raises:
            ConfigError: for a folder or file that lies in no root.
        """
        if text == "embedded" or text.startswith(LINKS):
            return text
        if is_repository_id(text):
            # what has the form of an id may be a folder too: below one of ours, or where the program was started
            there = next((place for folder in (*bases, Path.cwd()) if is_folder(place := folder / text)), None)
            return text if there is None else str(self.checked(str(there), there, what))
        place = self._by_name(text, bases[0], what)
        return str(place if is_file(place) else self._real(place, text, what))

    def model_file(self, text: str, base: Path, what: str) -> Path:
        """A model's file that a workflow names, as it is called: models folders are full of their owner's links.

        Raises:
            ConfigError: if it lies in no root.
        """
        return self._by_name(text, base, what)

    def holds(self, path: Path) -> bool:
        """Whether a whole path lies in a root, by its name and with links resolved."""
        try:
            return bool(self.checked(str(path), path, "folder"))
        except ConfigError:
            return False

    def check_job(self, job: JobConfig) -> None:
        """Checks all paths of a job: a prompt may hold its parts as they are, past the nodes that check each.

        Raises:
            ConfigError: naming the field, if one lies in no root.
            DatasetError: if a data set's folder is missing or cannot be read.
        """
        here = Path.cwd()  # from which a job takes relative paths
        for number, dataset in enumerate(job.datasets):
            for folder in (dataset.folder, dataset.mask_folder, *dataset.control_folders):
                if folder:
                    self.checked(folder, here, f"datasets[{number}]")
            self.check_links(dataset)
        for files in job.sample.controls:
            for file in files:
                self.checked(file, here, "sample.controls")
        if job.adapter.warm_start:
            self.model_file(job.adapter.warm_start, here, "adapter.warm_start")
        self.check_model(job.model)

    def check_model(self, model: ModelConfig) -> None:
        """Checks the paths of a base.

        Raises:
            ConfigError: naming the field, if one lies in no root.
        """
        here = Path.cwd()
        self.source(model.source, [here], "model.source")
        if model.tokenizers:
            self.checked(model.tokenizers, here, "model.tokenizers")
        for part, file in model.files.items():
            self.model_file(file, here, f"model.files.{part}")

    def check_links(self, dataset: DatasetConfig) -> None:
        """Checks that what the files of a data set are links to lies in a root.

        Raises:
            ConfigError: naming the link that does not.
            DatasetError: if a folder is missing or cannot be read.
        """
        for path in data_files(dataset):
            if path.is_symlink():
                self._real(path, str(path), "a link in the data set")

    def _by_name(self, text: str, base: Path, what: str) -> Path:
        """Where a text leads, by its letters alone."""
        bare = _bare(text)
        if not bare or any(letter < " " for letter in bare):
            raise ConfigError(f"{what}: {text!r} is no path")
        foreign = os.name != "nt" and (bare.startswith("\\\\") or PureWindowsPath(bare).drive)
        # a part such as `.. ` is no `..` here, but Windows takes it for one
        odd = any(part != part.rstrip(" .") and part not in (".", "..") for part in PureWindowsPath(bare).parts[1:])
        if bare.startswith("~") and bare[1:2] not in ("", "/", os.sep):
            raise ConfigError(f"{what}: {text!r} is in another user's home. Give the whole path instead")
        named = _named(bare)
        place = _normal(base / named)
        if not named.is_absolute() and not foreign and not _lies_in(place, [_normal(base)]):
            raise ConfigError(f"{what}: {text!r:.300} leads out of {base}. Give the whole path instead")
        if foreign or (os.name == "nt" and odd) or not _lies_in(place, map(_normal, self._both())):
            raise self._refusal(text, what)
        return place

    def _real(self, place: Path, text: str, what: str) -> Path:
        try:
            real = place.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links that go in circles, names that are too long
            raise ConfigError(f"{what}: {text!r}: {error}") from None
        if not _lies_in(real, self._both()):
            raise self._refusal(text, what)
        return real

    def _both(self) -> list[Path]:
        """The roots as they are called, and as they are with links resolved: they may be links themselves."""
        return [*self.folders, *(folder.resolve() for folder in self.folders)]

    def _refusal(self, text: str, what: str) -> ConfigError:
        return ConfigError(
            f"{what}: {text!r:.300} lies outside of the folders that workflows may use: ComfyUI's input, output, "
            f"models and datasets folders. To allow another, write it (or a folder around it) on a line of "
            f"{self.list_file}, or into the environment variable {VARIABLE}"
        )


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path lies below a folder, by its name first, and then with links resolved."""
    return _lies_in(_normal(path), [_normal(folder)]) and _lies_in(path.resolve(), [folder.resolve()])


def _lies_in(path: Path, roots: Iterable[Path]) -> bool:
    """Whether a path is one of some folders or below one, as the system compares names."""
    name = Path(os.path.normcase(path))
    return any(name.is_relative_to(os.path.normcase(root)) for root in roots)


def _named(text: str) -> Path:
    """A path as it is written, with `~` for the user's own home and nobody else's."""
    path = Path(_bare(text))
    return Path.home().joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else path


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _bare(text: str) -> str:
    return text.strip().strip('"')
