"""A Lightning module that knows nothing of SGD-PH, on scikit-learn's digits.

pip install '.[lightning]' scikit-learn
python examples/lightning_digits.py
"""

from __future__ import annotations

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

import sgdph
from sgdph.integrations.lightning import PartialHessianCallback


class Digits(lightning.LightningModule):
    """A small convolutional network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss; Lightning runs the backward and the step."""
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> sgdph.SGDPH:
        """Take Newton steps for batch norm's scales and shifts."""
        return sgdph.SGDPH(sgdph.param_groups(self, weight_decay=5e-4), lr=0.05)


def main(epochs: int = 5) -> float:
    """Train, and return the accuracy on the held-out quarter, from 0 to 1."""
    lightning.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(x, torch.tensor(labels))
    train, held_out = random_split(data, [0.75, 0.25])
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PartialHessianCallback()],  # the one line that SGD-PH needs
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=512)
    trainer.fit(Digits(), *loaders)
    return float(trainer.callback_metrics["accuracy"])


if __name__ == "__main__":
    print(f"accuracy on held-out digits: {main():.1%}")
