"""Data sets ready to train on: scanned, split, put into buckets, encoded (from the cache where it can be)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import DatasetConfig, JobConfig
from ..errors import ConfigError, DatasetError
from ..families.conditioning import Conditioning
from .cache import RecentEntries, TensorCache, key_of
from .captions import encoder_text, variants, with_class
from .clips.media import content_of
from .clips.timing import timing_of
from .encoded import EncodedPictures, Latents
from .encoded_texts import EncodedTexts, Prompt
from .holdout import held_out
from .progress import Progress, silent
from .scan import Item, Sample, scan, sizes_of, windows_of
from .variants import Variant, variants_of
from .views import View

if TYPE_CHECKING:
    from ..families.base import Base, FamilySpec
    from ..families.conditioning import TextEmbedding

__all__ = ["Latents", "PreparedData", "check_controls", "samples_of"]

_MEMORY_LIMIT = 1 << 30
"""Bytes of cache entries that are kept in memory."""


class PreparedData:
    """What the loop reads: samples by data set, their latents, and the embedding of any text that was announced."""

    def __init__(self, job: JobConfig, base: Base, cache: TensorCache, made_by: str = "") -> None:
        """Scans the folders, splits off what validates and sorts images into buckets; encodes nothing yet.

        Args:
            made_by: the environment that encodes here. With `train.deterministic`, entries of the cache are taken from
                the same only: such a run must not depend on who encoded first, and on how many threads.

        Raises:
            DatasetError: if a data set cannot be trained on.
        """
        self.datasets, self._job, self._spec = job.datasets, job, base.spec
        spec = base.spec
        found = [samples_of(dataset, spec.bucket_divisor, k, spec) for k, dataset in enumerate(job.datasets)]
        self._digests = _digests({path: None for group in found for s in group for path in _files_of(s.item)})
        self.samples: list[list[Sample]] = [[] for _ in found]
        """What is trained on, by data set."""
        self.validation: list[Sample] = []
        """What is not: sets with the role validation, and the held-out share of the others."""
        self._split(found)
        self._made_by, self._entries = made_by, RecentEntries(cache, _MEMORY_LIMIT)
        only_by = made_by if job.train.deterministic else ""
        self._texts, self._pictures = (
            EncodedTexts(base, self._entries, made_by, only_by),
            EncodedPictures(base, self._entries, job.datasets, self._digests, made_by, only_by),
        )
        self._trained_texts: set[Prompt] = set()
        self._extra: list[Prompt] = []
        self._texts_of: dict[tuple[int, str], list[str]] = {}

    def digest(self) -> str:
        """Digest of all files and captions, for the LoRA's metadata; says nothing about where they lie."""
        lines = set()
        for sample in (*(one for group in self.samples for one in group), *self.validation):
            files = [self._digests[path] for path in _files_of(sample.item)]
            lines.add(key_of(sample.dataset, sample.item.key, *files, *sample.item.captions))
        return key_of(*sorted(lines))

    def texts_of(self, sample: Sample) -> list[str]:
        """All texts that a sample may be trained with (`captions.variants`)."""
        place = (sample.dataset, sample.item.key)
        if place not in self._texts_of:
            dataset, seed = self.datasets[sample.dataset], self._job.train.seed
            self._texts_of[place] = variants(sample.item.captions, dataset, seed, sample.item.key)
        return self._texts_of[place]

    def validation_text(self, sample: Sample) -> str:
        """The text that a validation sample is measured with: its first caption whole, whatever the job's seed is."""
        return encoder_text(sample.item.captions[0], self.datasets[sample.dataset])

    def encode_texts(self, extra: Iterable[str], progress: Progress) -> None:
        """Embeds every text that a step may need, and `extra` ones; loads the text encoders only if some are missing.

        Does nothing where the job adapts the text encoders: what they make of a text then changes with every step.

        Raises:
            BaseModelError: if the encoders cannot be loaded.
            SaveError: if the cache cannot be written.
        """
        if self._job.adapter.text_encoders:
            return
        self._trained_texts, self._extra = self._wanted_texts(), [Prompt(text) for text in extra]
        self._texts.encode([*self._trained_texts, *self._extra], progress)

    def encode_again(self) -> None:
        """Encodes what the cache has lost, which another run may have cleared.

        Raises:
            DatasetError: for a file that is gone as well, or another one.
        """
        self._entries.forget()  # an entry that is in memory alone would be lost with the next ones
        self.encode_texts([one.text for one in self._extra], silent)
        self.encode_images(silent)

    def encoded_by(self) -> str:
        """Digest of the environments that everything trained on was encoded in; call it when all is encoded.

        Previews do not count, which draw and do not train.
        """
        return key_of(*(f"{key}:{self._entries.made_by(key)}" for key in sorted(self._trained_keys())))

    def encoded_elsewhere(self) -> bool:
        """Whether any of that came from the cache and was made in another environment than this one, or in none known.

        The result then depends on what was in the cache.
        """
        return any(self._entries.made_by(key) != self._made_by for key in self._trained_keys())

    def text(self, text: str) -> TextEmbedding:
        """The embedding of an extra text that `encode_texts` has seen.

        Raises:
            CacheMiss: if it is not in the cache any more.
        """
        return self._texts.of(Prompt(text))

    def conditioning(self, sample: Sample, variant: Variant, latents: Latents, *texts: str) -> list[Conditioning]:
        """What a variant of a sample is conditioned on, with each of some texts.

        Args:
            latents: of that variant.
            texts: that `encode_texts` has seen; not looked up where the job adapts the text encoders.

        Raises:
            CacheMiss: if one is not in the cache any more.
        """
        views = self._seen(sample, variant)
        live = self._job.adapter.text_encoders
        return [
            Conditioning(
                prompt=text,
                text=None if live else self._texts.of(Prompt(text, views)),
                controls=latents.controls,
                time_ids=latents.time_ids,
                frame_rate=latents.frame_rate,
                first_frame=latents.first_frame,
            )
            for text in texts
        ]

    def encode_images(self, progress: Progress) -> None:
        """Encodes every picture, mask and control image in every form that may be drawn; loads the VAE only if needed.

        Raises:
            DatasetError: for a file that is no good or has changed since it was scanned, a mask of another shape than
                its image, and a mask that leaves nothing to train on.
            BaseModelError: if the VAE cannot be loaded, or its precision is too low for it.
            SaveError: if the cache cannot be written.
        """
        forms = [variants_of(dataset) for dataset in self.datasets]
        drawn = [(sample, form) for group in self.samples for sample in group for form in forms[sample.dataset]]
        self._pictures.encode([*drawn, *((sample, Variant()) for sample in self.validation)], progress)

    def latents(self, sample: Sample, variant: Variant) -> Latents:
        """The latents of a sample that `encode_images` has seen, in one of its `variants_of`.

        What only validates is there as `Variant()` alone.

        Raises:
            CacheMiss: if they are not in the cache any more.
        """
        return self._pictures.of(sample, variant)

    def _trained_keys(self) -> set[str]:
        return self._pictures.keys | self._texts.keys(self._trained_texts)

    def _split(self, found: list[list[Sample]]) -> None:
        contents: dict[str, list[list[str]]] = {"train": [], "regularization": [], "validation": []}
        for dataset, group in zip(self.datasets, found, strict=True):
            contents[dataset.role].append([self._digests[sample.item.path] for sample in group])
        held = held_out(contents["train"], contents["regularization"], self._job.validation.share)
        given = {content for group in contents["validation"] for content in group}
        for sample in (one for group in found for one in group):
            content, role = self._digests[sample.item.path], self.datasets[sample.dataset].role
            if role == "validation" or (role == "train" and content in held):
                self.validation.append(sample)
            elif content in given:
                raise DatasetError(
                    f"{sample.item.path}: is in a validation set too, which would then measure what was learned by "
                    "heart. Remove it from one of them"
                )
            elif content not in held:
                self.samples[sample.dataset].append(sample)
        if self._job.validation.every and not self.validation:
            raise DatasetError(
                "validation.share: nothing can be held out, since each training set has one picture, or several of the "
                "same content. Add pictures or a set with the role validation, or set validation.every to 0"
            )

    def _seen(self, sample: Sample, variant: Variant) -> tuple[View, ...]:
        """The control images that the text encoders look at."""
        return self._pictures.seen(sample, variant) if self._spec.text_sees_controls else ()

    def _wanted_texts(self) -> set[Prompt]:
        """Captions; as the job needs them, also with the class word in the trigger's place, and the blank prompt."""
        settings = self._job.regularization
        blank = {""} if settings.blank_preservation or settings.contrastive_guidance else set()
        wanted = {Prompt(self.validation_text(one), self._seen(one, Variant())) for one in self.validation}
        for dataset, group in zip(self.datasets, self.samples, strict=True):
            words = settings.classes if settings.output_preservation and dataset.trigger else ()
            forms = variants_of(dataset) if self._spec.text_sees_controls else [Variant()]
            for sample in group:
                texts = {*self.texts_of(sample), *blank}
                if dataset.trigger:
                    texts |= {with_class(text, dataset.trigger, word) for text in texts for word in words}
                wanted |= {Prompt(text, self._seen(sample, form)) for form in forms for text in texts}
        return wanted


