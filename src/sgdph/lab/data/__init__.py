"""Data sets: on the device as tensors, or image files. Splits depend on the labels alone."""
