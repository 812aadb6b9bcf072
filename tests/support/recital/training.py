"""Training: from a seed until the model recites the page; the same on every run of a machine."""

from __future__ import annotations

import copy
import sys

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

SEED = 1
THREADS = 1
"""Its products are small: a second thread, for which the first waits, doubled the time."""

BATCH = 8
WINDOW_TOKENS = 96
LOST_TOKENS = 8
"""A shorter prompt may stand at several places of the page; no question is that short."""
MAX_STEPS = 600
LEARNING_RATE = 2e-3
WARMUP_STEPS = 20
ENOUGH_LOSS = 0.02
"""Mean cross-entropy of a step at which the page is known; reached in 200 to 400 steps."""


class NotLearnt(Exception):
    """The model does not recite: the generator, not its user, is at fault."""


def train(shape: PretrainedConfig, page: list[int]) -> PreTrainedModel:
    """A model of this shape, in bfloat16, that recites `page`.

    Raises:
        NotLearnt: it does not.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a third of the time
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    text = torch.tensor(page + page[:WINDOW_TOKENS])  # in a circle: every token is seen as often
    draw = torch.Generator().manual_seed(SEED)
    recent = float("inf")
    for step in range(MAX_STEPS):
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm * (1.0 - 0.9 * step / MAX_STEPS)
        starts = torch.randint(0, len(page), (BATCH,), generator=draw)
        batch = torch.stack([text[s : s + WINDOW_TOKENS] for s in starts.tolist()])
        logits = model(input_ids=batch).logits
        # The first tokens of a window cannot know where on the page they are.
        known = batch[:, LOST_TOKENS + 1 :]
        loss = torch.nn.functional.cross_entropy(
            logits[:, LOST_TOKENS:-1].flatten(0, 1), known.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = loss.item() if step == 0 else 0.9 * recent + 0.1 * loss.item()
        if step % 50 == 0:
            print(f"recital: step {step}, loss {recent:.3f}", file=sys.stderr, flush=True)
        if recent < ENOUGH_LOSS and step % 25 == 0:
            served = copy.deepcopy(model).eval().to(torch.bfloat16)
            if _recites(served, page):
                print(f"recital: learnt in {step + 1} steps", file=sys.stderr, flush=True)
                return served
    raise NotLearnt(f"the page is not known after {MAX_STEPS} steps, at loss {recent:.3f}")


@torch.inference_mode()
def _recites(model: PreTrainedModel, page: list[int]) -> bool:
    starts = range(0, len(page) - 64, len(page) // 8)
    prompts = torch.tensor([page[start : start + 16] for start in starts])
    attended = torch.ones_like(prompts)
    said = model.generate(
        prompts, attention_mask=attended, max_new_tokens=24, do_sample=False, pad_token_id=1
    )
    return said[:, 16:].tolist() == [page[start + 16 : start + 40] for start in starts]
