"""What is trained on, what only validates, and which texts are embedded; with a stand-in encoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core.config import RegularizationConfig, ValidationConfig
from trainer_core.data.cache import CacheMiss
from trainer_core.data.prepare import PreparedData
from trainer_core.data.variants import Variant
from trainer_core.errors import DatasetError


def pictures(folder: Path, numbers: range, **captions: str) -> str:
    """Pictures 0.png, 1.png … of different content; their captions by name, such as p0="a thing"."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (64, 64), (number, 7 * number % 256, 0)).save(folder / f"{number}.png")
    for name, text in captions.items():
        (folder / f"{name.removeprefix('p')}.txt").write_text(text, encoding="utf-8")
    return str(folder)


def keys(samples: list[Any]) -> set[str]:
    return {sample.item.key for sample in samples}


HALF = {"validation": ValidationConfig(share=0.5, every=1)}


def test_a_share_of_each_training_set_is_held_out(prepared: Any, tmp_path: Path) -> None:
    one, other = pictures(tmp_path / "one", range(20)), pictures(tmp_path / "other", range(20, 24))
    data, _ = prepared({"folder": one, "resolutions": (32, 64)}, {"folder": other}, **HALF)
    for index, folder in enumerate((one, other)):
        trained = keys(data.samples[index])
        held = keys([sample for sample in data.validation if sample.dataset == index])
        assert not trained & held
        assert trained | held == {path.name for path in Path(folder).glob("*.png")}
        assert trained
        assert held
    sizes = {sample.item.key: 0 for sample in data.validation if sample.dataset == 0}
    for sample in data.validation:
        sizes[sample.item.key] = sizes.get(sample.item.key, 0) + 1
    assert {sizes[key] for key in keys([s for s in data.validation if s.dataset == 0])} == {2}, "at every size"


def test_without_validation_everything_is_trained_on(prepared: Any, tmp_path: Path) -> None:
    data, _ = prepared({"folder": pictures(tmp_path / "one", range(5))})
    assert (len(data.samples[0]), data.validation) == (5, [])


def test_where_nothing_can_be_held_out_it_is_told(prepared: Any, tmp_path: Path) -> None:
    """One picture, or the same one twice: it is trained on, and there would be no loss to measure."""
    folder = Path(pictures(tmp_path / "one", range(1)))
    shutil.copy(folder / "0.png", folder / "1.png")
    with pytest.raises(DatasetError, match="nothing can be held out"):
        prepared({"folder": str(folder)}, **HALF)


def test_the_split_does_not_follow_names_or_seeds(prepared: Any, tmp_path: Path) -> None:
    folder = Path(pictures(tmp_path / "one", range(20)))
    held = keys(prepared({"folder": str(folder)}, **HALF)[0].validation)
    for number in range(20):
        (folder / f"{number}.png").rename(folder / f"n{19 - number}.png")
    renamed = keys(prepared({"folder": str(folder)}, **HALF)[0].validation)
    assert {f"n{19 - int(key.removesuffix('.png'))}.png" for key in held} == renamed


def test_a_validation_set_is_not_trained_on_and_seen_plainly(prepared: Any, tmp_path: Path) -> None:
    one, other = pictures(tmp_path / "one", range(3)), pictures(tmp_path / "other", range(5, 8))
    data, base = prepared({"folder": one}, {"folder": other, "role": "validation", "flip_x": True, "crop": "random"})
    assert data.samples[1] == []
    assert [sample.dataset for sample in data.validation] == [1, 1, 1]
    for sample in data.validation:
        data.latents(sample, Variant())
    assert len(base.batches) == 1, "six pictures, none of them flipped"


