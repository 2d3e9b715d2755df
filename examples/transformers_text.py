"""A tiny GPT-2, from random weights, under Hugging Face's Trainer, on text that comes with Python.

pip install '.[transformers]'
python examples/transformers_text.py
"""

from __future__ import annotations

import math
import pydoc_data.topics
import tempfile

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed

import sgdph
from sgdph.integrations.transformers import PartialHessianTrainer

LENGTH = 64


def rows() -> list[dict[str, Tensor]]:
    """Cut the manual's topics into rows of bytes: a byte is a token, no tokenizer is needed."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    count = len(text) // LENGTH
    tokens = torch.tensor(list(text[: count * LENGTH])).view(count, LENGTH)
    return [{"input_ids": row, "labels": row} for row in tokens]


def main(steps: int = 200) -> float:
    """Train, and return the loss on held-out text, in bits per byte."""
    set_seed(0)
    data = rows()
    config = GPT2Config(
        vocab_size=256,
        n_positions=LENGTH,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    # The row sum of a bias that layer norm follows is zero; Hutchinson's estimate is not.
    groups = sgdph.param_groups(model, weight_decay=1e-4, channelwise_weight_decay=0.0)
    optimizer = sgdph.SGDPH(groups, lr=0.2, estimator="hutchinson")
    with tempfile.TemporaryDirectory() as directory:
        trainer = PartialHessianTrainer(  # for transformers.Trainer
            model,
            TrainingArguments(
                directory,
                max_steps=steps,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                lr_scheduler_type="cosine",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=data[:-64],
            eval_dataset=data[-64:],
            optimizers=(optimizer, None),
        )
        trainer.train()
        loss: float = trainer.evaluate()["eval_loss"]
    return loss / math.log(2)


if __name__ == "__main__":
    print(f"held-out text: {main():.2f} bits per byte; 8 without training")
