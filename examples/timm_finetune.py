"""Fine-tune a timm network with layer decay, on scikit-learn's digits.

pip install '.[timm]' scikit-learn
python examples/timm_finetune.py

Nothing is downloaded: the network is trained on the digits 0 to 4 first, and those weights stand
for ``pretrained=True``. From there it learns 5 to 9, from ten images of each. This shows how; on so
small a task random weights come as far.
"""

from __future__ import annotations

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import sgdph
from sgdph.integrations.timm import PartialHessianScaler, by_role


def digits(first: int) -> tuple[Tensor, Tensor]:
    """Read five classes of digits from ``first`` up, labelled 0 to 4, in random order."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    chosen = ((y >= first) & (y < first + 5)).nonzero().flatten()
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    return functional.interpolate(x[chosen], size=32), y[chosen] - first


def train(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, layer_decay: float) -> None:
    """Train a model; each layer's lr is ``layer_decay`` times that of the layer above it."""
    groups = param_groups_layer_decay(model, weight_decay=5e-4, layer_decay=layer_decay)
    # timm's groups do not know the roles: by_role splits them, and keeps lr_scale and weight_decay.
    optimizer = sgdph.SGDPH(by_role(model, groups), lr=0.05)
    # timm's schedulers are what multiplies each group's lr with its lr_scale.
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs)
    loss_scaler = PartialHessianScaler("cpu")  # for timm.utils.NativeScaler
    loader = DataLoader(TensorDataset(*data), batch_size=25, shuffle=True, drop_last=True)
    model.train()
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters())
        scheduler.step(epoch + 1)


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the share of images that the model classifies correctly, from 0 to 1."""
    x, y = data
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main(epochs: int = 5) -> float:
    """Pretrain, fine-tune, and return the accuracy on the held-out digits 5 to 9, from 0 to 1."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, in_chans=1, num_classes=5)
    train(model, digits(0), epochs, layer_decay=1.0)

    x, y = digits(5)
    few = torch.cat([(y == label).nonzero().flatten()[:10] for label in range(5)])
    rest = torch.ones(len(y), dtype=torch.bool).index_fill_(0, few, False)
    model.reset_classifier(5)
    train(model, (x[few], y[few]), 8 * epochs, layer_decay=0.7)
    return accuracy(model, (x[rest], y[rest]))


if __name__ == "__main__":
    print(f"accuracy on the held-out digits 5 to 9: {main():.1%}")
