"""Dense Hessian blocks of small networks, for ``benchmarks/probes.py`` to draw probes on.

Blocks are taken in float32, because convolutions in float64 are four times as slow on a CPU, and
handed on in float64. The products are the package's own; its tests hold them to dense oracles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgdph
from sgdph.autograd.graph import Region
from sgdph.curvature.estimators import curvature_of_gradients, gradients_with_graph
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.networks.models import build_model

BATCH = 25


class RowEncoder(nn.Module):
    """Two pre-norm layers of width 32 over the 28 rows of an image, the mean, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(28, 32)
        self.places = nn.Parameter(0.02 * torch.randn(28, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, 1, 28, 28)`` to logits ``(N, 10)``."""
        x = self.rows(images.squeeze(1)) + self.places
        with sdpa_kernel(SDPBackend.MATH):
            for layer in self.layers:
                x = layer(x)
        return self.fc(self.norm(x).mean(1))


def group_norm_net(in_channels: int = 1) -> nn.Module:
    """Build three convolutions with group norm, on images of half the size."""
    stages: list[nn.Module] = [nn.AvgPool2d(2)]
    for before, after, stride in ((in_channels, 16, 1), (16, 32, 2), (32, 64, 2)):
        stages += [nn.Conv2d(before, after, 3, stride=stride, padding=1)]
        stages += [nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def layer_norm_net() -> nn.Module:
    """Build a perceptron with two hidden layers of 256 and layer norm."""
    hidden = [nn.Linear(784, 256), nn.LayerNorm(256), nn.ReLU()]
    hidden += [nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8 (BN)": lambda: build_model("resnet8", in_channels=1, classes=10),
    "conv net (GN)": group_norm_net,
    "encoder (LN)": RowEncoder,
    "perceptron (LN)": layer_norm_net,
}


def newton_parameters(model: nn.Module) -> list[Tensor]:
    """List the parameters that SGD-PH refreshes, in the order of its cycle."""
    return list(sgdph.param_groups(model)[0]["params"])


def batches(images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass over a set once, in an order of the seed's; the images are normalised already."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for chosen in order.split(BATCH):
        yield images[chosen], labels[chosen]


def normalised(data: Dataset) -> tuple[Tensor, Tensor]:
    """Return the training and the test images, of mean 0 and deviation 1 in training."""
    return data.normalise(data.train_images), data.normalise(data.test_images)


def blocks_of(loss: Tensor, params: list[Tensor]) -> list[Tensor]:
    """Take the dense block ``(n, n)`` of each parameter, in float64."""
    blocks = []
    for p in params:
        (g,) = gradients_with_graph(loss, [p], Region(loss, [p]))
        rows = torch.eye(p.numel()).view(-1, *p.shape)
        products = [torch.autograd.grad(g, p, row, retain_graph=True)[0] for row in rows]
        blocks.append(torch.stack(products).view(p.numel(), -1).double())
    return blocks


def joint_block(loss: Tensor, params: list[Tensor]) -> Tensor:
    """Take the dense Hessian of all parameters together, in float64."""
    gradients = gradients_with_graph(loss, params, Region(loss, params))
    rows = []
    for g in gradients:
        for row in torch.eye(g.numel()).view(-1, *g.shape):
            parts = torch.autograd.grad(
                g, params, row, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).double()


def fixed_weights(name: str, count: int, joint: bool) -> list[list[Tensor]]:
    """Train a network for two epochs of SGDM, then take its blocks on ``count`` test batches.

    Returns:
        Per batch its parameters' blocks, or with ``joint`` the single Hessian of them all.
    """
    data = load_dataset("mnist5k")
    train, test = normalised(data)
    torch.manual_seed(0)
    model = NETWORKS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for epoch in range(2):
        for x, y in batches(train, data.train_labels, epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    newton = newton_parameters(model)
    found = []
    for (x, y), _ in zip(batches(test, data.test_labels, 0), range(count), strict=False):
        loss = F.cross_entropy(model(x), y)
        found.append([joint_block(loss, newton)] if joint else blocks_of(loss, newton))
    return found


@dataclass(frozen=True)
class Course:
    """A run of SGD-PH with cyclic Hutchinson, in batches of 25; lr falls to 0 along a cosine.

    Attributes:
        build: Makes the network.
        data: The set's name, see :func:`sgdph.lab.data.load_dataset`.
        train_size: Images of a stratified subset to train on; ``None`` is all.
        lr: Learning rate at the start.
        weight_decay: Of all parameters.
        epochs: How long.
        checkpoints: After which epochs the averages are looked at.
        held_out: Batches of test images that the diagonal is averaged over.
    """

    build: Callable[[], nn.Module]
    data: str
    train_size: int | None
    lr: float
    weight_decay: float
    epochs: int
    checkpoints: tuple[int, ...]
    held_out: int


COURSES = {
    "resnet8 (BN), MNIST-5k": Course(
        NETWORKS["resnet8 (BN)"], "mnist5k", None, 0.1, 5e-3, 12, (1, 3, 6, 12), 8
    ),
    "conv net (GN), 10,000 of CIFAR-10": Course(
        lambda: group_norm_net(3), "cifar10", 10_000, 0.03, 5e-4, 6, (1, 3, 6), 16
    ),
}


@dataclass
class Trajectory:
    """What a run of SGD-PH met.

    Attributes:
        visits: Per Newton parameter, in turn, its block at each of its refreshes.
        checkpoints: Per checkpoint: epochs done; per parameter the refreshes so far, the average
            ``D̂`` that the optimizer holds and the diagonal's mean over held-out batches.
    """

    visits: list[list[Tensor]] = field(default_factory=list)
    checkpoints: list[tuple[int, list[int], list[Tensor], list[Tensor]]] = field(
        default_factory=list
    )


def trajectory(course: Course, seed: int, data_dir: Path | None) -> Trajectory:
    """Run a course and take the dense blocks that it meets."""
    data = load_dataset(course.data, train_size=course.train_size, data_dir=data_dir)
    train, test = normalised(data)
    torch.manual_seed(seed)
    model = course.build()
    groups = sgdph.param_groups(model)
    settings = {"lr": course.lr, "weight_decay": course.weight_decay, "seed": seed}
    optimizer = sgdph.SGDPH(groups, estimator="hutchinson", **settings)
    steps = course.epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    newton = newton_parameters(model)
    met = Trajectory([[] for _ in newton])
    for epoch in range(1, course.epochs + 1):
        for x, y in batches(train, data.train_labels, 1000 * seed + epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            turn = optimizer.param_groups[0]["cursor"]
            met.visits[turn] += blocks_of(loss, [newton[turn]])
            optimizer.update_hessian(loss)
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch in course.checkpoints:
            averages = [_average(optimizer, p) for p in newton]
            diagonals = _held_out_diagonals(model, test, data.test_labels, course.held_out)
            met.checkpoints.append((epoch, [len(v) for v in met.visits], averages, diagonals))
    return met


def _average(optimizer: sgdph.SGDPH, p: Tensor) -> Tensor:
    state, beta2 = optimizer.state[p], optimizer.param_groups[0]["hessian_momentum"]
    return (state["hessian"].abs() / (1 - beta2 ** state["refreshes"])).double()


def _held_out_diagonals(
    model: nn.Module, images: Tensor, labels: Tensor, count: int
) -> list[Tensor]:
    """Average the exact diagonals over the first test batches, and leave the model as it was."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    newton = newton_parameters(model)
    total = [torch.zeros(p.numel(), dtype=torch.float64) for p in newton]
    for (x, y), _ in zip(batches(images, labels, 0), range(count), strict=False):
        loss = F.cross_entropy(model(x), y)
        for p, sum_ in zip(newton, total, strict=True):
            gradients = gradients_with_graph(loss, [p], Region(loss, [p]))
            (diagonal,) = curvature_of_gradients(gradients, [p], "exact")
            sum_ += diagonal.flatten().double() / count
    for name, b in model.named_buffers():
        b.copy_(buffers[name])
    return total
