"""Triggers, dropout and shuffles, against plain statements about the texts."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer_core.config import DatasetConfig
from trainer_core.data.captions import (
    SHUFFLES,
    choose,
    contains_word,
    encoder_text,
    shuffled_tags,
    variants,
    with_class,
    with_trigger,
)

words = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
triggers = st.from_regex(r"[a-z]{3,8}[0-9]?", fullmatch=True)
captions = st.lists(words, max_size=8).map(" ".join)
placements = st.sampled_from(["start", "end"])


def dataset(**settings: Any) -> DatasetConfig:
    return DatasetConfig(folder="pictures", **settings)


def occurrences(text: str, trigger: str) -> int:
    """How often the trigger stands in a text as a word: by splitting, not by the code's regular expression."""
    return re.split(r"\W+", text.lower()).count(trigger.lower())


# --- trigger ---------------------------------------------------------------------------------------------------------


@given(captions, triggers, placements)
def test_trigger_is_in_the_caption_exactly_once(caption: str, trigger: str, placement: str) -> None:
    assume(occurrences(caption, trigger) <= 1)
    assert occurrences(with_trigger(caption, trigger, placement), trigger) == 1


@given(captions, triggers, placements)
def test_adding_the_trigger_twice_adds_it_once(caption: str, trigger: str, placement: str) -> None:
    once = with_trigger(caption, trigger, placement)
    assert with_trigger(once, trigger, placement) == once


@given(captions, triggers)
def test_nothing_but_the_trigger_is_added(caption: str, trigger: str) -> None:
    assume(not occurrences(caption, trigger))
    assert with_trigger(caption, trigger, "start").split() == [trigger, *caption.split()]
    assert with_trigger(caption, trigger, "end").split() == [*caption.split(), trigger]
    assert with_trigger(caption, trigger, "only_placeholder") == caption


@given(words, words, triggers, placements)
def test_placeholder_is_replaced_where_it_stands(before: str, after: str, trigger: str, placement: str) -> None:
    assert with_trigger(f"{before} [trigger], {after}", trigger, placement) == f"{before} {trigger}, {after}"


@pytest.mark.parametrize("placement", ["start", "end", "only_placeholder"])
def test_placeholder_never_reaches_the_encoder(placement: str) -> None:
    assert with_trigger("[trigger]", "zorble", placement) == "zorble"
    assert "[" not in with_trigger("a [trigger] here", None, placement)
    assert with_trigger("[trigger] in rain", None, placement) == "in rain"


@pytest.mark.parametrize(
    ("caption", "trigger", "result"),
    [
        ("a cartoon", "car", "car a cartoon"),  # not inside another word
        ("a scar", "car", "car a scar"),
        ("a car_wash", "car", "car a car_wash"),
        ("a car, parked", "car", "a car, parked"),
        ("A Car.", "car", "A Car."),  # in any case
        ("a red-car", "car", "a red-car"),  # a hyphen ends a word
        ("the ohwx man", "ohwx man", "the ohwx man"),  # a phrase
        ("the ohwx  mane", "ohwx man", "ohwx man the ohwx  mane"),
        ("the ohwx\nman", "ohwx man", "the ohwx\nman"),  # over the end of a line
        ("", "car", "car"),
        ("c++ code", "c++", "c++ code"),  # no letter at the trigger's end
        ("a.b", "a.b", "a.b"),  # a dot is a dot
        ("axb", "a.b", "a.b axb"),
        ("größe", "größ", "größ größe"),  # letters beyond ASCII
        ("日本", "日本", "日本"),
        ("日本語", "日本", "日本 日本語"),
        ("一个zorble形状", "zorble", "一个zorble形状"),  # scripts without spaces do not hide a word
        ("zorbleの絵", "zorble", "zorbleの絵"),
        ("zorble을 그린", "zorble", "zorble을 그린"),
        ("cafe\u0301", "cafe", "cafe caf\u00e9"),  # an accent of its own makes another word
        ("cafe\u0301 x", "caf\u00e9", "caf\u00e9 x"),  # macOS writes accents apart
        ("caf\u00e9 x", "cafe\u0301", "caf\u00e9 x"),
    ],
)
def test_trigger_by_hand(caption: str, trigger: str, result: str) -> None:
    assert with_trigger(caption, trigger, "start") == result


def test_without_a_trigger_a_caption_stays_verbatim() -> None:
    assert with_trigger("a,  b ; C", None, "start") == "a,  b ; C"
    assert with_trigger("a", "", "end") == "a"


@given(st.text(max_size=30), st.text(min_size=1, max_size=8), placements)
@example("", "\U0002f800", "start")  # a compatibility ideograph, which normal form C turns into another character
def test_any_text_at_all_is_borne(caption: str, trigger: str, placement: str) -> None:
    """Regular expression characters, controls, other scripts: no exception, and the trigger is in, in normal form C."""
    assume("[trigger]" not in caption)
    text = unicodedata.normalize("NFC", with_trigger(caption, trigger, placement))
    assert unicodedata.normalize("NFC", trigger).lower() in text.lower()


