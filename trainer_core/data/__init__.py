"""From folders to batches: items, captions, buckets, cached latents and text embeddings, and their order."""
