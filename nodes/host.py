"""Everything that we ask of ComfyUI beyond its node API. No other file of the pack touches ComfyUI's own modules."""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.utils
import execution
import folder_paths
import torch
from aiohttp import web
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..trainer_core.api import VISION, Roots, RunFolder, is_below, register_provider
from ..trainer_core.config import JobConfig, register_model_files
from ..trainer_core.errors import ConfigError, RunError
from .comfy_models import tokenizers
from .comfy_models.provider import ComfyModels
from .lora_files import Exported, earlier, export

_LAST = 1e15
"""The number of a prompt that all others come before."""
SHIPPED_DATASET = Path(__file__).parents[1] / "trainer_core" / "embedded" / "demo_dataset"


def _clip_vision(part: str, name: str) -> Path | None:
    """A file of ComfyUI's that compares pictures, where a checkpoint is chosen; those of bases come over links."""
    path = folder_paths.get_full_path(VISION, name) if part == VISION else None
    return Path(path) if path else None


register_provider(ComfyModels())
register_model_files(_clip_vision)
tokenizers.register(Path(comfy.sd.__file__).parent)

# folders


def runs_root() -> Path:
    """Where runs live."""
    return Path(folder_paths.get_output_directory()) / "lora_foundry"


def run_folder(path: str) -> RunFolder:
    """The run that a link names.

    Raises:
        RunError: if it is none of ours: a prompt sent to the server could name any folder.
    """
    if not is_below(Path(path), runs_root()):
        raise RunError(f"{path}: is no run of this ComfyUI; runs are in {runs_root()}")
    return RunFolder.open(Path(path))


def input_root() -> Path:
    """Where the page's uploads go."""
    return Path(folder_paths.get_input_directory())


def models_root() -> Path:
    """The folder around those of all kinds of models."""
    return Path(folder_paths.models_dir)


def collected_datasets_root() -> Path:
    """Where images that came over links are written, so that a run can be resumed without the graph."""
    return Path(folder_paths.get_output_directory()) / "lora_foundry_datasets"


def roots() -> Roots:
    """The folders that workflows may name things in.

    The owner's list lies where ComfyUI's server lets no request write.
    """
    categories = [name for name in folder_paths.folder_names_and_paths if name != "custom_nodes"]
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.models_dir]
    own += [folder for name in categories for folder in folder_paths.get_folder_paths(name)]
    list_file = Path(folder_paths.get_system_user_directory("lora_foundry")) / "roots.txt"
    return Roots.of([*map(Path, own), SHIPPED_DATASET], list_file)


def dataset_folder(text: str, there: bool = False) -> Path:
    """The folder of a data set that a workflow names: as `input_folder`, or `demo` for the one that we ship.

    Args:
        there: whether it has to be there.

    Raises:
        ConfigError: for an empty name, a folder that lies in no root, or one that is not there but has to be.
    """
    if not text.strip(' "'):
        raise ConfigError("Load Dataset: `folder` is empty. Name a folder of images, or write `demo`")
    folder = input_folder(text, "folder")
    if text.strip() == "demo" and not folder.exists():
        return SHIPPED_DATASET
    if there and not folder.is_dir():
        raise ConfigError(f"Load Dataset: folder: {folder}: there is no such folder")
    return folder


def input_folder(text: str, what: str) -> Path:
    """A folder that a workflow names: absolute, or below ComfyUI's input folder.

    Raises:
        ConfigError: naming the input, for one that lies in no root.
    """
    return roots().checked(text, Path(folder_paths.get_input_directory()), f"Load Dataset: {what}")


def input_file(text: str, what: str) -> Path:
    """The same of a file that Sample Settings names."""
    return roots().checked(text, Path(folder_paths.get_input_directory()), f"Sample Settings: {what}")


def base_source(text: str) -> str:
    """Where a base comes from, as a workflow names it; a relative folder is looked for in `models/diffusers`.

    Raises:
        ConfigError: for a folder that lies in no root.
    """
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("diffusers")]
    return roots().source(text.strip(), folders, "Base Model: folder_or_repo")


def base_file(path: Path) -> Path:
    """The file that a MODEL tells it was loaded from.

    Raises:
        ConfigError: if it lies in no root: any pack can write what a MODEL tells.
    """
    return roots().model_file(str(path), Path(folder_paths.models_dir), "Base Model: model")


