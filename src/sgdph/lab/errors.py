"""What a command refuses, and what it tells the shell."""


class LabError(ValueError):
    """What was asked for cannot be done as asked; the message says what to do instead."""


# Exit codes.
OK = 0
# A run diverged, one failed, or something that was asked for is not as it should be.
DIVERGED = FAILED = NOT_WELL = 1
WRONG_USAGE = 2
# 128 and the number of SIGINT.
INTERRUPTED = 130
# 128 and the number of SIGPIPE: as of a program that the signal ends.
OUTPUT_CLOSED = 141
