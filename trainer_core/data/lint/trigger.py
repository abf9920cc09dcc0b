"""Checks of the trigger itself: a word that means something already pulls what is learned towards that meaning."""

from __future__ import annotations

from collections.abc import Iterator

from ..captions import contains_word
from .report import Finding
from .survey import Circumstances
from .words import COMMON_WORDS


def check_trigger(trigger: str, where: Circumstances) -> Iterator[Finding]:
    """Whether a trigger is a common word, known to a tokenizer or unreadable to it, or at odds with the class word."""
    words = trigger.split()
    if all(word.casefold() in COMMON_WORDS for word in words):
        what = "is a common word" if len(words) == 1 else "is made of common words only"
        yield _warning("common-trigger", f"the trigger {trigger!r} {what}: {_ADVICE}")
    known = [one.name for one in where.tokenizers if all(one.is_known(word) for word in words)]
    if known:
        what = "is a word" if len(words) == 1 else "is made of words"
        message = f"the trigger {trigger!r} {what} that the base knows (in its {' and '.join(known)}): {_ADVICE}"
        yield _warning("known-trigger", message)
    unreadable = [one.name for one in where.tokenizers if one.is_unreadable(trigger)]
    if unreadable:
        yield _warning(
            "unreadable-trigger",
            f"the base's {' and '.join(unreadable)} lacks letters of the trigger {trigger!r}, which reads like "
            "any other unknown word there. Use plain letters",
        )
    for word in where.classes:
        yield from _against_class(trigger, word, where.preserves_class)


_ADVICE = "the base has a meaning for it that training must undo first. Use a word that means nothing, such as `zorble`"


def _against_class(trigger: str, word: str, preserved: bool) -> Iterator[Finding]:
    own, other = trigger.casefold(), word.casefold()
    if own == other:
        message = f"the trigger {trigger!r} is the class word itself: nothing tells what is learned from its class"
        if preserved:
            message += ", and output_preservation undoes the training. Use another word for the trigger"
        yield Finding("error" if preserved else "warning", "trigger-and-class", (), message)
    elif contains_word(own, other):
        message = f"the trigger {trigger!r} contains the class word {word!r}: leave that word to the captions"
        yield _warning("trigger-and-class", f"{message}, and let the trigger be the new word alone")
    elif contains_word(other, own):
        message = f"the class word {word!r} contains the trigger {trigger!r}: use another word for the trigger"
        yield _warning("trigger-and-class", message)
    elif len(other) > 2 and other in own:
        message = f"the trigger {trigger!r} has the class word {word!r} in it, which its first tokens may carry along"
        yield _warning("trigger-and-class", message)


def _warning(check: str, message: str) -> Finding:
    return Finding("warning", check, (), message)