def checked_job(job: JobConfig) -> JobConfig:
    """The job, if all its paths lie in roots.

    Raises:
        ConfigError: naming the field of one that does not.
        DatasetError: if a data set's folder is missing or cannot be read.
    """
    roots().check_job(job)
    return job


def in_output(path: Path) -> dict[str, str]:
    """A file of the output folder as the browser asks for it."""
    relative = path.resolve().relative_to(Path(folder_paths.get_output_directory()).resolve())
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}


# models' files


def model_names(folder: str) -> list[str]:
    """The files that ComfyUI's loaders list of one of its models folders, such as `checkpoints`."""
    return list(folder_paths.get_filename_list(folder))


def model_file(folder: str, name: str) -> Path:
    """The file of a listed name.

    Raises:
        ConfigError: if no such file is listed: links may bring any text where the page shows a list.
    """
    path = folder_paths.get_full_path(folder, name) if name in model_names(folder) else None
    if path is None:
        raise ConfigError(f"{name!r:.300}: ComfyUI lists no such file in {folder}. Press R to refresh the lists")
    return Path(path)


def export_to_output(source: Path, name: str) -> Exported:
    """Copies a LoRA to `output/loras/`, unless it is in ComfyUI's lists, by whatever name."""
    return _export(source, Path(folder_paths.get_output_directory()) / "loras", name, asked=False)


def export_to_models(source: Path, name: str, asked: bool) -> Exported:
    """Copies a LoRA to `models/loras/`, unless it is there by that name; `asked`: a person chose it."""
    return _export(source, _lora_roots()[0], name, asked)


def earlier_loras(job: str, exported: Sequence[Exported]) -> list[str]:
    """Names in ComfyUI's lists that other trainings of a job's name have left."""
    return earlier(job, exported, _lora_roots())


def _lora_roots() -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths("loras")]


def _export(source: Path, folder: Path, name: str, asked: bool) -> Exported:
    exported = export(source, folder, name, _lora_roots(), asked)
    send_to_pages("saved", {"lora_name": exported.name, "older": list(exported.older)})
    return exported


# the executing node


def progress_text(text: str) -> None:
    """Shows a text under the node that is executing."""
    context = get_executing_context()
    if context is not None:
        text = text.replace("\n", "  \n")  # one of the page's two renderers takes it for Markdown
        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)


def shown_text(text: str) -> dict[str, list[str]]:
    """Shows a text under the node now, and as part of its result again whenever that comes from the cache."""
    progress_text(text)
    return {"text": [text]}


def workflow_of(prompt_id: str | None) -> str | None:
    """The id of the page's workflow that a prompt at work was made of, if it tells."""
    for _, one, _, extra, *_ in PromptServer.instance.prompt_queue.get_current_queue_volatile()[0]:
        workflow = one == prompt_id and (extra.get("extra_pnginfo") or {}).get("workflow")
        if isinstance(workflow, dict) and isinstance(workflow.get("id"), str):
            return str(workflow["id"])[:100]
    return None


def inputs_behind(class_type: str, output: int) -> list[dict[str, Any]]:
    """The inputs of nodes of a type in the prompt at work that an output of the executing node is linked to."""
    node_id, prompt_id = executing()
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    nodes: dict[str, Any] = next((prompt for _, one, prompt, *_ in running if one == prompt_id), {})
    found = [node["inputs"] for node in nodes.values() if node["class_type"] == class_type]
    return [inputs for inputs in found if [node_id, output] in inputs.values()]


def send_to_node(event: str, data: dict[str, Any], to_all: bool = False) -> None:
    """Sends an event of ours to the page that queued the prompt, or to all, with the node and workflow that execute."""
    context = get_executing_context()
    if context is not None:
        workflow = workflow_of(context.prompt_id)
        message = {"node": context.node_id, "prompt_id": context.prompt_id, "workflow": workflow, **data}
        page = None if to_all else PromptServer.instance.client_id
        PromptServer.instance.send_sync(f"lora_foundry.{event}", message, page)


def executing() -> tuple[str | None, str | None]:
    """The execution id of the node that is executing, and the id of its prompt."""
    context = get_executing_context()
    return (context.node_id, context.prompt_id) if context else (None, None)


