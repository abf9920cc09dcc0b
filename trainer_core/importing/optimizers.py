"""Optimizers and learning rates, which all tools describe alike: a name, a rate, and options of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config.train import OPTIMIZERS
from .rules import Outcome, Rule, View, listed, number, section, shown, whole, word

_NEAREST = {
    **dict.fromkeys(
        ("adam", "adam8", "adamw8", "adamw_optimi", "stableadamw", "pagedadamw", "pagedadamw32bit"), "adamw"
    ),
    **dict.fromkeys(("adam8bit", "pagedadamw8bit", "adamw8bitkahan", "ademamix8bit"), "adamw8bit"),
    **dict.fromkeys(("prodigy8bit", "prodigyplusschedulefree", "prodigy"), "prodigy"),
    **dict.fromkeys(("lion8bit", "pagedlion8bit"), "lion"),
    **dict.fromkeys(("dadaptation", "dadaptadam", "dadaptationadam", "dadaptlion", "dadaptationlion"), "prodigy"),
    **{name: name for name in OPTIMIZERS},
}
"""Foreign name in lower case → ours."""
_OF_TORCH = {"sgd": "SGD", "adagrad": "Adagrad", "radam": "RAdam", "nadam": "NAdam", "sgdnesterov": "SGD"}
_OWN_RATE = {"prodigy"}
"""Those that find their own learning rate, of which 1 is the whole."""
_OPTIONS = {
    "prodigy": {"beta3", "decouple", "use_bias_correction", "safeguard_warmup", "d0", "d_coef", "growth_rate"},
    "adafactor": {"clip_threshold", "decay_rate"},
    "lion": {"use_triton", "decoupled_weight_decay"},
    "adamw": {"amsgrad"},
    "SGD": {"momentum", "nesterov", "dampening"},
    "RAdam": set[str](),
}
"""Options of our optimizers beside those that are settings of a job."""
_ALWAYS = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
"""Options of Adafactor that are always so here."""
_DECAYS = ("adamw", "stableadamw")
"""How the names begin of those whose weight decay is 0.01 where a file does not say; that of others is 0."""
_SCHEDULES = {
    **{name: name for name in ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")},
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
}


def ours(name: Any) -> str | None:
    """Our name of an optimizer; None if there is none like it."""
    plain = word(name).rpartition(".")[2].lower()
    return _NEAREST.get(plain) or _OF_TORCH.get(plain)


def named(value: Any, _: View) -> Outcome:
    """The rule of an optimizer's name."""
    made = ours(value)
    if made is None:
        say = f"{shown(value)} is not there: adamw in its place, whose learning rate is another"
        return Outcome("converted", say, {"train.optimizer": "adamw"})
    fields = {"train.optimizer": made}
    if word(value).lower() == made.lower():
        return Outcome("taken", fields=fields)
    return Outcome("converted", f"{shown(value)} is {made} here, the nearest there is", fields)


def rate(optimizer: str) -> Rule:
    """The rule of a learning rate; of optimizers that find their own it is 1, and not less than a tenth.

    Args:
        optimizer: the key of its name.
    """

    def rule(value: Any, view: View) -> Outcome:
        made = number(value)
        if made < 0.1 and ours(view[optimizer] or "adamw") in _OWN_RATE:
            return Outcome("converted", "prodigy finds its own: 1 here", {"train.learning_rate": 1.0})
        return Outcome("taken", fields={"train.learning_rate": made})

    return rule


def other_rate(key: str) -> Rule:
    """The rule of the denoiser's own learning rate, where the tool has a general one under another key."""

    def rule(value: Any, view: View) -> Outcome:
        if value == view[key]:
            return Outcome("unused", f"is the same as {key}")
        return Outcome("dropped", f"there is one learning rate beside that of text encoders: {key} counts")

    return rule


def options(name: str, epsilon: float | None = None) -> Rule:
    """The rule of an optimizer's options, a section of them.

    Args:
        name: the key of the optimizer's name.
        epsilon: what the tool gives Adam and its kin.
    """

    def rule(value: Any, view: View) -> Outcome:
        optimizer = view.read(name, word, "adamw")
        made = settings(section(value), optimizer)
        made = replace(made, fields={"train.weight_decay": decay(optimizer), **made.fields})
        if epsilon is None or ours(view[name]) not in ("adamw", "adamw8bit", "prodigy"):
            return made
        return replace(made, fields={"train.epsilon": epsilon, **made.fields})

    return rule


def decay(name: str) -> float:
    """The weight decay of an optimizer where a file does not say."""
    return 0.01 if name.lower().removeprefix("paged").startswith(_DECAYS) else 0.0


def settings(given: Mapping[str, Any], name: str) -> Outcome:
    """Options of an optimizer, by their usual names; `name` is the tool's word for it."""
    fields: dict[str, Any] = {}
    left = []
    optimizer = ours(name) or "adamw"
    for name, value in given.items():
        if name == "weight_decay":
            fields["train.weight_decay"] = number(value)
        elif name == "betas" and len(listed(value)) >= 2:
            fields["train.beta1"], fields["train.beta2"] = (number(one) for one in listed(value)[:2])
        elif name in ("eps", "epsilon") and optimizer != "adafactor":
            fields["train.epsilon"] = number(value)
        elif name in _OPTIONS.get(optimizer, ()):
            fields[f"train.optimizer_options.{name}"] = value
        elif not (name in _ALWAYS and value is _ALWAYS[name]):
            left.append(shown(name))
    if left:
        return Outcome("converted", f"{', '.join(left)}: not taken over, {optimizer} here has no such option", fields)
    return Outcome("taken", fields=fields)


def schedule(options_key: str | None) -> Rule:
    """The rule of a learning rate's schedule.

    Args:
        options_key: of the section with its options, where there is one.
    """

    def rule(value: Any, view: View) -> Outcome:
        name = word(value).lower()
        if name not in _SCHEDULES:
            say = f"{shown(value)} is not there; train.lr_scheduler stays constant"
            return Outcome("unused" if name == "" else "dropped", say)
        made = _SCHEDULES[name]
        fields: dict[str, Any] = {"train.lr_scheduler": made}
        given = section(view[options_key]) if options_key and view[options_key] else {}
        if options_key and name == "constant_with_warmup" and "num_warmup_steps" not in given:
            fields["train.warmup_steps"] = 1000
        if made == name:
            return Outcome("taken", fields=fields)
        return Outcome("converted", f"{shown(value)} is {made} here", fields)

    return rule


def schedule_options(name_key: str) -> Rule:
    """The rule of a schedule's options, a section of them."""

    def rule(value: Any, view: View) -> Outcome:
        fields: dict[str, Any] = {}
        left = []
        for name, one in section(value).items():
            if name == "num_warmup_steps":
                fields["train.warmup_steps"] = whole(one)
            elif name == "num_cycles" and view[name_key] == "cosine_with_restarts":
                fields["train.lr_cycles"] = whole(one)
            elif name == "power":
                fields["train.lr_power"] = number(one)
            else:
                left.append(shown(name))
        if left:
            return Outcome("dropped" if not fields else "converted", f"{', '.join(left)}: has no counterpart", fields)
        return Outcome("taken", fields=fields)

    return rule
