"""Tiny networks of Hugging Face's families, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from network_zoo.network import Built, Network, images


def _without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


# Settings with the names that most configurations use.
TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
# Lengths of the sequences in a batch. The shorter one ends with padding.
LENGTHS = (12, 9)
IMAGE = {**TEXT, "image_size": 32, "patch_size": 8, "num_labels": 5}
SPEECH = {
    **TEXT,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (8, 4, 4),
    "conv_stride": (4, 2, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
    "mask_time_length": 4,
    "mask_time_prob": 0.2,
}
ENCODER_DECODER = {
    **TEXT,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}
T5 = {**TEXT, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 1}

CAUSAL: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neo": {
        **TEXT,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "gptj": {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8},
    "gpt_neox": TEXT,
    "gpt_bigcode": {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "codegen": {
        **TEXT,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "rotary_dim": 8,
    },
    "llama": GROUPED,
    "mistral": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": GROUPED,
    "qwen2": GROUPED,
    "qwen2_moe": {
        **GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "qwen3": GROUPED,
    "qwen3_moe": {
        **GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "phi": GROUPED,
    "phi3": GROUPED,
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "opt": {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {**TEXT, "n_layer": 2, "n_head": 4},
    "falcon": TEXT,
    "mpt": {**TEXT, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
    "olmo2": GROUPED,
    "cohere": GROUPED,
    "granite": GROUPED,
    "smollm3": GROUPED,
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {**TEXT, "state_size": 4},
    "mamba2": {
        **TEXT,
        "state_size": 4,
        "head_dim": 8,
        "num_heads": 8,
        "n_groups": 2,
        "chunk_size": 4,
    },
    "rwkv": {**TEXT, "attention_hidden_size": 32},
    "xlnet": {
        **_without(TEXT, "max_position_embeddings"),
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 48,
    },
}
MASKED: Mapping[str, Mapping[str, Any]] = {
    "bert": TEXT,
    "roberta": TEXT,
    "distilbert": {**TEXT, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "albert": {**TEXT, "embedding_size": 16},
    "electra": {**TEXT, "embedding_size": 16},
    "deberta": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "mpnet": TEXT,
    "modernbert": {**TEXT, "cls_token_id": 1, "sep_token_id": 2},
}
SEQUENCES: Mapping[str, Mapping[str, Any]] = {
    "t5": T5,
    "mt5": T5,
    "bart": ENCODER_DECODER,
    "mbart": ENCODER_DECODER,
    "pegasus": ENCODER_DECODER,
    "marian": ENCODER_DECODER,
}
IMAGES: Mapping[str, Mapping[str, Any]] = {
    "vit": IMAGE,
    "beit": IMAGE,
    "dinov2": IMAGE,
    "swin": {
        **_without(IMAGE, *TEXT),
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "convnext": {
        **IMAGE,
        "patch_size": 4,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "num_stages": 2,
    },
    "segformer": {"num_labels": 5},
    "mobilevit": {"num_labels": 5, "image_size": 64},
    "resnet": {"num_labels": 5, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}


TEXT_AND_IMAGE = {
    "text_config": {**TEXT, "projection_dim": 16},
    "vision_config": {**IMAGE, "projection_dim": 16},
    "projection_dim": 16,
}
PAIRS: Mapping[str, Mapping[str, Any]] = {"clip": TEXT_AND_IMAGE, "siglip": TEXT_AND_IMAGE}
SPOKEN: Mapping[str, Mapping[str, Any]] = {"wav2vec2": SPEECH, "hubert": SPEECH}
TRANSCRIBED: Mapping[str, Mapping[str, Any]] = {
    "whisper": {
        **ENCODER_DECODER,
        "num_mel_bins": 16,
        "max_source_positions": 20,
        "max_target_positions": 20,
    }
}
# On the CPU, attention with dropout uses the math kernel. So these also run without dropout.
WITH_DROPOUT = ("gpt2", "bert", "roberta", "distilbert", "electra", "mpnet", "wav2vec2", "hubert")


def networks() -> Iterator[Network]:
    """Yield one network of each family, for some families also one without dropout."""
    kinds = (
        ("AutoModelForCausalLM", CAUSAL, _text),
        ("AutoModelForMaskedLM", MASKED, _text),
        ("AutoModelForSeq2SeqLM", SEQUENCES, _text),
        ("AutoModelForImageClassification", IMAGES, _images),
        ("AutoModel", PAIRS, _pairs),
        ("AutoModelForCTC", SPOKEN, _speech),
        ("AutoModelForSpeechSeq2Seq", TRANSCRIBED, _spectrograms),
    )
    for kind, families, batch in kinds:
        for family, settings in families.items():
            build = functools.partial(_build, kind, family, settings, batch)
            yield Network("transformers", family, build)
            if family in WITH_DROPOUT:
                build = functools.partial(build, dropout=False)
                yield Network("transformers", f"{family}-without-dropout", build)


def _build(
    kind: str,
    family: str,
    settings: Mapping[str, Any],
    batch: Callable[[], dict[str, Any]],
    dropout: bool = True,
) -> Built:
    import transformers

    # Hide advice on how to run faster.
    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.for_model(family, **settings)
    if not dropout:
        rates = [name for name in vars(config) if "drop" in name]
        for name in rates:
            setattr(config, name, 0.0)
    model = getattr(transformers, kind).from_config(config)
    return Built(type(model).__name__, model, batch(), _own_loss)


def _own_loss(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    loss = model(**inputs).loss
    assert isinstance(loss, Tensor)
    return loss


def _text() -> dict[str, Any]:
    ids = torch.randint(3, TEXT["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.where(mask, ids, TEXT["pad_token_id"])
    labels = torch.where(mask, ids, -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def _images() -> dict[str, Any]:
    return {"pixel_values": images(32), "labels": torch.randint(5, (2,))}


def _pairs() -> dict[str, Any]:
    text = {name: x for name, x in _text().items() if name != "labels"}
    return {**text, "pixel_values": images(32), "return_loss": True}


def _labels() -> Tensor:
    return torch.randint(3, TEXT["vocab_size"], (2, 4))


def _speech() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 400), "labels": _labels()}


def _spectrograms() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 16, 40), "labels": _labels()}
