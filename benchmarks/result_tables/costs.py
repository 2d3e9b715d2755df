"""Tables of costs, made from ``results/cost``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from result_tables.markdown import RESULTS, markdown
from sgdph.lab.cost.directory import CostDirectory
from sgdph.lab.cost.figures import MATH_BASE
from sgdph.lab.cost.summary import summarise
from sgdph.lab.reports.numbers import fixed

# The directory that `make cost-cuda` writes.
CUDA = RESULTS / "cost" / "cuda"
NOT_RUN = "Not run on a GPU yet.\n"
COLUMNS = ("process_median", "floor", "mean_peak", "worst_peak")
SETTINGS = {
    "sgdph": "SGD-PH, default",
    "sgdph-plain": "`update_hessian(loss)` + `loss.backward()`",
    "sgdph-interval10": "`hessian_interval=10`",
    "sgdph-hutchinson-all": '`hutchinson`, `refresh="all"`',
}
PRECISIONS = {"tf32": "TF32", "bfloat16": "bfloat16 autocast"}


def costs(study: str) -> dict[str, dict[str, str]]:
    """Read a cost study's table by system; ``STUDY/NETWORK`` selects one of several networks."""
    study, _, model = study.partition("/")
    with (RESULTS / "cost" / study / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if model in ("", row["model"])]
    return {row["system"]: row for row in rows}


def ratio(text: Any) -> str:
    """Format a ratio with two decimals; a missing floor is shown as 1.00, that of SGDM."""
    return f"{float(text or 1.0):.2f}"


def with_range(row: Mapping[str, str]) -> str:
    """Format a step's time, with its range over rounds."""
    low, high = ratio(row["process_lowest"]), ratio(row["process_highest"])
    return f"{ratio(row['process_median'])} ({low} to {high})"


def cost_lines(study: str, names: Mapping[str, str], columns: Sequence[str]) -> list[list[str]]:
    """Format some columns of a cost study, for some systems."""
    found = costs(study)
    return [[name, *(ratio(found[key][each]) for each in columns)] for key, name in names.items()]


def readme_cost() -> str:
    """Make README's table: the default and a refresh at every tenth step, on several networks."""
    names = {
        "resnet18-every-parameter": "ResNet18 for CIFAR, batch 16",
        "transformers/gpt6": "GPT, 6 layers of width 256, 64 tokens, batch 8",
        "transformers-others/timm:vit_tiny_patch16_224": "ViT-tiny, batch 4",
        "transformers-others/timm:convnext_atto": "ConvNeXt-atto, batch 4",
    }
    rows = []
    for study, name in names.items():
        found = costs(study)
        times = [ratio(found[system]["process_median"]) for system in ("sgdph", "sgdph-interval10")]
        rows.append([name, *times, ratio(found["sgdph"]["worst_peak"])])
    tenth = "time, `hessian_interval=10`"
    return markdown(["network", "time, default", tenth, "highest peak of memory"], rows)


def cost_settings() -> str:
    """Make the table of several settings of SGD-PH on ResNet18."""
    names = {
        **SETTINGS,
        "sgdph-hutchinson-all-interval10": "the same, `hessian_interval=10`",
    }
    return markdown(
        ["setting", "time", "floor", "mean peak memory", "worst peak"],
        cost_lines("resnet18-every-parameter", names, COLUMNS),
    )


def cost_others() -> str:
    """Make the table that compares SGD-PH with other optimizers on ResNet18."""
    names = {
        "sgdph": "SGD-PH, default",
        "sgdph-interval10": "SGD-PH, `hessian_interval=10`",
        "sgdph-create-graph": "SGD-PH by `create_graph=True`",
        "adahessian-timm": "AdaHessian (timm)",
        "sophiah": "SophiaH (pytorch_optimizer), every tenth step",
    }
    lines = cost_lines("resnet18", names, ("process_median", "worst_peak"))
    return markdown(["", "time", "highest peak of memory"], lines)


