"""What is made of an image file, by torchvision's transforms (v2): bytes ``(3, S, S)``."""

from __future__ import annotations

from typing import Any

# ImageNet's usual evaluation: the shorter side to 256 for a window of 224.
RESIZE, WINDOW = 256, 224


def training_transform(size: int) -> Any:
    """Cut out a random part (8% to 100% of the area), resize it, and mirror it at random.

    ImageNet's usual augmentation (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015).

    Args:
        size: Height and width of the outcome, pixels.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )


def evaluation_transform(name: str, size: int) -> Any:
    """Resize an image for evaluation.

    ImageNet: the shorter side to 256/224 of the size, then the middle. Mini-ImageNet: the whole
    image to the size, as the SGD-PH paper says ("resized to 224").

    Args:
        name: The set's name.
        size: Height and width of the outcome, pixels.
    """
    from torchvision.transforms import v2

    if name == "imagenet":
        shorter = round(size * RESIZE / WINDOW)
        return v2.Compose(
            [v2.Resize(shorter, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
        )
    return v2.Compose([v2.Resize((size, size), antialias=True), v2.PILToTensor()])
