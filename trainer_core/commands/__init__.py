"""The commands of `lora-foundry`, a file for each group. Each takes the parsed arguments and returns an exit code."""

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes. argparse itself leaves with 2 on wrong usage."""
