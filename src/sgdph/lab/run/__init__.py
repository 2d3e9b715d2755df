"""One run: its loop, checkpoints, directory and tracking."""
