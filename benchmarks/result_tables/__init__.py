"""The tables of results in README, docs and results, made from the files in ``results``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from evidence import TASKS
from network_zoo.row import PACKAGES

from result_tables import accuracies, costs, paper_regime, studies, verdicts, zoo

TABLES: Mapping[str, Callable[[], str]] = {
    "readme-cost": costs.readme_cost,
    "readme-accuracy": accuracies.readme_accuracy,
    **{f"systems-{study}": partial(accuracies.all_systems, study) for study in TASKS},
    "claims-verdicts": verdicts.verdicts,
    "claims-cost": verdicts.cost,
    "claims-mnist5k": partial(accuracies.claims, "mnist5k"),
    "claims-cifar10": partial(accuracies.claims, "cifar10"),
    "claims-resnet20": partial(accuracies.claims, "cifar10-resnet20"),
    "claims-vgg": partial(accuracies.claims, "mnist5k-vgg", accuracies.NARROW_VGG),
    "claims-vgg-60": partial(studies.long_study, "60-epochs/mnist5k-vgg", accuracies.NARROW_VGG),
    "exchanged-settings": studies.exchanged_settings,
    "robust-lr": accuracies.robust_to_lr,
    "robust-tau": accuracies.robust_to_tau,
    "robust-beta2": accuracies.robust_to_beta2,
    "robust-batch": accuracies.robust_to_batch,
    "carried": accuracies.carried,
    "search": studies.search,
    "search-lr": studies.search_over_lr,
    "cost-settings": costs.cost_settings,
    "cost-others": costs.cost_others,
    "cost-networks": costs.cost_networks,
    "cost-sweeps": costs.cost_sweeps,
    "cost-parts": costs.cost_parts,
    "cost-parts-gpt": costs.cost_parts_of_gpt,
    "cost-transformers": costs.cost_transformers,
    "cost-math": costs.cost_math,
    "cost-step": costs.cost_of_step,
    "cost-cuda": costs.cost_cuda,
    "paper-cell": costs.paper_cell,
    "controls-mnist5k": partial(studies.with_controls, "mnist5k"),
    "controls-pydoc": partial(studies.with_controls, "pydoc"),
    "differences": studies.differences,
    "data-loading": partial(studies.transcribed, "data-loading", 4),
    "zoo": zoo.summary,
    **{f"zoo-{package}": partial(zoo.networks, package) for package in PACKAGES},
    "paper-regime": paper_regime.final,
    "paper-regime-curves": paper_regime.curves,
    "paper-regime-parts": paper_regime.parts,
    **{
        f"channelwise-decay-{task}": partial(studies.channelwise_decay, task)
        for task in ("mnist5k", "cifar10")
    },
    **{f"eps-warmup-{task}": partial(studies.eps_warmup, task) for task in ("mnist5k", "cifar10")},
    "reidentification": partial(studies.transcribed, "reidentification", 2),
    "tuning-example": partial(studies.transcribed, "tuning-example", 1),
}
