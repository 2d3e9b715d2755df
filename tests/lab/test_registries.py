"""Every registered estimator, optimizer, data set and network is documented and complete."""

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from small import bn_net, loss_of
from torch import Tensor

from sgdph import SGDPH, param_groups
from sgdph.curvature import estimators
from sgdph.curvature.finite_difference import curvature_of_differences
from sgdph.lab.cli import main
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.loading import source_of
from sgdph.lab.data.registry import DATASETS, FILE_SETS, RESIZED_SETS
from sgdph.lab.data.source import Source
from sgdph.lab.networks.models import build_model
from sgdph.lab.networks.registry import FORMS, NETWORKS
from sgdph.lab.optimizers.build import BUILDERS
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.reports.names import shown_value
from sgdph.names import ESTIMATORS, Estimator
from sgdph.validation import is_stochastic

DOCS = Path(__file__).parents[2] / "docs"
REGISTRIES: dict[str, Mapping[str, Any]] = {
    "optimizer": BASELINES,
    "dataset": DATASETS,
    "model": NETWORKS,
}
NAMES = [(field, name) for field, registry in REGISTRIES.items() for name in registry]


@cache
def rows(page: str) -> frozenset[str]:
    """Return every name in backticks in the first cell of a table row."""
    cells = re.findall(r"^\| ([^|]*) \|", (DOCS / page).read_text(), re.MULTILINE)
    return frozenset(name for cell in cells for name in re.findall(r"`\"?([^`\"]+)\"?`", cell))


@cache
def said(*words: str) -> str:
    """Return what a command prints, as one line."""
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        patch.setenv("COLUMNS", "1000")
        main(list(words))
    return re.sub(r"[\s│]+", " ", output.getvalue())


def option(flag: str) -> str:
    """Return the help text of an option of ``sgdph train``."""
    found = re.search(rf" {flag} (.*?) (--[a-z-]+ |╰)", said("train", "--help"))
    assert found, f"the help has no {flag}"
    return found[1]


@pytest.mark.parametrize(("field", "name"), NAMES)
def test_every_name_has_a_unique_label(field: str, name: str) -> None:
    registry = REGISTRIES[field]
    label = registry[name].label
    assert label
    assert shown_value(field, name) == label
    assert [other for other in registry if registry[other].label == label] == [name]


@pytest.mark.parametrize("name", BASELINES)
def test_every_optimizer_is_documented_and_has_a_builder(name: str) -> None:
    baseline = BASELINES[name]
    told, offered = rows("optimizers-and-models.md"), option("--optimizer")
    if baseline.first_order is None:
        assert name in told
        assert name in re.findall(r"[\w-]+", offered)
    else:
        first_order, suffix = re.fullmatch(r"(.+)(-ph(?:-.+)?)", name).groups()  # type: ignore[union-attr]
        assert BASELINES[first_order] is baseline.first_order
        assert f"NAME{suffix}" in told
        pattern = re.search(r"\{(\S*)\}-ph\[(\S*)\]", offered)
        assert pattern
        assert first_order in pattern[1].split(",")
        assert suffix[3:] in ("", *pattern[2].split(","))
    assert baseline.defaults.keys() <= {field.name for field in fields(RunConfig)}
    assert baseline.build in BUILDERS
    assert {"lr", "weight_decay"} <= baseline.defaults.keys()


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_documented_and_has_a_source(name: str) -> None:
    assert name in rows("data.md")
    assert name in re.findall(r"[\w-]+", option("--dataset"))
    assert f" {name} {DATASETS[name].contents.split()[0]} " in said("data")
    source = source_of(name)
    assert isinstance(source, Source)
    # A set that is missing without a data directory must have a URL as its origin.
    assert source.missing(None) is None or DATASETS[name].origin.startswith("https://")
    assert (name in option("--image-size")) == (name in RESIZED_SETS)
    assert (name in option("--data-workers")) == (name in FILE_SETS)
    if DATASETS[name].can_download:
        assert type(source).download is not Source.download
    assert DATASETS[name].defaults.keys() <= {field.name for field in fields(RunConfig)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_documented_and_can_be_built(name: str) -> None:
    told, suffix = rows("optimizers-and-models.md"), "-" + name.rpartition("-")[2]
    plain = name.removesuffix(suffix) if suffix in FORMS else name
    assert plain in told
    assert suffix in told or plain == name
    assert plain in re.findall(r"[\w-]+", option("--model").split(" One of ")[1].split("(def")[0])
    with torch.device("meta"):
        model = build_model(name, in_channels=3, classes=10)
        image = torch.zeros(2, 3, 32, 32)
        text = torch.zeros(2, 64, dtype=torch.int64)
        logits = model(text if NETWORKS[name].reads_text else image)
    assert logits.shape[:2] == (2, 10)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_documented_and_works_on_all_paths(
    name: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in ("how-it-works.md", "choosing-settings.md"):
        assert name in rows(page)
    assert name in re.findall(r"\w+", option("--estimator"))
    assert f'``"{name}"``' in str(SGDPH.__doc__)
    model = bn_net(torch.float64)
    p = model[1].weight
    probes = [torch.tensor([1.0, -1.0, -1.0, 1.0]).double()] if is_stochastic(name) else None
    products: list[None] = []
    product = estimators._product

    def counted(*arguments: Any) -> list[Tensor]:
        products.append(None)
        return product(*arguments)

    monkeypatch.setattr(estimators, "_product", counted)
    gradients = torch.autograd.grad(loss_of(model), [p], create_graph=True)
    (found,) = estimators.curvature_of_gradients(gradients, [p], name, probes)
    assert len(products) == estimators.products_per_block(name, p.numel())
    assert (len(products) == 1) == estimators.is_one_product(name, [p])
    (difference,), _ = curvature_of_differences(lambda: loss_of(model), [p], name, probes)
    torch.testing.assert_close(found, difference, rtol=1e-4, atol=1e-7)
    optimizer = SGDPH(param_groups(model), estimator=name, refresh="all")
    optimizer.backward(loss_of(model))
    optimizer.step()
    assert len(optimizer.multipliers()) == 3
