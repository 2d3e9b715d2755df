"""Inspection of the Hessian blocks of a run's channel-wise parameters, checkpoint by checkpoint.

``checkpoints`` finds a run's checkpoints, ``parameters`` lists the parameters with blocks, and
``choice`` selects the blocks that fit a budget. ``measure`` computes the blocks at a checkpoint,
``sketch`` keeps summaries of them, and ``multipliers`` reads what the optimizer holds. ``figures``
holds the results. ``tables``, ``pictures`` and ``report`` present them. ``command`` is the command,
and ``records`` runs an inspection without a directory.
"""
