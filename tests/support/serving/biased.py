"""A Llama whose attention has biases, also in o_proj: random weights, to compare to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch


def biased_llama(beside: Path, directory: Path) -> Path:
    """Write it to `directory`, with the vocabulary and the tokenizer of the model `beside`."""
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    like = AutoConfig.from_pretrained(beside)
    config = LlamaConfig(
        vocab_size=like.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        attention_bias=True,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_()  # transformers begins with zeros
    model.to(torch.bfloat16).save_pretrained(directory)
    for file in beside.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges")):
            shutil.copy(file, directory)
    return directory
