"""A timm network, optimizer and scaler by timm's own names, on scikit-learn's digits.

pip install '.[timm]' scikit-learn
python examples/timm_digits.py
"""

from __future__ import annotations

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

import sgdph
from sgdph.integrations.timm import register


def main(epochs: int = 6) -> float:
    """Train, and return the averaged weights' accuracy on the held-out quarter, from 0 to 1."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    x = functional.interpolate(x, size=32)
    train, held_out = random_split(TensorDataset(x, torch.tensor(labels)), [0.75, 0.25])

    register()
    model = timm.create_model("test_resnet", pretrained=False, in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(
        model, "sgdph", lr=0.05, weight_decay=5e-4, param_group_fn=sgdph.param_groups
    )
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs, lr_min=1e-4)
    average = ModelEmaV3(model, decay=0.9)
    for epoch in range(epochs):
        model.train()
        for images, labels in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            # As timm's training script would, for any optimizer that says is_second_order.
            loss.backward(create_graph=optimizer.is_second_order)
            optimizer.step()
            average.update(model)
        scheduler.step(epoch + 1)

    x, y = next(iter(DataLoader(held_out, batch_size=len(held_out))))
    average.module.eval()
    with torch.no_grad():
        return float((average.module(x).argmax(1) == y).float().mean())


if __name__ == "__main__":
    print(f"accuracy on held-out digits: {main():.1%}")
