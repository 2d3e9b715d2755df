"""Networks of torchvision and timm."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import sgdph
from lab.conftest import TINY, tiny_config
from sgdph.lab.cli import main
from sgdph.lab.cost.step import build_network
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.networks.external import check_output
from sgdph.lab.networks.models import build_model
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import prepare

SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def test_torchvision_networks_are_built_by_name() -> None:
    model = build_model("torchvision:resnet18", in_channels=3, classes=7)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(LabError, match=r"3 channels, but these have 1"):
        build_model("torchvision:resnet18", in_channels=1, classes=7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:resnet19", r"no classification network 'resnet19' \(perhaps resnet18"),
        ("torchvision:fcn_resnet50", "no classification network 'fcn_resnet50'"),
        ("torchvision:vgg11-wn", "only torchvision's ResNets come in the forms -plain and -wn"),
        ("torchvision:mobilenet_v2-plain", "only torchvision's ResNets"),
        ("timm:resnet18-wn", r"timm has no network 'resnet18-wn' \(perhaps resnet18"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "timm has no network"),
        ("timm:", "timm has no network ''"),
    ],
)
def test_the_error_on_an_unavailable_network_says_why(name: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        build_model(name, in_channels=3, classes=7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_side_branches_are_left_out(name: str) -> None:
    model = build_model(f"torchvision:{name}", in_channels=3, classes=3).train()
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 3)


def test_torchvision_resnets_without_norms() -> None:
    model = build_model("torchvision:resnet18-wn", in_channels=3, classes=10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20
    assert all(parametrize.is_parametrized(m, "weight") for m in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    newton = sgdph.param_groups(model)[0]["param_names"]
    assert {name.rpartition(".")[2] for name in newton} == {"original0", "bias"}
    # The draws are the same, but the last convolutions of the 8 blocks start √8 times smaller.
    weights = {}
    for form in ("", "-plain"):
        torch.manual_seed(0)
        network = build_model(f"torchvision:resnet18{form}", in_channels=3, classes=10)
        weights[form] = {k: v for k, v in network.state_dict().items() if v.ndim == 4}
    assert weights[""].keys() == weights["-plain"].keys()
    for key, weight in weights["-plain"].items():
        factor = 8**0.5 if key.endswith("conv2.weight") else 1.0
        torch.testing.assert_close(weight * factor, weights[""][key])


def test_a_weight_normalised_resnet_starts_equal_to_the_plain_one() -> None:
    models = []
    for form in ("-plain", "-wn"):
        torch.manual_seed(0)
        models.append(build_model(f"torchvision:resnet18{form}", in_channels=3, classes=10))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(models[1](x), models[0](x), rtol=1e-5, atol=1e-6)


def test_a_network_of_timm_trains_on_grey_images(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--model=timm:test_resnet", "--optimizer=sgdm", "--epochs=2", f"--out={out}"]
    assert main(["train", *SMALL, *words]) == 0
    assert RunDirectory(out).read_config().model == "timm:test_resnet"
    first, last = RunDirectory(out).read_metrics()
    assert last["train_loss"] < first["train_loss"]


def test_cost_can_build_networks_of_timm() -> None:
    assert build_network("timm:test_resnet")(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_images_that_a_network_cannot_take_raise_an_error_before_the_run(digits: Dataset) -> None:
    with pytest.raises(LabError, match="--model timm:test_vit does not take images of 1x8x8"):
        prepare(tiny_config(model="timm:test_vit"), digits)


def test_a_network_with_a_wrong_output_shape_raises_an_error() -> None:
    images = torch.zeros(2, 1, 4, 4)
    for model in (nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(16, 4))):
        with pytest.raises(LabError, match=r"must make logits \(2, 3\)"):
            check_output("timm:x", model.train(), images, 3)
        assert model.training
    check_output("timm:x", nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), images, 3)
