"""Hugging Face Trainer: tiny networks with random weights and their default attention.

The text is Python's own documentation.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from compilations import Compilations
from small import assert_same_bits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import sgdph
from integrations.loops import SETTINGS, assert_same_run, gap
from integrations.ranks import RANKS, on_two_ranks
from sgdph.integrations.transformers import PartialHessianMixin, PartialHessianTrainer
from sgdph.step import SecondOrderOptimizer

pytestmark = [
    pytest.mark.xdist_group("transformers"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("no_accelerate_state"),
]

LENGTH = 16
TEXT = torch.tensor(list("".join(pydoc_data.topics.topics.values()).encode()[: 64 * LENGTH]))
# Nothing predicts a row's first byte; whether it counts as an item differs between versions.
UNPREDICTED = torch.arange(LENGTH) == 0
ROWS = [
    {"input_ids": row, "labels": row.masked_fill(UNPREDICTED, -100)}
    for row in TEXT.view(-1, LENGTH)
]


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=1,
        n_head=2,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


KINDS: dict[str, Any] = {"sgdph": None, "adamw": torch.optim.AdamW}


def optimizer_of(model: nn.Module, kind: Any = None, **settings: Any) -> SecondOrderOptimizer:
    groups, settings = sgdph.param_groups(model), SETTINGS | settings
    if kind is None:
        return sgdph.SGDPH(groups, **settings)
    return sgdph.PartialHessian(kind(model.parameters(), lr=1e-3), groups, **settings)


def arguments(path: Path, **options: Any) -> TrainingArguments:
    quiet = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
    }
    kind = options.pop("kind", TrainingArguments)
    return kind(str(path), **{**quiet, **options})


def trainer(
    path: Path, model: nn.Module, optimizer: Any, rows: Any = ROWS, **options: Any
) -> PartialHessianTrainer:
    return PartialHessianTrainer(
        model, arguments(path, **options), train_dataset=rows, optimizers=(optimizer, None)
    )


def plain_loop(
    model: nn.Module,
    rows: list[dict[str, Tensor]] = ROWS,
    *,
    size: int = 4,
    accumulate: int = 1,
    clip: float = 1.0,
    autocast: torch.dtype | None = None,
    **settings: Any,
) -> tuple[nn.Module, SecondOrderOptimizer]:
    """The mean loss of ``size * accumulate`` rows of one length a step, clipped."""
    optimizer = optimizer_of(model, **settings)
    model.train()
    for i, rows_of_batch in enumerate(DataLoader(rows, batch_size=size)):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = model(**rows_of_batch).loss / accumulate
        optimizer.backward(loss)
        if (i + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize(
    ("accumulate", "kind"), [(1, "sgdph"), (2, "sgdph"), (2, "adamw")], ids=str
)
@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson"])
def test_gpt2_trains_as_the_plain_loop(
    tmp_path: Path, estimator: str, accumulate: int, kind: str
) -> None:
    # GPT-2 normalises by num_items_in_batch: its loss is already divided, by numbers unlike ours.
    settings = {"estimator": estimator, "hessian_interval": 2, "kind": KINDS[kind]}
    model = gpt2()
    optimizer = optimizer_of(model, **settings)
    trainer(tmp_path, model, optimizer, gradient_accumulation_steps=accumulate).train()
    expected = plain_loop(gpt2(), accumulate=accumulate, **settings)
    assert_same_run(model, optimizer, expected, bound=1e-5)


class Plain(nn.Module):
    """A model that does not accept ``num_items_in_batch``: Trainer divides its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        return self.inner(input_ids=input_ids, labels=labels)


@pytest.mark.parametrize(("build", "accumulate"), [(bert, 1), (Plain, 2)])
def test_bert_classifies(tmp_path: Path, build: Any, accumulate: int) -> None:
    rows = [{**row, "labels": (row["input_ids"] == 32).any().long()} for row in ROWS]
    model = build()
    optimizer = optimizer_of(model)
    trainer(tmp_path, model, optimizer, rows, gradient_accumulation_steps=accumulate).train()
    expected = plain_loop(build(), rows, accumulate=accumulate)
    assert_same_run(model, optimizer, expected, bound=1e-5)