def cost_networks() -> str:
    """Make the table of other networks: the default, the plain order, the joint product."""
    names = {
        "vgg19-bn": "CIFAR VGG19 with batch norm, 16",
        "resnet20": "ResNet-20, 128",
        "transformers/encoder12": "encoder, 12 layers of width 256, 64 tokens, 8",
        "transformers/gpt6": "GPT, 6 layers of width 256, 64 tokens, 8",
    }
    settings = {
        "sgdph": "default",
        "sgdph-plain": "plain order",
        "sgdph-hutchinson-all": "joint product",
    }
    return markdown(
        ["network, batch", "setting", "time", "floor", "mean peak memory", "worst peak"],
        [
            [name, *line]
            for study, name in names.items()
            for line in cost_lines(study, settings, COLUMNS)
        ],
        texts=2,
    )


def cost_sweeps() -> str:
    """Make the table of the default on ResNets of several depths and at several batch sizes."""
    rows = []
    for study in ("depth", "batch-size"):
        with (RESULTS / "cost" / study / "table.csv").open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["system"] == "sgdph"]
    return markdown(
        ["network", "batch", "time"],
        [
            [f"ResNet-{row['model'].removeprefix('resnet')}", row["batch_size"], with_range(row)]
            for row in rows
        ],
    )


def cost_transformers() -> str:
    """Make the table of transformers and similar networks: the default, and interval 10."""
    names = {
        "transformers/gpt6": "GPT, 6 layers of width 256, 64 tokens, 8",
        "transformers/encoder12": "encoder, 12 layers of width 256, 64 tokens, 8",
        "gpt2-2/gpt2-2": "GPT-2's shape, 2 layers, 512 tokens, 1",
        "transformers-others/timm:vit_tiny_patch16_224": "ViT-tiny, 4",
        "transformers-others/timm:convnext_atto": "ConvNeXt-atto, 4",
        "transformers-others/torchvision:mobilenet_v3_small": "MobileNetV3-small, 4",
    }
    rows = []
    for study, name in names.items():
        found = costs(study)
        default, tenth = found["sgdph"], found["sgdph-interval10"]
        figures = (ratio(default[key]) for key in ("floor", "mean_peak", "worst_peak"))
        others = (ratio(tenth[key]) for key in ("process_median", "mean_peak"))
        rows.append([name, with_range(default), *figures, *others])
    return markdown(
        [
            *("network, batch", "time", "floor", "mean peak memory", "worst peak"),
            *("interval 10: time", "mean peak memory"),
        ],
        rows,
    )


def cost_math() -> str:
    """Make the table of transformers, as ratios to SGDM with math attention in the same round."""
    names = {"gpt6": "GPT", "encoder12": "encoder"}
    shown = {"SGDM": "SGDM", "SGD-PH": "SGD-PH, default"}
    _, cells = CostDirectory(RESULTS / "cost" / "transformers").read()
    rows = [
        [f"{names[cell.model]}, {shown[row.label]}", *map(ratio, figures)]
        for cell in cells
        for row in summarise(cell, MATH_BASE)
        if row.label in shown
        for figures in [(row.time.median, row.mean_peak, row.worst_peak)]
    ]
    return markdown(
        ["SGDM with math attention = 1.00", "time", "mean peak memory", "worst peak"], rows
    )


def cost_parts_of_gpt() -> str:
    """Make the table of what each part of the step saves on a GPT."""
    names = {
        "all parts": "all parts",
        "without: matrix products": "without the matrix products'",
        "without: layer norm": "without layer norm's",
        "without: activations": "without the activations'",
        "without: softmax and loss": "without log-softmax's and the loss's",
        "without: inputs let go of": "without letting go of layers' inputs",
        "without: two phases": "without two phases",
        "none: the plain way": "none of them, but fused attention's",
    }
    return _parts("parts-gpt6.txt", names)


def cost_parts() -> str:
    """Make the table of what each part of the step saves, from the output of ``step_parts.py``."""
    names = {
        "all parts": "all parts",
        "without: convolution": "without the convolution's",
        "without: batch norm": "without batch norm's",
        "without: ReLU": "without the ReLU's",
        "without: late weight gradients": "without late weight gradients",
        "without: two phases": "without two phases",
        "two phases alone": "two phases alone",
        "none: the plain way": "none of them: the plain way",
    }
    return _parts("parts.txt", names)


