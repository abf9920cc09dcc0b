"""The run: loop, optimizer, checkpoints, run folder, events, job thread."""