@given(captions, words)
def test_contains_word_agrees_with_splitting(text: str, word: str) -> None:
    assert contains_word(text, word) == (word in text.split())


# --- without a trigger -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "result"),
    [
        ("a [trigger] cat", "a cat"),
        ("[trigger] in rain", "in rain"),
        ("photo of [trigger].", "photo of."),
        ("cat, [trigger], dog", "cat, dog"),  # no empty tag is left
        ("[trigger], cat", "cat"),
        ("cat, [trigger]", "cat"),
        ("cat,[trigger],dog", "cat,dog"),
        ("[trigger], [trigger], cat, [trigger], [trigger]", "cat"),
        ("cat, [trigger] dog", "cat, dog"),
        ("a [trigger] [trigger][trigger] cat", "a cat"),
        ("one\n[trigger] two", "one\ntwo"),  # lines stay lines
        ("one [trigger]\ntwo", "one\ntwo"),
        ("a ([trigger] one)", "a (one)"),
        ("[trigger]", ""),
        ("a,  b ; C  [trigger]", "a,  b ; C"),  # nothing elsewhere is tidied
    ],
)
def test_a_regularization_set_has_no_trigger(caption: str, result: str) -> None:
    config = dataset(role="regularization")
    assert encoder_text(caption, config) == result
    assert variants([caption], config, 42, "a.png") == [result]


@given(st.lists(words | st.just("[trigger]"), max_size=8), st.sampled_from([" ", ", ", "\n", " . "]))
def test_only_the_placeholder_goes(parts: list[str], between: str) -> None:
    left = with_trigger(between.join(parts), None, "start")
    assert "[trigger]" not in left
    assert re.findall(r"[a-z]+", left) == [part for part in parts if part != "[trigger]"]
    assert left == left.strip()
    assert "  " not in left


def test_a_shuffled_regularization_set_has_no_empty_tag() -> None:
    config = dataset(role="regularization", shuffle_tags=True, caption_dropout=0.5)
    *shuffled, dropped = variants(["[trigger], a, b, [trigger]"], config, 42, "a.png")
    assert set(shuffled) == {"a, b", "b, a"}
    assert dropped == ""


def test_a_megabyte_of_blanks_ends() -> None:
    assert encoder_text(" " * 1_000_000 + "[trigger]" + " " * 1_000_000 + "x", dataset()) == "x"


# --- class word ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "trigger", "result"),
    [
        ("a car in a cartoon, scar, car_wash", "car", "a woman in a cartoon, scar, car_wash"),
        ("Car, CAR. (car) red-car's", "car", "woman, woman. (woman) red-woman's"),
        ("the ohwx man and an ohwx  Man", "ohwx man", "the woman and an woman"),
        ("ohwx manner", "ohwx man", "ohwx manner"),
        ("c++ in c++11", "c++", "woman in c++11"),
        ("a.b axb", "a.b", "woman axb"),
        ("一个zorble形状", "zorble", "一个woman形状"),
        ("nothing here", "zorble", "nothing here"),
        ("", "zorble", ""),
        ("a cat", "", "a cat"),
        ("a cat", " ", "a cat"),
    ],
)
def test_class_word_by_hand(text: str, trigger: str, result: str) -> None:
    assert with_class(text, trigger, "woman") == result


def test_class_word_with_signs_of_regular_expressions_is_taken_as_it_is() -> None:
    assert with_class("a zorble", "zorble", r"\1 \g<0>\n$") == r"a \1 \g<0>\n$"


@given(st.lists(words | st.just("zorble") | st.just("ZORBLES"), max_size=8), st.sampled_from([" ", ", ", "-", "\n"]))
def test_class_word_replaces_whole_words_only(parts: list[str], between: str) -> None:
    expected = between.join("shape" if part == "zorble" else part for part in parts)
    assert with_class(between.join(parts), "zorble", "shape") == expected


@given(st.text(max_size=30), st.text(min_size=1, max_size=8), st.text(max_size=8))
def test_any_trigger_and_class_are_taken_literally(text: str, trigger: str, class_word: str) -> None:
    r"""Nothing in them is a regular expression, nor `\1` in the class word a group."""
    assume(trigger.strip() and "|" not in trigger)
    assume(trigger.isascii() or trigger == trigger.lower())  # "ß".upper() is two letters: no case folds into another
    result = with_class(f"{text}| {trigger.strip()} |", trigger, class_word)
    assert result.endswith(unicodedata.normalize("NFC", f" {class_word} |"))


@given(captions, triggers, placements, words)
def test_no_trigger_is_left_beside_the_class(caption: str, trigger: str, placement: str, class_word: str) -> None:
    assume(trigger != class_word)
    text = with_class(with_trigger(caption, trigger, placement), trigger, class_word)
    assert occurrences(text, trigger) == 0
    assert occurrences(text, class_word) >= 1


# --- shuffles --------------------------------------------------------------------------------------------------------

tags = st.lists(words, min_size=1, max_size=6)


@given(tags, st.integers(0, 8), st.integers(0, 1000))
def test_shuffles_keep_the_tags_and_the_leading_ones_in_place(parts: list[str], keep: int, place: int) -> None:
    shuffled = shuffled_tags(", ".join(parts), keep, place).split(", ")
    assert Counter(shuffled) == Counter(parts)
    assert shuffled[:keep] == parts[:keep]


