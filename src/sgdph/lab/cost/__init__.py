"""The cost of a training step: time, memory and FLOPs of several optimizers in one process.

``systems`` defines what is compared. ``step`` takes a training step of a system. ``memory`` and
``flops`` measure a step. ``measure`` alternates the systems. ``figures`` holds the results,
``summary`` computes ratios from them, and ``report`` and ``pictures`` present these.
"""
