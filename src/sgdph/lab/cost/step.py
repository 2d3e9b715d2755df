"""One training step of one system, on a workload that all systems share."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.cost.figures import CostSettings
from sgdph.lab.cost.memory import bytes_of
from sgdph.lab.cost.systems import Kind, System
from sgdph.lab.data.text import CHARACTERS
from sgdph.lab.errors import LabError
from sgdph.lab.networks import encoder, transformer
from sgdph.lab.networks.external import is_external
from sgdph.lab.networks.gpt import GPT
from sgdph.lab.networks.models import build_model
from sgdph.lab.networks.registry import NETWORKS

CIFAR_SIZE, IMAGENET_SIZE = 32, 224
CIFAR_CLASSES, IMAGENET_CLASSES = 10, 1000


@dataclass(frozen=True)
class TextNetwork:
    """A network over token ids.

    Attributes:
        build: Builds the network.
        vocabulary: Number of distinct tokens.
        length: Number of tokens in a text.
        classes: Number of classes of a text; ``None`` for a language model, which predicts each
            next token.
        positions_last: Whether its logits are ``(N, vocabulary, T)`` instead of
            ``(N, T, vocabulary)``.
    """

    build: Callable[[], nn.Module]
    vocabulary: int
    length: int
    classes: int | None = None
    positions_last: bool = False


def _gpt(vocabulary: int, length: int, width: int, heads: int, layers: int) -> TextNetwork:
    return TextNetwork(lambda: GPT(vocabulary, length, width, heads, layers), vocabulary, length)


TEXT_NETWORKS: Mapping[str, TextNetwork] = {
    "encoder12": TextNetwork(
        lambda: encoder.Encoder(CIFAR_CLASSES), encoder.VOCABULARY, encoder.LENGTH, CIFAR_CLASSES
    ),
    "gpt6": _gpt(vocabulary=1000, length=64, width=256, heads=4, layers=6),
    # A sixth of GPT-2's 12 layers and of its 50,257 tokens, so that the output layer takes the same
    # share of a step as in GPT-2.
    "gpt2-2": _gpt(vocabulary=50_257 // 6, length=512, width=768, heads=12, layers=2),
    # The only one of these that sgdph train has, too.
    "transformer": TextNetwork(
        lambda: transformer.Transformer(len(CHARACTERS)),
        len(CHARACTERS),
        transformer.LENGTH,
        positions_last=True,
    ),
}


@dataclass(frozen=True)
class Workload:
    """A network and a batch, on the device.

    Attributes:
        model: The network. Each system trains a copy.
        inputs: Images ``(N, 3, H, W)``, or token ids ``(N, T)``.
        targets: Classes ``(N,)``; for a language model, the next tokens ``(N, T)``.
        autocast: Whether the forward pass runs under bfloat16 autocast.
        positions_last: As in :class:`TextNetwork`.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    autocast: bool
    positions_last: bool = False

    def loss(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the mean cross-entropy of the batch; a language model's is over all positions."""
        device = self.inputs.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocast):
            logits = model(self.inputs)
            if self.positions_last:
                return F.cross_entropy(logits, self.targets)
            return F.cross_entropy(logits.flatten(0, -2), self.targets.flatten())


def build_network(model: str) -> nn.Module:
    """Build a network of ``TEXT_NETWORKS`` or :func:`sgdph.lab.networks.models.build_model`.

    Raises:
        LabError: If the network cannot be built, for example because its name is unknown.
    """
    if model in TEXT_NETWORKS:
        return TEXT_NETWORKS[model].build()
    classes = IMAGENET_CLASSES if is_external(model) else CIFAR_CLASSES
    try:
        return build_model(model, in_channels=3, classes=classes)
    except LabError as error:
        alone = ", ".join(name for name in TEXT_NETWORKS if name not in NETWORKS)
        raise LabError(f"--model: {error} (and {alone}, for cost alone)") from error


