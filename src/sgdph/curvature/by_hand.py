"""Messages about gradients that may not be those of the curvature that is pending."""

from __future__ import annotations

from sgdph.user_warning import warn_user


def losses_gone(name: str) -> RuntimeError:
    """Return the error for curvature that was dropped with its loss, but may count."""
    return RuntimeError(
        f"the curvature of parameter {name} was dropped for a loss that did not exist any more "
        "when the next loss came, as after a skipped batch. But its .grad was set by hand, so it "
        "is unknown whether it belongs to that. Keep the losses of all micro-batches until "
        "optimizer.step(), or sum them (with closure=, in one closure) and call "
        "update_hessian once. If a batch was skipped, decide that before update_hessian, or call "
        "optimizer.zero_grad() right after it"
    )


def set_by_hand(name: str) -> RuntimeError:
    """Return the error for a gradient that no backward has left."""
    return RuntimeError(
        f"the .grad of parameter {name} was set by hand after several backwards, so the "
        "curvature that belongs to it is unknown. Let the backwards add up in .grad, or sum "
        "the losses and call optimizer.backward(loss) once"
    )


def warn_of_change(name: str) -> None:
    """Warn that a gradient may have others in it, so that its curvature is left out."""
    warn_user(
        f"the .grad of parameter {name} was changed by hand after its backward, after an "
        "earlier gradient was cleared. The curvature that belongs to it is unknown and is left "
        "out at this step. To sum several backwards, let them add up in .grad without clearing it",
    )
