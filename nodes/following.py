"""A training as ComfyUI shows it while it runs (on its node, in its bar and console), and how a cancel gets to it."""

from __future__ import annotations

import logging
import time
from typing import Any

from ..trainer_core.api import TrainingJob
from . import host
from .console import Console
from .controls import reachable
from .shutdown import SHUTDOWN
from .training_view import TrainingView

_LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.05


def follow(training: TrainingJob, view: TrainingView) -> bool:
    """Starts a training and shows its progress until it ends.

    Returns:
        Whether all steps are made; else it was paused or stopped on request.

    Raises:
        FoundryError: what made the training fail.
        BaseException: ComfyUI's interruption, after the training has saved and ended: the user cancelled.
    """
    bar, ending = host.ProgressBar(), False
    console = Console(training.run.name)
    with reachable(training, *host.executing()):
        training.start()
        try:
            while training.alive:
                if SHUTDOWN.ending and not ending:
                    ending = True
                    _LOG.info("LoRA Foundry: %s saves and stops before ComfyUI ends", training.run.name)
                host.raise_if_interrupted()
                _show(training, view, console, bar)
                if view.state == "paused":  # by another process; a prompt that waits would be in the way of others
                    training.pause(leave=True)
                time.sleep(_POLL_SECONDS)
            _show(training, view, console, bar)
        except BaseException:
            training.stop()
            training.join(None)
            _show(training, view, console)
            raise
        finally:
            console.end()
    if training.error is not None:
        raise training.error
    if training.outcome != "finished" and SHUTDOWN.ending:
        host.end_prompt()
    return training.outcome == "finished"


def _show(training: TrainingJob, view: TrainingView, console: Console, bar: host.ProgressBar | None = None) -> None:
    """Draws what is new."""
    events = training.events()
    if not events:
        return
    known = len(view.samples), view.samples[-1:]
    for event in events:
        view.apply(event)
        console.apply(event)
    new = view.samples and known != (len(view.samples), view.samples[-1:])
    host.send_to_node(
        "progress",
        {
            "run": training.run.name,
            "text": view.text(),
            "answered": dict(view.answered),  # sent later
            "shown": _shown(training) if new else None,
        },
        to_all=True,
    )
    if bar is not None:
        bar.update(view.step, view.steps)


def _shown(training: TrainingJob) -> dict[str, Any]:
    """The last previews, as the page asks for them (of videos the animated files), and what each of them shows.

    They are not sent as ComfyUI's live previews, which are pictures and stay over what a node shows at its end.
    """
    run, prompts = training.run, training.job.sample.prompts
    clips = run.sample_clips()
    paths = clips or run.sample_paths()
    labels = []
    for path in paths:
        step, index = int(path.parent.name.removeprefix("step_")), int(path.stem)
        prompt = prompts[index] if index < len(prompts) else ""
        labels.append({"prompt": prompt, "step": step, "drawn_by": "LoRA" if step else "base"})
    images = [host.in_output(path) for path in paths]
    return {"images": images, "labels": labels, **({"animated": (True,)} if clips else {})}


def result(training: TrainingJob, view: TrainingView, saved_as: str | None = None) -> dict[str, Any]:
    """What the node shows when it is done; `saved_as` is the finished LoRA's name."""
    # pages give it to whichever node has the id at that moment
    whose = {"run": [training.run.name], "workflow": [host.workflow_of(host.executing()[1]) or ""]}
    return {**_shown(training), "text": [view.text(saved_as)], **whose}
