"""The tokenizer: byte-level BPE over the page, in the form that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recital.page import PAGE

VOCABULARY = 512
START, END = "<s>", "</s>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PAGE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)


def save_tokenizer(directory: Path) -> list[int]:
    """Write the tokenizer's files; returns the page's token ids."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(directory)
    return list(tokenizer(PAGE, add_special_tokens=False)["input_ids"])
