"""Clips: what a video's file says of its frames, which of them are trained on, and their pixels and sound."""
