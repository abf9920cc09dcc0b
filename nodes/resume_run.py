"""Resume Run: what the page's own prompt trains when it goes on with a run. No graph needs it."""

from __future__ import annotations

import uuid

from comfy_api.latest import io

from ..trainer_core.api import MAY_BE_ACCEPTED, TrainingJob, new_run, resume_run, run_called, run_state
from ..trainer_core.config import ModelConfig
from ..trainer_core.errors import RunHeld
from . import host, sockets
from .comfy_models.links import linked_again
from .following import follow, result
from .node import Node
from .shutdown import SHUTDOWN, Ending
from .train_lora import earlier_view, new_view, results

NODE_ID = "FoundryResumeRun"
AS_IT_WAS, WITH_CHANGES, AS_NEW_RUN = "as it was", "with what has changed", "as a new run"


class ResumeRun(Node):
    """Goes on with a run by its name, with the run's own job."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE_ID,
            display_name="Resume Run (Foundry)",
            category=sockets.CATEGORY,
            description="Goes on with a run of output/lora_foundry, with its own settings; the page queues it.",
            is_output_node=True,
            is_dev_only=True,
            not_idempotent=True,
            inputs=[
                io.String.Input("run", tooltip="Name of the run."),
                io.Combo.Input(
                    "how",
                    options=[AS_IT_WAS, WITH_CHANGES, AS_NEW_RUN],
                    tooltip="If pictures, captions or the learning rate are not those of its last checkpoint any more: "
                    "refuse, go on with them, or begin a new run of the same settings.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never the same: a run that was paused again is gone on with again."""
        return uuid.uuid4().hex

    @classmethod
    def execute(cls, run: str, how: str) -> io.NodeOutput:
        if SHUTDOWN.ending:
            host.end_prompt()
        state = run_state(run_called(run, host.runs_root()))
        if state.state == "finished" and how != AS_NEW_RUN:  # its graph went on with it meanwhile
            return io.NodeOutput(ui=host.shown_text(f"the run {run} has made its {state.steps} steps"))
        training = _training(run, how)
        fresh = training.run.name != run
        view = new_view(training, f"with the settings of {run}") if fresh else earlier_view(training)
        host.free_vram()
        try:
            with SHUTDOWN.held_up_by(training):
                finished = follow(training, view)
                return io.NodeOutput(ui=results(training, view).ui if finished else result(training, view))
        except Ending:
            host.end_prompt()


def _training(name: str, how: str) -> TrainingJob:
    """The training that goes on with a run, or begins with its settings."""
    run = run_called(name, host.runs_root())
    job = host.checked_job(run.job())
    model = job.model
    if model.device == ModelConfig().device:
        model = model.but(device=host.device())
    job = job.model_copy(update={"model": linked_again(model)})
    if how == AS_NEW_RUN:
        return new_run(host.runs_root(), job)
    if (owner := run_state(run).owner) is not None:
        raise RunHeld(f"{owner} works on the run {name!r}. Wait for it, or stop it")
    return resume_run(run, job, MAY_BE_ACCEPTED if how == WITH_CHANGES else ())
