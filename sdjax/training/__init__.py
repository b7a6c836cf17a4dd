"""The run: its loop, its folder, and what watches it."""
