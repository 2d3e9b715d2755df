"""Fixtures that the tests of several frameworks share."""

import pytest


@pytest.fixture
def no_accelerate_state() -> None:
    """Reset the state that Accelerate, and Trainer with it, keep for the whole process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
