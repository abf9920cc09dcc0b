"""Bases that are ComfyUI's own loaded models: whatever architecture and format ComfyUI samples, we train.

Imports `comfy`, and nothing of ComfyUI's server, executor or folders: the command line uses it as a library.
"""
