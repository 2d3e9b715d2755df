"""A comparison: a sweep over optimizers only, planned from command-line options.

In place of ``sweep.yaml``, its directory has ``comparison.yaml``. This file records what was asked
for, so ``--resume`` needs no other option, and can add to it. Each run is in
``<optimizer>-seed<k>``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import with_lists, with_tuples
from sgdph.lab.files import write_text
from sgdph.lab.optimizers.registry import TUNED
from sgdph.lab.options.optimizer_args import share_arguments
from sgdph.lab.options.resolution import PER_OPTIMIZER, parse_per_optimizer, resolve_many
from sgdph.lab.reports.layout import Layout
from sgdph.lab.reports.lead import COMPARISON, tune_command
from sgdph.lab.reports.report import REPORT_FILES
from sgdph.lab.sweep.plan import Plan
from sgdph.lab.sweep.sweep_directory import SweepDirectory

FORMAT = "sgdph-comparison-1"
# The settings that matter most. They have to be tuned for each optimizer and data set.
COMPARED = ("lr", "weight_decay", "newton_lr")
DEFAULT = "the default"


@dataclass(frozen=True)
class Comparison:
    """The definition of a comparison.

    Attributes:
        optimizers: Names of the optimizers.
        seeds: The seeds.
        given: The options that were set, as
            :func:`sgdph.lab.options.resolution.resolve_many` takes them.
        settings: Optimizer to settings, as in a settings file; ``given`` takes precedence.
    """

    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    given: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Return the plan, with one cell for each optimizer."""
        configs = resolve_many(self.given, self.optimizers, self.seeds[:1], self.settings)
        cells = {str(config.optimizer): config for config in configs}
        return Plan("compare", "", self.given, Layout(), cells, self.seeds)

    def describe_settings(self, plan: Plan) -> list[str]:
        """Describe each optimizer's lr, weight decay and newton_lr, and where they come from.

        A last line names the optimizers for which one of these is a default, chosen for other data.
        """
        lines, untuned = [], []
        for name, config in plan.cells.items():
            values = {setting: getattr(config, setting) for setting in COMPARED}
            sources = {
                setting: self._source(name, setting, config)
                for setting, value in values.items()
                if value is not None
            }
            shown = [f"{k.replace('_', ' ')} {values[k]:g} ({v})" for k, v in sources.items()]
            lines.append(f"{name}: {', '.join(shown)}")
            untuned += [name] if DEFAULT in sources.values() else []
        if untuned:
            configs = [plan.cells[name] for name in untuned]
            lines.append(
                f"Not tuned for {configs[0].dataset}: {', '.join(untuned)}. Differences between "
                f"optimizers may come from these settings. {tune_command(configs)} finds better "
                "ones; pass them with --settings"
            )
        return lines

    def _source(self, optimizer: str, setting: str, config: RunConfig) -> str:
        """Describe where an optimizer's setting comes from."""
        words = self.given.get("optimizer_args") or ()
        given = self.given.get(setting)
        if setting in dict(share_arguments(words, self.optimizers)[optimizer]) or (
            given is not None
            and optimizer in parse_per_optimizer(str(given), setting, self.optimizers)
        ):
            return "given"
        if setting in self.settings.get(optimizer, {}):
            return "from --settings"
        if setting in TUNED.get(config.dataset, {}).get(optimizer, {}):
            return f"tuned on {config.dataset}"
        return DEFAULT

    def extended(self, other: Comparison) -> Comparison:
        """Return a comparison with another's optimizers and seeds added; its options win.

        An option with values for single optimizers replaces only the values that it names.

        Raises:
            LabError: If a learning rate or weight decay of one of them cannot be read.
        """
        optimizers = tuple(dict.fromkeys(self.optimizers + other.optimizers))
        given = {**self.given, **other.given}
        for name in set(self.given) & set(other.given):
            if name in PER_OPTIMIZER:
                texts = (str(each.given[name]) for each in (self, other))
                both = [parse_per_optimizer(text, name, optimizers) for text in texts]
                given[name] = _per_optimizer({**both[0], **both[1]})
            elif name == "optimizer_args":
                words = (*self.given[name], *other.given[name])
                given[name] = tuple({word.partition("=")[0]: word for word in words}.values())
        return Comparison(
            optimizers,
            tuple(dict.fromkeys(self.seeds + other.seeds)),
            given,
            {**self.settings, **other.settings},
        )


def _per_optimizer(values: Mapping[str, float]) -> str:
    """Format values as :func:`sgdph.lab.options.resolution.parse_per_optimizer` reads them."""
    return ",".join(f"{optimizer}={value!r}" for optimizer, value in values.items())


class ComparisonDirectory(SweepDirectory):
    """The directory of a comparison.

    Args:
        path: The directory; it need not exist yet.
    """

    what, files = "comparison", (*REPORT_FILES, COMPARISON)

    def read(self) -> Plan:
        """Read the plan of its runs; raise LabError as :meth:`read_comparison` does."""
        return self.read_comparison().plan()

    def read_comparison(self) -> Comparison:
        """Read the recorded comparison.

        Raises:
            LabError: If there is no such file, or it has another format.
        """
        values = self.read_record(COMPARISON, FORMAT)
        return Comparison(
            tuple(values["optimizers"]),
            tuple(values["seeds"]),
            with_tuples(values["options"]),
            values.get("settings", {}),
        )

    def write_comparison(self, comparison: Comparison) -> None:
        """Record a comparison."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "optimizers": list(comparison.optimizers),
            "seeds": list(comparison.seeds),
            "options": with_lists(comparison.given),
        }
        if comparison.settings:
            content["settings"] = {name: dict(own) for name, own in comparison.settings.items()}
        with self.alone():
            write_text(self.path / COMPARISON, yaml.safe_dump(content, sort_keys=False))
