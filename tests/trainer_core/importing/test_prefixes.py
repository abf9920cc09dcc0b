"""Texts that other tools put before or after each caption are triggers here: a caption is read as it is there."""

from __future__ import annotations

import pytest

from trainer_core.api import Imported, import_config
from trainer_core.data.captions import variants

SD = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "/d"\n'
PIPE = '[[directory]]\npath = "/d"\n'


def kind_of(made: Imported, key: str) -> str:
    return next(note.kind for note in made.notes if note.key.endswith(key))


def read_as(made: Imported, caption: str) -> set[str]:
    """What the text encoder may read for a caption."""
    return {*variants([caption], made.job.datasets[0], 1, "a.png")}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        # process_caption in sd-scripts: prefix + " " + caption + " " + suffix
        (SD + 'caption_prefix = "an oil painting of"', "an oil painting of a red hat"),
        (SD + 'caption_prefix = "pc,"', "pc, a red hat"),
        (SD + 'caption_suffix = "in oil"', "a red hat in oil"),
        # diffusion-pipe puts no space between
        (PIPE + "caption_prefix = 'moth, '", "moth, a red hat"),
    ],
)
def test_a_caption_is_read_as_there(text: str, read: str) -> None:
    made = import_config({"d.toml": text})
    assert read_as(made, "a red hat") == {read}
    assert kind_of(made, text.splitlines()[-1].split()[0]) == "converted"


def test_a_tag_stays_in_front_when_tags_are_shuffled() -> None:
    lines = 'shuffle_caption = true\nkeep_tokens = 1\ncaption_prefix = "pc, "'
    made = import_config({"d.toml": SD + lines})
    shuffled = read_as(made, "hat, coat, shoe")
    assert len(shuffled) > 2
    assert all(one.startswith("pc ") for one in shuffled)
    # it is the one that keep_tokens keeps there
    assert len({one.removeprefix("pc ").split(", ")[0] for one in shuffled}) > 1


@pytest.mark.parametrize(
    ("more", "trigger"),
    [
        ('shuffle_caption = true\ncaption_prefix = "pc, best quality, "', None),
        ('is_reg = true\ncaption_prefix = "pc"', None),
        ('caption_prefix = ""', None),
        ('caption_prefix = "one"\ncaption_suffix = "two"', "one"),
    ],
)
def test_what_cannot_be_the_trigger_is_told(more: str, trigger: str | None) -> None:
    made = import_config({"d.toml": f'{SD}{more}\n[[datasets.subsets]]\nimage_dir = "/e"\n'})
    assert made.job.datasets[0].trigger == trigger
    last = more.splitlines()[-1].split()[0]
    assert kind_of(made, last) == ("unused" if '""' in more else "dropped")


def test_a_prefix_that_was_glued_on_is_told() -> None:
    made = import_config({"d.toml": PIPE + "caption_prefix = 'moth_'"})
    note = next(one for one in made.notes if one.key.endswith("caption_prefix"))
    assert "with a space between" in note.text
