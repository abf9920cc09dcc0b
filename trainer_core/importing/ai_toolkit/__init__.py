"""AI Toolkit's jobs."""
