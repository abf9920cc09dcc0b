"""Folders in the desktop's file manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .asked import Refused


def show(folder: Path) -> None:
    """Opens a folder, and does not wait for it to be closed.

    Raises:
        Refused: if this machine has no desktop.
    """
    if sys.platform == "win32":
        os.startfile(folder)  # noqa: S606 - the folder of a run that we found ourselves
        return
    program = "open" if sys.platform == "darwin" else "xdg-open"
    desktop = sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not desktop or not shutil.which(program):
        raise Refused(409, f"this computer has no desktop to open {folder} in")
    subprocess.Popen([program, str(folder)], stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
