"""Captions written by models that are on this machine; nothing is downloaded, and no code of a model's author is run."""
