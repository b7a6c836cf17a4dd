"""The decoder, its cache, and checkpoints on disk."""
