"""One run: its loop, checkpoints, directory, progress and tracking."""