def build_workload(
    model: str, batch_size: int, settings: CostSettings, device: torch.device
) -> Workload:
    """Draw weights, random inputs and labels from the seed.

    Args:
        model: The network's name, as for :func:`build_network`.
        batch_size: Number of inputs in the batch.
        settings: The seed, the memory format and the precision.
        device: Device of the network and the batch.

    Raises:
        LabError: If the network cannot be built.
    """
    torch.manual_seed(settings.seed)
    network = build_network(model).to(device)
    inputs, targets = _batch(model, batch_size)
    inputs = inputs.to(device)
    if settings.channels_last and inputs.ndim == 4:
        network = network.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    autocast = settings.precision == "bfloat16"
    positions_last = model in TEXT_NETWORKS and TEXT_NETWORKS[model].positions_last
    return Workload(network, inputs, targets.to(device), autocast, positions_last)


def _batch(model: str, batch_size: int) -> tuple[Tensor, Tensor]:
    """Draw inputs and targets."""
    if model in TEXT_NETWORKS:
        text = TEXT_NETWORKS[model]
        shape = (batch_size, text.length)
        ids = torch.randint(text.vocabulary, shape)
        if text.classes is None:
            return ids, torch.randint(text.vocabulary, shape)
        return ids, torch.randint(text.classes, (batch_size,))
    if is_external(model):
        images = torch.randn(batch_size, 3, IMAGENET_SIZE, IMAGENET_SIZE)
        return images, torch.randint(IMAGENET_CLASSES, (batch_size,))
    images = torch.randn(batch_size, 3, CIFAR_SIZE, CIFAR_SIZE)
    return images, torch.randint(CIFAR_CLASSES, (batch_size,))


class Contestant:
    """A system in training, with its own copy of the network and its optimizer.

    Args:
        system: The system.
        workload: The network and the batch.
        compiled: Whether the model is compiled. Even then, a step runs uncompiled if it takes
            second derivatives or does not use torch's default attention.
    """

    def __init__(self, system: System, workload: Workload, compiled: bool) -> None:
        self.system = system
        self._workload = workload
        self._network = copy.deepcopy(workload.model)
        self.optimizer = system.build(self._network)
        self._compiled = compiled
        self._model: Callable[[Tensor], Tensor] = (
            torch.compile(self._network) if compiled else self._network
        )

    def go_to(self, cursor: int, kind: Kind) -> None:
        """Set the kind of the next step; a cyclic refresh is of the ``cursor``-th parameter."""
        self.system.go_to(self.optimizer, cursor, kind)

    def clear(self) -> None:
        """Release the gradients of the last step, as the next step would do first."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, kind: Kind, *, eager: bool = False) -> None:
        """Take a training step.

        Args:
            kind: Whether the step takes second derivatives.
            eager: Run the model uncompiled for any kind of step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        eager = eager or not self.system.compiles(kind)
        with self._stance(eager), self.system.attention(kind):
            loss = self._workload.loss(self._model)
            self.system.backward(self.optimizer, loss, kind)
        self.optimizer.step()

    def held_bytes(self) -> int:
        """Sum the bytes of parameters, buffers and batch."""
        model, batch = self._network, (self._workload.inputs, self._workload.targets)
        return bytes_of([*model.parameters(), *model.buffers(), *batch])

    def _stance(self, eager: bool) -> AbstractContextManager[object]:
        if self._compiled and eager:
            stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
            return stance
        return contextlib.nullcontext()


@contextlib.contextmanager
def explained(system: System, model: str, batch_size: int) -> Iterator[None]:
    """Turn an error in a step into one that names system, model and batch size.

    Raises:
        LabError: If an ``AttributeError``, ``RuntimeError``, ``TypeError`` or ``ValueError`` was
            raised in the context.
    """
    try:
        yield
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise LabError(
            f"{system.name} cannot take a training step of {model} at batch size {batch_size}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
