"""What the Hessian blocks of a run's channel-wise parameters look like, checkpoint by checkpoint.

``checkpoints`` finds what a run has, ``parameters`` what can be looked at, ``choice`` what fits a
budget; ``measure`` takes the blocks of a checkpoint, ``sketch`` keeps what is needed of them,
``multipliers`` reads what the optimizer holds; ``figures`` is what comes out, ``tables``,
``pictures`` and ``report`` show it, and ``command`` ties them together; ``records`` does without a
directory.
"""
