"""A run as a folder: its checkpoints, lock, queue, requests and events. Knows nothing of torch modules."""
