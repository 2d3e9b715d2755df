"""Data sets, as tensors on the device or as image files. Splits depend only on the labels."""
