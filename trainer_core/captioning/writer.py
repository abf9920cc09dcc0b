"""A model that looks at a picture and writes, by transformers' own classes and from a folder alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..errors import BaseModelError, first_line
from .models import KINDS, CaptionModel

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTION = "Describe this image in one paragraph, as a caption for training an image model. Only the description."
_FLORENCE = "<MORE_DETAILED_CAPTION>"
_UNPROMPTED = {"blip", "blip-2"}
"""Kinds that write without being asked; a question would be the caption's beginning."""
_EDGE = 1024
"""Pixels of a picture's longer edge, at most: some models take time and memory by the square of it."""
_LONGEST = 300
"""Tokens of a caption."""


class CaptionWriter:
    """A captioning model in memory."""

    def __init__(self, model: CaptionModel, device: str) -> None:
        """Loads the model.

        Raises:
            BaseModelError: if it cannot be used, its files are damaged, or there is too little memory.
        """
        if model.problem:
            raise BaseModelError(f"{model.name}: {model.problem}")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._torch, self._device, self._kind, self.name = torch, torch.device(device), model.kind, model.name
        dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        folder = str(model.folder)
        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.ERROR)  # what it says of weights is told below, in one sentence
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
            self._model, info = loaded
            lacking = sorted(info["missing_keys"])
            if lacking:
                raise BaseModelError(
                    f"{model.name}: its weights are named otherwise than those of transformers' own "
                    f"{KINDS[self._kind]} ({len(lacking)} are missing, such as {lacking[0]}). Get the copy that was "
                    "converted for transformers"
                )
            self._model.to(self._device).eval().requires_grad_(False)
        except BaseModelError:
            raise
        except torch.OutOfMemoryError:
            raise BaseModelError(f"{model.name}: does not fit into the device's memory. Take a smaller one") from None
        except Exception as error:
            raise BaseModelError(f"{model.name}: cannot be loaded ({first_line(error)})") from error
        finally:
            logger.setLevel(level)

    def write(self, picture: Image, question: str = "") -> str:
        """A caption of a picture (RGB); the same for the same picture, because nothing is drawn at random.

        Args:
            question: what the model is asked; empty: what its kind usually is.

        Raises:
            BaseModelError: if the model fails on it.
        """
        shown = picture.copy()
        shown.thumbnail((_EDGE, _EDGE))
        try:
            text = self._prompt(question.strip())
            inputs = self._processor(images=shown, text=text, return_tensors="pt") if text else None
            inputs = self._processor(images=shown, return_tensors="pt") if inputs is None else inputs
            given = {name: self._placed(value) for name, value in inputs.items()}
            with self._torch.inference_mode():
                tokens = self._model.generate(**given, max_new_tokens=_LONGEST, do_sample=False)
            asked = given["input_ids"].shape[1] if "input_ids" in given and self._repeats(tokens, given) else 0
            written = self._processor.batch_decode(tokens[:, asked:], skip_special_tokens=True)[0]
            return " ".join(written.split())  # a caption is one line
        except Exception as error:
            raise BaseModelError(f"{self.name}: fails on a picture ({first_line(error)})") from error

    def _placed(self, value: Any) -> Any:
        value = value.to(self._device)
        return value.to(self._model.dtype) if value.is_floating_point() else value

    def _repeats(self, tokens: Any, given: Any) -> bool:
        """Whether an answer begins with the question, as those of decoders do."""
        ids = given["input_ids"]
        return tokens.shape[1] >= ids.shape[1] and bool((tokens[:, : ids.shape[1]] == ids).all())

    def _prompt(self, question: str) -> str | None:
        """What the processor is given beside the picture."""
        if self._kind == "florence2":  # it knows tasks, and no questions
            return question if question.startswith("<") else _FLORENCE
        if self._kind in _UNPROMPTED:
            return question or None
        if self._kind == "paligemma":
            return f"<image>{question or 'caption en'}"
        if self._kind == "instructblip":
            return question or QUESTION
        if getattr(self._processor, "chat_template", None) or getattr(self._processor.tokenizer, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question or QUESTION}]
            chat = [{"role": "user", "content": content}]
            return str(self._processor.apply_chat_template(chat, add_generation_prompt=True))
        mark = getattr(self._processor, "image_token", "<image>")
        return f"USER: {mark}\n{question or QUESTION} ASSISTANT:"
