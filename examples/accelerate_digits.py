"""An Accelerate loop with gradient accumulation and clipping, on scikit-learn's digits.

pip install '.[accelerate]' scikit-learn
python examples/accelerate_digits.py
accelerate launch --cpu --num_processes 2 examples/accelerate_digits.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

import sgdph
from sgdph.integrations.accelerate import backward


def network() -> nn.Sequential:
    """A small network with group norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def main(epochs: int = 5) -> float:
    """Train, and return the accuracy on the held-out quarter, from 0 to 1."""
    set_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(x, torch.tensor(labels))
    train, held_out = random_split(data, [0.75, 0.25])

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = network()
    model, optimizer, loader, test_loader = accelerator.prepare(
        net,
        sgdph.SGDPH(sgdph.param_groups(net, weight_decay=5e-4), lr=0.05),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(held_out, batch_size=256),
    )
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = functional.cross_entropy(model(images), labels)
                backward(accelerator, optimizer, loss)  # for accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    model.eval()
    right = []
    for images, labels in test_loader:
        with torch.no_grad():
            hits = model(images).argmax(1) == labels
        right.append(accelerator.gather_for_metrics(hits))
    return float(torch.cat(right).float().mean())


if __name__ == "__main__":
    accuracy = main()
    if Accelerator().is_main_process:
        print(f"accuracy on held-out digits: {accuracy:.1%}")