@given(tags, triggers, placements, st.integers(0, 3))
def test_shuffled_variants_hold_every_tag_and_one_trigger(
    parts: list[str], trigger: str, placement: str, keep: int
) -> None:
    assume(trigger not in parts)
    config = dataset(shuffle_tags=True, keep_tags=keep, trigger=trigger, trigger_placement=placement)
    for text in variants([", ".join(parts)], config, 42, "a.png"):
        assert occurrences(text, trigger) == 1
        assert Counter(re.findall(r"\w+", text)) == Counter([*parts, trigger])


def test_shuffles_differ_between_items_and_seeds_but_not_between_calls() -> None:
    config = dataset(shuffle_tags=True)
    caption = "a, b, c, d, e, f, g"
    first = variants([caption], config, 1, "a.png")
    assert len(set(first)) > SHUFFLES // 2
    assert first == variants([caption], config, 1, "a.png")
    assert first != variants([caption], config, 1, "b.png")
    assert first != variants([caption], config, 2, "a.png")


def test_a_trigger_of_two_tags_cannot_be_shuffled() -> None:
    """The shuffle would pull it apart, and then it would be added again."""
    with pytest.raises(ValidationError, match="trigger"):
        dataset(shuffle_tags=True, trigger="ohwx, man")
    assert dataset(trigger="ohwx, man").trigger == "ohwx, man"


# --- dropout ---------------------------------------------------------------------------------------------------------


def test_one_caption_and_nothing_to_vary() -> None:
    config = dataset(trigger="zorble")
    assert variants(["a red [trigger]"], config, 42, "a.png") == ["a red zorble"]
    assert choose(["a red zorble"], config, 42, 0) == "a red zorble"


@pytest.mark.parametrize(("trigger", "dropped"), [("zorble", "zorble"), (None, "")])
def test_dropped_captions_leave_the_trigger_alone(trigger: str | None, dropped: str) -> None:
    config = dataset(caption_dropout=0.5, trigger=trigger)
    assert variants(["a cat"], config, 42, "a.png")[-1] == dropped


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_share_of_dropped_captions(rate: float) -> None:
    config = dataset(caption_dropout=rate)
    texts, count = variants(["a cat"], config, 42, "a.png"), 20_000
    dropped = sum(choose(texts, config, 42, step, "a.png", 1) == "" for step in range(count)) / count
    assert dropped == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / count))


def test_dropout_of_one_and_of_zero_are_exact() -> None:
    always, never = dataset(caption_dropout=1.0), dataset(caption_dropout=0.0)
    assert {choose(variants(["a"], always, 1, "k"), always, step) for step in range(1000)} == {""}
    assert {choose(variants(["a"], never, 1, "k"), never, step) for step in range(1000)} == {"a"}


def test_every_shuffle_is_drawn_alike_beside_dropout() -> None:
    config = dataset(shuffle_tags=True, caption_dropout=0.2, trigger="zorble")
    texts, count = variants(["a, b, c, d, e, f"], config, 42, "a.png"), 20_000
    drawn = Counter(choose(texts, config, 42, step) for step in range(count))
    for text in set(texts[:-1]):
        expected = 0.8 * texts[:-1].count(text) / SHUFFLES
        assert drawn[text] / count == pytest.approx(expected, abs=4 * math.sqrt(expected / count))
    assert set(drawn) == set(texts)


def test_dropped_captions_may_leave_nothing() -> None:
    config = dataset(caption_dropout=0.5, trigger="zorble", dropped_caption="blank")
    assert variants(["a cat"], config, 42, "a.png") == ["zorble a cat", ""]


# --- several captions ------------------------------------------------------------------------------------------------


def test_several_captions_each_get_the_trigger() -> None:
    config = dataset(trigger="zorble", caption_dropout=0.1)
    texts = variants(["a cat", "[trigger] sleeps", "the zorble"], config, 42, "a.png")
    assert texts == ["zorble a cat", "zorble sleeps", "the zorble", "zorble"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_caption_is_drawn_alike(shuffle: bool) -> None:
    config = dataset(shuffle_tags=shuffle, caption_dropout=0.25)
    texts, count = variants(["a, b", "c", "d, e, f"], config, 42, "a.png"), 20_000
    drawn = Counter(frozenset(choose(texts, config, 42, step).split(", ")) for step in range(count))
    assert set(drawn) == {frozenset([""]), frozenset("ab"), frozenset("c"), frozenset("def")}
    for times in drawn.values():
        assert times / count == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / count))


def test_captions_of_one_image_are_shuffled_apart() -> None:
    config = dataset(shuffle_tags=True)
    texts = variants(["a, b, c, d, e, f"] * 2, config, 42, "a.png")
    assert texts[:SHUFFLES] != texts[SHUFFLES:]


def test_empty_tags_go() -> None:
    assert shuffled_tags("a, , b,", 2) == "a, b"
    assert shuffled_tags("", 0) == ""