def samples_of(dataset: DatasetConfig, divisor: int, index: int = 0, spec: FamilySpec | None = None) -> list[Sample]:
    """A data set's images at each of their bucket sizes; with a video family's spec also its clips, in their windows.

    Raises:
        DatasetError: if the folder cannot be trained on, or an image is smaller than one unit of the divisor.
    """
    timing = timing_of(dataset, spec) if spec else None
    return [
        Sample(index, item, size, *window, dataset.fps if timing else None)
        for item in scan(dataset, timing)
        for size in sizes_of(item, dataset, divisor)
        for window in windows_of(item, dataset, timing)
    ]


def check_controls(job: JobConfig, spec: FamilySpec) -> None:
    """Whether the family takes the job's control images and first frames; loads nothing.

    Raises:
        ConfigError: if it takes none, or fewer.
    """
    for number, dataset in enumerate(job.datasets):
        count = len(dataset.control_folders)
        if count > spec.max_controls:
            most = f"at most {spec.max_controls}" if spec.max_controls else "no"
            raise ConfigError(
                f"datasets.{number}.control_folders: {count} given, but {spec.title} takes {most} control images. "
                "Choose a family that takes more (`lora-foundry families`), or remove some"
            )
        if dataset.first_frame and not spec.takes_first_frame:
            raise ConfigError(f"datasets.{number}.first_frame: {spec.title} cannot go on from a frame. Switch it off")


def _files_of(item: Item) -> list[Path]:
    return [item.path, *([item.mask] if item.mask else []), *item.controls]


def _digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Digests of files' bytes; hashing lets other threads run, so several disks' or cores' worth goes at once."""

    def digest(path: Path) -> str:
        try:
            return content_of(path)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror or error}). Check the file") from None

    several = list(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(several, pool.map(digest, several), strict=True))
