"""What the command line says when it fails."""

from __future__ import annotations

import pytest

from trainer_core.cli import main


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one message of a command that fails."""
    assert main(list(argv)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("lora-foundry: ")
    assert "Traceback" not in captured.err
    return captured.err