def _parts(file: str, names: Mapping[str, str]) -> str:
    text = (RESULTS / "cost" / file).read_text(encoding="utf-8")
    line = re.compile(r"^(\S.*?) {2,}(\S+ \(.*?\)) +(\S+) +(\S+)$", re.MULTILINE)
    found = {name: rest for name, *rest in line.findall(text)}
    rows = [[shown, *found[name]] for name, shown in names.items()]
    return markdown(["", "time", "mean peak memory", "worst peak"], rows)


def cost_of_step() -> str:
    """Make the table of ``step()`` alone, from the output of ``optimizer_step.py``."""
    text = (RESULTS / "cost" / "optimizer-step.txt").read_text(encoding="utf-8")
    line = re.compile(r"^(\S.*?) {2,}([\d.]+) ms +([\d.]+) \(([\d.]+) to ([\d.]+)\)$", re.MULTILINE)
    rows = [
        [f"`{call}`{rest}", f"{float(a):.2f} ({float(b):.2f} to {float(c):.2f})"]
        for name, _, a, b, c in line.findall(text)
        for call, rest in [re.fullmatch(r"(.*\))(.*)", name).groups()]  # type: ignore[union-attr]
    ]
    return markdown(["`step()` of", "time"], rows)


def cost_cuda() -> str:
    """Make the table of training steps on a GPU, if ``make cost-cuda`` has measured them."""
    if not (CUDA / "cost.csv").exists():
        return NOT_RUN
    with (CUDA / "cost.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    environment = json.loads((CUDA / "cost.json").read_text(encoding="utf-8"))["environment"]
    names = {"sgdm": "SGDM", **SETTINGS}

    def network(row: dict[str, str]) -> str:
        kernel = f", {row['attention']} attention" if row["attention"] else ""
        return f"{row['network']}, {row['batch']}, {PRECISIONS[row['precision']]}{kernel}"

    table = markdown(
        ["network, batch", "setting", "ms", "time", "mean peak memory", "worst peak"],
        [
            [
                network(row),
                names[row["system"]],
                f"{float(row['milliseconds']):.1f}",
                f"{ratio(row['time'])} ({ratio(row['lowest'])} to {ratio(row['highest'])})",
                ratio(row["mean_peak"]),
                ratio(row["worst_peak"]),
            ]
            for row in rows
        ],
        texts=2,
    )
    return f"{table}\n{_where(environment)}\n"


def paper_cell() -> str:
    """Make the table of runs at the paper's scale on a GPU, if ``make cost-cuda`` timed them."""
    file = CUDA / "paper-cell.json"
    if not file.exists():
        return NOT_RUN
    found = json.loads(file.read_text(encoding="utf-8"))
    names = {"sgdm": "SGDM", "sgdph": "SGD-PH"}
    columns = {
        "seconds_per_epoch": ("s an epoch", 2),
        "minutes_of_200_epochs": ("min for 200", 1),
        "step_milliseconds": ("ms a step", 2),
        "launch_milliseconds": ("ms to launch it", 2),
        "peak_gigabytes": ("peak, GB", 1),
    }
    table = markdown(
        ["optimizer", "precision", *(title for title, _ in columns.values())],
        [
            [
                *(names[cell["optimizer"]], PRECISIONS[cell["precision"]]),
                *(fixed(cell[key], digits) for key, (_, digits) in columns.items()),
            ]
            for cell in found["cells"]
        ],
        texts=2,
    )
    return f"{table}\n{_where(found['environment'])}\n"


def _where(environment: Mapping[str, Any]) -> str:
    """Describe the GPU and versions of a measurement."""
    return (
        f"{environment['device_name'] or environment['cpu']}, torch {environment['torch']}, commit "
        f"{environment['git_commit'] or 'unknown'}, `make cost-cuda`."
    )
