"""The names of the laboratory's own networks."""

from __future__ import annotations

from sgdph.lab.errors import LabError, unknown_name

RESNETS = ("resnet8", "resnet20", "resnet56", "resnet18", "resnet50")
VGGS = ("vgg8", "vgg11", "vgg19", "vgg19-narrow")
# With batch norm, without any norm, and without but weight-normalised.
FORMS = ("-bn", "-plain", "-wn")
OTHERS = ("resnet8-gn", "resnet8-in", "resnet8-ln", "transformer")

# Before the name of a network that is another library's.
TORCHVISION, TIMM = "torchvision:", "timm:"

# The explicit name of what a short one stands for: ResNets have batch norm, the original VGGs none.
ALIASES = {
    **{f"{name}-bn": name for name in RESNETS},
    **{f"{name}-plain": name for name in VGGS},
}
NETWORKS = (*(name + form for name in RESNETS + VGGS for form in ("", *FORMS)), *OTHERS)

# How the help and error messages show them.
PATTERNS = ("{" + ",".join(RESNETS + VGGS) + "}[-bn,-plain,-wn]", *OTHERS)


def canonical(name: str) -> str:
    """Return the shorter name of a network that has two, so that its runs are told for the same."""
    return ALIASES.get(name, name)


def check_model(name: str) -> None:
    """Raise LabError unless a network's name is one of ours or says whose it is."""
    if name not in NETWORKS and not name.startswith((TORCHVISION, TIMM)):
        listed = (
            f"docs/optimizers-and-models.md lists them; {TORCHVISION}NAME and {TIMM}NAME go too"
        )
        raise LabError(unknown_name("network", name, NETWORKS, listed))
