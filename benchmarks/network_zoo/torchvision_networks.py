"""Torchvision's networks for classification, detection and segmentation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from network_zoo.network import Built, Network, classification, images

CLASSES = 5
# One for each kind of graph. Networks that only change the number, width or size of another one's
# blocks are left out.
CLASSIFICATION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large"),
    *("mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t"),
    *("swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32"),
)
# Image sizes of the networks that need more than the 64 pixels of the others.
SIZES = {
    "googlenet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    # Its windows pad smaller images with zeros, whose norm has no second derivative.
    "swin_v2_t": 256,
    "vit_b_32": 224,
}
DETECTION_SIZE = 128
FEW_PROPOSALS = {
    "rpn_pre_nms_top_n_train": 64,
    "rpn_post_nms_top_n_train": 64,
    "box_batch_size_per_image": 8,
}


def networks() -> Iterator[Network]:
    """Yield the selected classifiers, all detectors and all segmentation networks."""
    from torchvision import models

    for name in CLASSIFICATION:
        yield Network("torchvision", name, functools.partial(_classifier, name))
    for module, build in ((models.detection, _detector), (models.segmentation, _segmentation)):
        for name in models.list_models(module=module):
            yield Network("torchvision", name, functools.partial(build, name))


def _model(name: str, **arguments: Any) -> nn.Module:
    from torchvision import models

    if name not in CLASSIFICATION:
        arguments["weights_backbone"] = None
    return models.get_model(name, weights=None, num_classes=CLASSES, **arguments)


def _classifier(name: str) -> Built:
    size = SIZES.get(name, 64)
    arguments = {"input_size": (size, size)} if name == "maxvit_t" else {}
    # Otherwise they warn, and initialise their weights with scipy, which takes a minute.
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": False}
    labels = torch.randint(CLASSES, (2,))
    return Built(name, _model(name, **arguments), (images(size), labels), classification)


def _segmentation(name: str) -> Built:
    labels = torch.randint(CLASSES, (2, 64, 64))
    return Built(name, _model(name), (images(64), labels), classification)


def _detector(name: str) -> Built:
    arguments: dict[str, Any] = {}
    if not name.startswith("ssd"):
        arguments = {"min_size": DETECTION_SIZE, "max_size": DETECTION_SIZE}
    if "rcnn" in name:
        arguments |= FEW_PROPOSALS
    inputs = [torch.rand(3, DETECTION_SIZE, DETECTION_SIZE) for _ in range(2)]
    return Built(name, _model(name, **arguments), inputs, _detection_loss)


def _target() -> dict[str, Tensor]:
    masks = torch.zeros(2, DETECTION_SIZE, DETECTION_SIZE, dtype=torch.uint8)
    masks[:, 30:80, 50:60] = 1
    places = np.arange(17)
    # Keypoints must be float32, whatever the dtype of the network.
    keypoints = np.stack([30 + places, 50 + 2 * places, np.ones(17)], axis=1).astype(np.float32)
    return {
        "boxes": torch.tensor([[10.0, 14.0, 60.0, 90.0], [50.0, 30.0, 120.0, 100.0]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
        "keypoints": torch.from_numpy(keypoints).repeat(2, 1, 1),
    }


def _detection_loss(model: nn.Module, inputs: list[Tensor]) -> Tensor:
    losses = model(inputs, [_target() for _ in inputs])
    return torch.stack(list(losses.values())).sum()