def test_what_is_held_out_is_seen_plainly_where_training_flips_and_crops(prepared: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one", range(6))
    data, _ = prepared({"folder": folder, "flip_x": True, "crop": "random"}, **HALF)
    for sample in data.validation:
        data.latents(sample, Variant())
        with pytest.raises(CacheMiss):
            data.latents(sample, Variant(flip_x=True, crop=1))


def test_copies_are_on_one_side_within_and_across_sets(prepared: Any, tmp_path: Path) -> None:
    one = Path(pictures(tmp_path / "one", range(12)))
    other = Path(shutil.copytree(one, tmp_path / "other"))
    for number in range(12):
        shutil.copy(one / f"{number}.png", one / f"copy of {number}.png")
    pictures(other, range(100, 104))
    data, _ = prepared({"folder": str(one)}, {"folder": str(other)}, **HALF)
    content = {path.read_bytes() for group in data.samples for path in {s.item.path for s in group}}
    held = {sample.item.path.read_bytes() for sample in data.validation}
    assert content
    assert held
    assert not content & held


def test_what_is_held_out_is_not_shown_by_a_regularization_set(prepared: Any, tmp_path: Path) -> None:
    one = Path(pictures(tmp_path / "one", range(12)))
    shutil.copytree(one, tmp_path / "class")
    data, _ = prepared({"folder": str(one)}, {"folder": str(tmp_path / "class"), "role": "regularization"}, **HALF)
    held = {sample.item.path.read_bytes() for sample in data.validation}
    assert {sample.dataset for sample in data.validation} == {0}, "a regularization set is not split"
    assert held.isdisjoint(sample.item.path.read_bytes() for sample in data.samples[1])
    assert data.samples[1]


@pytest.mark.parametrize("role", ["train", "regularization"])
def test_a_validation_picture_that_is_trained_on_is_refused(role: str, prepared: Any, tmp_path: Path) -> None:
    one, other = pictures(tmp_path / "one", range(3)), Path(pictures(tmp_path / "other", range(5, 8)))
    shutil.copy(tmp_path / "one" / "1.png", other / "x.png")
    validation = {"folder": one, "role": "validation"}
    third = {"folder": pictures(tmp_path / "third", range(20, 22))}
    with pytest.raises(DatasetError, match=r"x\.png.*validation set too.*Remove"):
        prepared(validation, {"folder": str(other), "role": role}, third)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_all_captions_of_training_and_validation_are_embedded(prepared: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one", range(2), p0="one\ntwo", p1="three")
    held = pictures(tmp_path / "two", range(5, 6), p5="held")
    data, base = prepared({"folder": folder, "caption_per_line": True}, {"folder": held, "role": "validation"})
    assert sorted(base.texts) == ["held", "one", "three", "two"]
    first = next(sample for sample in data.samples[0] if sample.item.key == "0.png")
    assert data.texts_of(first) == ["one", "two"]


def test_class_words_stand_in_the_triggers_place(prepared: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one", range(2), p0="a photo of [trigger], zorblefish", p1="plain")
    settings = RegularizationConfig(output_preservation=True, output_preservation_class="woman, man")
    data, base = prepared({"folder": folder, "trigger": "zorble", "caption_dropout": 0.5}, regularization=settings)
    expected = {f"{word}{text}" for word in ("zorble", "woman", "man") for text in ("", " plain")}
    expected |= {f"a photo of {word}, zorblefish" for word in ("zorble", "woman", "man")}
    assert set(base.texts) == expected
    for text in expected:
        data.text(text)


@pytest.mark.parametrize("setting", ["blank_preservation", "contrastive_guidance"])
def test_the_blank_prompt_is_embedded_where_a_term_needs_it(setting: str, prepared: Any, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one", range(2))
    assert "" not in prepared({"folder": folder})[1].texts
    data, base = prepared({"folder": folder}, regularization=RegularizationConfig(**{setting: True}))
    assert base.texts == [""]
    data.text("")


def test_a_regularization_sets_texts_have_no_class_words(prepared: Any, tmp_path: Path) -> None:
    one = pictures(tmp_path / "one", range(2), p0="[trigger]", p1="[trigger]")
    other = pictures(tmp_path / "two", range(5, 6), p5="a woman")
    settings = RegularizationConfig(output_preservation=True, output_preservation_class="man")
    _, base = prepared(
        {"folder": one, "trigger": "woman"}, {"folder": other, "role": "regularization"}, regularization=settings
    )
    assert sorted(base.texts) == ["a woman", "man", "woman"]


# --- the digest ------------------------------------------------------------------------------------------------------


def test_the_digest_follows_every_file_and_caption(prepared: Any, tmp_path: Path) -> None:
    folder = Path(pictures(tmp_path / "one", range(2), p0="x", p1="y"))
    for name in ("masks", "controls"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.txt"))
    config = {
        "folder": str(folder),
        "mask_folder": str(tmp_path / "masks"),
        "control_folders": [str(tmp_path / "controls")],
    }

    def digest() -> str:
        data: PreparedData = prepared(config)[0]
        return data.digest()

    seen = [digest()]
    assert digest() == seen[0]
    (folder / "0.txt").write_text("z")
    seen.append(digest())
    for name in ("one", "masks", "controls"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / name / "0.png")
        seen.append(digest())
    assert len(set(seen)) == 5


def test_an_unreadable_file_is_named(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("trainer_core.data.clips.media.sha256_once", refuse)
    with pytest.raises(DatasetError, match=r"\.png: cannot be read \(Permission denied\)"):
        prepared({"folder": pictures(tmp_path / "one", range(2))})