class ProgressBar:
    """The progress bar of the executing node. Updating it raises ComfyUI's interruption if the user cancelled."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)

    def update(self, done: int, total: int) -> None:
        raise_if_interrupted()  # ComfyUI's bar looks only now and then
        self._bar.update_absolute(done, max(total, 1))


def raise_if_interrupted() -> None:
    """Raises ComfyUI's interruption if the user cancelled."""
    # The server calls such a job "cancelled" (`execution_interrupted`), but the page (1.49) shows that as it shows
    # "failed": "Job failed" is what its queue says of every cancelled job, whatever a node does
    comfy.model_management.throw_exception_if_processing_interrupted()


def end_prompt() -> NoReturn:
    """Ends the prompt as a cancel does: nothing more of it runs, and no error is shown."""
    raise comfy.model_management.InterruptProcessingException


def no_output() -> Any:
    """An output that keeps the nodes behind it from running, without an error."""
    return ExecutionBlocker(None)


# the pages


def add_route(method: str, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
    """Has the server answer a path; to be called before it listens."""
    PromptServer.instance.routes.route(method, path)(handler)


def pages_connected() -> bool:
    """Whether any page listens."""
    return bool(PromptServer.instance.sockets)


def send_to_pages(event: str, data: dict[str, Any]) -> None:
    """Sends an event of ours to every page; from any thread."""
    PromptServer.instance.send_sync(f"lora_foundry.{event}", data)


# ComfyUI's queue


_OWN_NODE = "9000000"
"""In prompts of our own: pages show the progress of a prompt on the node of the open workflow that has the same id."""


def queue_prompt(class_type: str, inputs: dict[str, Any], last: bool = False) -> str:
    """Puts a prompt of one node of ours on the queue, as a page does; gives its id.

    Args:
        last: behind all others, those too that come later.

    Raises:
        RunError: if ComfyUI refuses it.
    """
    server, prompt_id = PromptServer.instance, str(uuid.uuid4())
    prompt = {_OWN_NODE: {"class_type": class_type, "inputs": inputs}}
    checked = execution.validate_prompt(prompt_id, prompt, None)
    valid, error, outputs, _ = asyncio.run_coroutine_threadsafe(checked, server.loop).result()
    if not valid:
        raise RunError(f"ComfyUI does not take this onto its queue: {error['message']}")
    number, server.number = (_LAST if last else server.number), server.number + 1
    about = {"create_time": int(time.time() * 1000)}
    server.prompt_queue.put((number, prompt_id, prompt, about, outputs, {}))
    return prompt_id


def prompts_wait() -> bool:
    """Whether prompts are on the queue beside those that run."""
    return bool(PromptServer.instance.prompt_queue.get_current_queue_volatile()[1])


def queued_inputs(class_type: str) -> list[tuple[dict[str, Any], str]]:
    """The inputs of all nodes of a type on the queue that do not run yet, each with its prompt's id."""
    _, waiting = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    return [
        (node["inputs"], item[1])
        for item in waiting
        for node in item[2].values()
        if isinstance(node, dict) and node.get("class_type") == class_type and isinstance(node.get("inputs"), dict)
    ]


def on_prompt(listener: Callable[[], None]) -> None:
    """Has a listener hear of every prompt that a page queues, before it is on the queue."""

    def hear(data: dict[str, Any]) -> dict[str, Any]:
        listener()
        return data

    PromptServer.instance.add_on_prompt_handler(hear)


# models and memory


def sampler_names() -> dict[str, list[str]]:
    """ComfyUI's samplers and schedulers, as the fields of previews are called."""
    return {"sampler": list(comfy.samplers.KSAMPLER_NAMES), "scheduler": list(comfy.samplers.SCHEDULER_NAMES)}


def device() -> str:
    """ComfyUI's device as the core names it, so that `--cpu` and `--cuda-device` hold for training too."""
    return str(comfy.model_management.get_torch_device())


def free_vram() -> None:
    """Moves ComfyUI's models out of the GPU; they come back when they are needed."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def to_intermediate(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where and as ComfyUI keeps what goes over links."""
    return tensor.to(comfy.model_management.intermediate_device(), torch.float32)


def load_checkpoint(file: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE from a checkpoint, as ComfyUI's own loader gives them."""
    embeddings = folder_paths.get_folder_paths("embeddings")
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(file), embedding_directory=embeddings)
    return model, clip, vae
