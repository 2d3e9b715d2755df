"""What a training step costs: time, memory and FLOPs of several optimizers in one process.

``systems`` says what is compared, ``step`` takes a step of it, ``memory`` and ``flops`` watch one,
``measure`` alternates them; ``figures`` is what comes out, ``summary`` makes ratios of it, and
``report`` and ``pictures`` show them.
"""
