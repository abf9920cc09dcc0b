"""Checks across images: which look alike, and whether any of them stand on both sides of a validation split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from ..clips.media import content_of
from ..holdout import held_out
from .looks import Looks
from .report import Finding, Severity
from .survey import Circumstances, Picture, Survey

Side = Literal["train", "regularization", "validation"]


class Alike:
    """The images of all data sets, compared with each other."""

    def __init__(self, surveys: Sequence[Survey], where: Circumstances) -> None:
        self._all = [(survey, picture) for survey in surveys for picture in survey.readable]
        self._digests: dict[Path, str] = {}
        self._held = self._held_out(surveys, where.share)

    def check(self) -> Iterator[Finding]:
        """Near-duplicates, mirrored copies, and leaks of the validation split."""
        looks = Looks([picture.look for _, picture in self._all if picture.look is not None])
        groups = looks.groups()
        for group in groups:
            yield from self._leak(group, "look alike")
            yield from self._duplicates(group)
        # of images that look alike, the first stands for all: else there could be millions of pairs
        later = {k for group in groups for k in group[1:]}
        group_of = {group[0]: group for group in groups}
        for one, other in looks.mirrored_pairs([k for k in range(len(self._all)) if k not in later]):
            sides = [group_of.get(k, [k]) for k in (one, other)]
            if all(len({self._side(k) == "validation" for k in side}) == 1 for side in sides):  # else it is told
                yield from self._leak([*sides[0], *sides[1]], "are mirror images")
            yield from self._mirrored([one, other])

    def _leak(self, group: list[int], how: str) -> Iterator[Finding]:
        held = [k for k in group if self._side(k) == "validation"]
        trained = [k for k in group if self._side(k) != "validation"]
        if not held or not trained:
            return
        same = {self._digest(k) for k in held} & {self._digest(k) for k in trained}
        severity: Severity = "error" if same else "warning"
        message = (
            f"held out for validation and trained on ({len(held)} and {len(trained)} images that "
            f"{'are the same' if same else how}): validation measures what was learned by heart. "
            "Keep one side"
        )
        yield self._finding(severity, "validation-leak", [*held, *trained], message)

    def _duplicates(self, group: list[int]) -> Iterator[Finding]:
        sides: dict[bool, dict[Path, int]] = {}
        for k in group:  # one folder in several data sets, at several resolutions, is no duplicate
            sides.setdefault(self._side(k) == "validation", {}).setdefault(self._all[k][1].path, k)
        for unique in sides.values():
            if len(unique) < 2:
                continue
            images = list(unique.values())
            roles = {self._side(k) for k in images}
            copies = len({self._digest(k) for k in images}) == 1
            what = "are copies of one file" if copies else "look alike"
            if roles == {"train", "regularization"}:
                message = f"{what}, in a training set and in a regularization set, which undo each other. Keep one"
            else:
                message = f"{what}, so that one picture counts {len(images)} times. Keep the best"
            yield self._finding("warning", "near-duplicates", images, message)

    def _mirrored(self, pair: list[int]) -> Iterator[Finding]:
        if len({self._all[k][1].path for k in pair}) == 2 and len({self._side(k) for k in pair}) == 1:
            yield self._finding(
                "note", "mirrored", pair, "are mirror images of each other; flip_x makes them by itself"
            )

    def _held_out(self, surveys: Sequence[Survey], share: float) -> frozenset[str]:
        """Contents that training will hold out, by training's own rule."""
        if share <= 0:
            return frozenset()
        groups: dict[str, list[list[str]]] = {"train": [], "regularization": [], "validation": []}
        for survey in surveys:
            groups[survey.dataset.role].append([self._digest_of(picture) for picture in survey.readable])
        return held_out(groups["train"], groups["regularization"], share)

    def _side(self, number: int) -> Side:
        survey, picture = self._all[number]
        # training leaves out copies of what is held out, whatever set they are in
        held = self._held and self._digest_of(picture) in self._held
        return "validation" if held else survey.dataset.role

    def _digest(self, number: int) -> str:
        return self._digest_of(self._all[number][1])

    def _digest_of(self, picture: Picture) -> str:
        if picture.path not in self._digests:
            try:
                self._digests[picture.path] = content_of(picture.path)
            except OSError:  # gone since it was looked at
                self._digests[picture.path] = str(picture.path)
        return self._digests[picture.path]

    def _finding(self, severity: Severity, check: str, numbers: list[int], message: str) -> Finding:
        folder = self._all[numbers[0]][0].folder
        found = [self._all[k] for k in numbers]
        files = [picture.key if survey.folder == folder else str(picture.path) for survey, picture in found]
        return Finding(severity, check, tuple(dict.fromkeys(files)), message, folder)
