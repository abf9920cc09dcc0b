"""`choose`: which checkpoint of a run to use, and why."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from .. import api
from ..errors import ConfigError
from . import OK, base_options
from .terminal import Progress, print_json, print_table, quiet_libraries, say


def choose(args: argparse.Namespace) -> int:
    """Measures what is not known yet of a run's checkpoints, and shows all with the verdict."""
    run = api.find_run(args.run, args.runs)
    if args.known:
        choice = api.known_choice(run)
        if choice is None:
            raise ConfigError(f"{run.path}: nothing was measured yet; leave out --known")
    else:
        base = base_options(args)
        quiet_libraries()
        shown = Progress(sys.stderr)
        choice = api.choose_checkpoint(
            run,
            model=api.find_lora(args.run, args.runs, base=base).model if any(base.values()) else None,
            draw=args.draw,
            prompts=args.prompt or (),
            embedding=args.embedding,
            pictures=args.pictures or api.PICTURES,
            progress=lambda what, done, total: shown(api.Phase(what, done, total)),
        )
        shown.clear()
    if args.json:
        print_json(asdict(choice))
    else:
        _show(choice)
    return OK


def _show(choice: api.Choice) -> None:
    print_table(
        ("step", "train loss", "held-out", "leak", "likeness", "variety", ""),
        (
            (
                one.step or "base",
                *(_number(value, 4) for value in (one.train_loss, one.held_out)),
                *(_number(value, 2) for value in (one.leak, one.likeness, one.variety)),
                " ".join(_marks(choice, one.step)),
            )
            for one in (choice.base, *choice.checkpoints)
        ),
    )
    say()
    alarm = choice.alarm.reasons if choice.alarm else ()
    notes = [f"Not measured yet: step {', '.join(map(str, choice.unmeasured))}."] if choice.unmeasured else []
    for line in (*choice.reasons, *alarm, *choice.notes, *notes):
        say(line)
    if choice.embedding:
        say(f"Pictures were compared by {choice.embedding}: {choice.pictures} of each checkpoint.")
    if choice.drawn or choice.seconds >= 1:
        say(f"{choice.drawn} pictures were drawn for it; it took {api.duration(choice.seconds)}.")


def _marks(choice: api.Choice, step: int) -> list[str]:
    over = choice.alarm is not None and step >= choice.alarm.step
    return ["best"] * (step == choice.best) + ["over-trained"] * over


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
