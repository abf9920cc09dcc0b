"""Captions written by models that are on this machine; nothing is downloaded, and no code of its author is run."""