def test_bf16(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = optimizer_of(model)
    trainer(tmp_path, model, optimizer, bf16=True).train()
    expected = plain_loop(gpt2(), autocast=torch.bfloat16)
    assert_same_run(model, optimizer, expected, bound=1e-2)


def test_gradient_checkpointing(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = optimizer_of(model)
    kwargs = {"use_reentrant": False}
    trainer(
        tmp_path,
        model,
        optimizer,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs=kwargs,
    ).train()
    assert_same_run(model, optimizer, plain_loop(gpt2()), bound=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path: Path, kind: str) -> None:
    options = {
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 6,
        "train_sampling_strategy": "random",
    }
    whole, resumed = gpt2(), gpt2(seed=1)
    whole_optimizer = optimizer_of(whole, KINDS[kind], estimator="hutchinson")
    trainer(tmp_path, whole, whole_optimizer, **options).train()
    optimizer = optimizer_of(resumed, KINDS[kind], estimator="hutchinson")
    run = trainer(tmp_path, resumed, optimizer, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert run.state.global_step == 16
    assert_same_run(resumed, optimizer, (whole, whole_optimizer))


def test_the_mixin_works_with_another_trainer(tmp_path: Path) -> None:
    class Mine(PartialHessianMixin, Seq2SeqTrainer):
        pass

    model = gpt2()
    optimizer = optimizer_of(model)
    args = arguments(tmp_path, kind=Seq2SeqTrainingArguments)
    Mine(model, args, train_dataset=ROWS, optimizers=(optimizer, None)).train()
    assert_same_run(model, optimizer, plain_loop(gpt2()), bound=1e-5)


def test_an_optimizer_built_by_trainer_trains(tmp_path: Path) -> None:
    run = PartialHessianTrainer(
        gpt2(),
        arguments(tmp_path),
        train_dataset=ROWS,
        optimizer_cls_and_kwargs=(sgdph.SGDPH, dict(SETTINGS)),
    )
    before = [p.detach().clone() for p in run.model.parameters()]
    run.train()
    assert run.optimizer.optimizer.multipliers()
    assert all(not torch.equal(p, b) for p, b in zip(run.model.parameters(), before, strict=True))


class Older(Trainer):
    """It returns nothing. ``Trainer`` reads its attribute."""

    def create_optimizer(self, *arguments: Any, **named: Any) -> None:
        super().create_optimizer(*arguments, **named)


class PartialHessianOlder(PartialHessianMixin, Older):
    pass


@pytest.mark.parametrize("kind", [PartialHessianTrainer, PartialHessianOlder])
def test_newton_steps_beside_the_optimizer_built_by_trainer(
    tmp_path: Path, kind: type[PartialHessianTrainer]
) -> None:
    args = arguments(tmp_path, optim="adamw_torch", learning_rate=1e-3, weight_decay=0.1)
    run = kind(gpt2(), args, train_dataset=ROWS, newton=SETTINGS)
    run.train()
    # Training again builds nothing anew.
    assert run.create_optimizer(model=run.model) is run.optimizer
    expected = plain_loop(gpt2(), kind=as_trainer_builds_it)
    assert_same_run(run.model, run.optimizer.optimizer, expected, bound=1e-5)


def test_newton_steps_beside_newton_steps_raise_an_error(tmp_path: Path) -> None:
    model = gpt2()
    optimizers = (optimizer_of(model), None)
    run = PartialHessianTrainer(
        model, arguments(tmp_path), train_dataset=ROWS, optimizers=optimizers, newton=SETTINGS
    )
    with pytest.raises(ValueError, match="takes them already; leave out newton"):
        run.train()


def as_trainer_builds_it(params: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
    matrices, vectors = [], []
    for p in params:
        (matrices if p.ndim > 1 else vectors).append(p)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr)


def test_trainer_switches_a_schedule_free_optimizer_to_evaluation(tmp_path: Path) -> None:
    kind = pytest.importorskip("schedulefree").AdamWScheduleFree
    model, other = gpt2(), gpt2()
    optimizer = optimizer_of(model, kind)
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=8)
    data: Any = {"train_dataset": ROWS, "eval_dataset": ROWS[:4]}
    run = PartialHessianTrainer(model, args, optimizers=(optimizer, None), **data)
    run.train()
    twin: Any = optimizer_of(other, kind)
    losses = []
    for i, rows in enumerate(DataLoader(ROWS, batch_size=4)):
        twin.train()
        other.train()
        twin.backward(other(**rows).loss)
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        twin.step()
        twin.zero_grad()
        if i % 8 == 7:
            twin.eval()
            other.eval()
            losses.append(float(other(**torch.utils.data.default_collate(ROWS[:4])).loss))
    assert [e["eval_loss"] for e in run.state.log_history if "eval_loss" in e] == pytest.approx(
        losses, abs=1e-4
    )
    assert_same_run(model, optimizer, (other, twin), bound=1e-5)


def test_the_accelerator_is_restored_after_training(tmp_path: Path) -> None:
    model = gpt2()
    run = trainer(tmp_path, model, optimizer_of(model))
    before = dict(vars(run.accelerator))
    run.train()
    assert "backward" not in before
    assert "backward" not in vars(run.accelerator)


def test_another_optimizer_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="AdamW"):
        trainer(tmp_path, gpt2(), None).train()


def train_on_rank(rank: int, path: Path) -> None:
    model = gpt2()
    run = trainer(path, model, optimizer_of(model), per_device_train_batch_size=2)
    run.train()
    assert run.accelerator.num_processes == RANKS
    torch.save(model.state_dict(), path / f"{rank}.pt")


def test_two_ranks_equal_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    on_two_ranks(train_on_rank, tmp_path)
    models = [gpt2(), gpt2()]
    for rank, model in enumerate(models):
        model.load_state_dict(torch.load(tmp_path / f"{rank}.pt"))
    assert_same_bits(*models)
    assert gap(models[0], plain_loop(gpt2())[0]) < 1e-4


class Tiny(nn.Module):
    """A model that torch compiles in a second. ``Trainer`` only needs a dict with a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(256, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 256)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.norm(self.embedding(input_ids)))
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


@pytest.mark.parametrize(
    ("by", "build", "kind"),
    [
        ("torch_compile=True", gpt2, "sgdph"),
        ("torch_compile=True", Tiny, "adamw"),
        ("sgdph.compiled", Tiny, "sgdph"),
    ],
)
def test_compiled(
    tmp_path: Path, compilations: Compilations, by: str, build: Callable[[], Any], kind: str
) -> None:
    """Uncompiled in due steps, compiled in all others."""
    settings = {"kind": KINDS[kind], "hessian_interval": 3}
    options: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    model = build()
    optimizer = optimizer_of(model, **settings)
    if by == "sgdph.compiled":
        sgdph.compiled(model, optimizer, backend="aot_eager")
        options = {}
    this = trainer(tmp_path, model, optimizer, gradient_accumulation_steps=2, **options)
    this.train()
    expected = build()
    theirs = optimizer_of(expected, **settings)
    for i, rows in enumerate(DataLoader(ROWS, batch_size=4)):
        theirs.backward(expected(**rows)["loss"] / 2)
        if i % 2:
            nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
            theirs.step()
            theirs.zero_grad()
    assert gap(model, expected) < 1e-5
    # Of the 8 steps 5 were not due, each of two micro-batches.
    assert compilations.graphs <= 2
    assert compilations.runs == 10 * compilations.graphs
