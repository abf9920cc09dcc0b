"""Checks of what lies beside the images: masks, control images, metadata, kohya's folders."""

from __future__ import annotations

from collections.abc import Iterator

from ..folder import kohya_folder
from .report import Finding
from .survey import Circumstances, Survey


def check_folder(survey: Survey, _: Circumstances) -> Iterator[Finding]:
    """Left out files, images that lack masks or controls, metadata of absent ones, idle kohya folders, opaque ones."""
    dataset, folder = survey.dataset, survey.folder
    for check, files, message in survey.left_out:
        yield Finding("warning", check, tuple(files), message, folder)
    for beside, keys in survey.lacking.items():
        message = f"nothing of the same name in {beside}. Put it there (its suffix may differ), or remove the image"
        yield Finding("error", "missing-counterpart", tuple(keys), message, folder)
    if survey.absent:
        message = "named in metadata, but not there. Correct `file_name`, or remove the rows"
        yield Finding("warning", "absent-image", tuple(survey.absent), message, folder)
    numbered = [picture.key for picture in survey.pictures if kohya_folder(picture.key)[1]]
    names = tuple(dict.fromkeys(key.split("/")[0] for key in numbered))
    if numbered and not dataset.kohya_folders and len(numbered) == len(survey.pictures):
        message = "named as in kohya's scripts, but kohya_folders is off: their images are not repeated. Switch it on"
        yield Finding("warning", "kohya-folders", names, message, folder)
    elif dataset.kohya_folders and survey.pictures and not numbered:
        message = "kohya_folders is on, but no folder is named as in `10_name`"
        yield Finding("warning", "kohya-folders", (), message, folder)
    if dataset.alpha_mask:
        opaque = [picture.key for picture in survey.readable if picture.look and not picture.look.transparent]
        if opaque:
            message = "have no transparency, which is to be the mask: all of them is trained on"
            yield Finding("warning", "opaque", tuple(opaque), message, folder)
