"""What the Hessian blocks of a run's channel-wise parameters look like, checkpoint by checkpoint.

``parameters`` says what can be looked at, ``choice`` what fits a budget, ``sketch`` what is kept of
a block, ``measure`` takes the blocks of a checkpoint; ``figures`` is what comes out, ``tables``,
``pictures``, ``heatmaps`` and ``report`` show it, and ``command`` ties them together.
"""
