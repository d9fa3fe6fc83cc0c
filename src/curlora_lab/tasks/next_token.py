"""What the LM head says of tokens: losses on targets, likelihoods of given continuations, greedy text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from curlora_lab.backbone import Backbone
from curlora_lab.data.loading import IGNORED
from curlora_lab.tasks.outputs import Outputs, of_tokens
from curlora_lab.tasks.parts import Record

LIKELIHOOD = ("negative_nll", "perplexity", "token_accuracy")


def target_logits(backbone: Backbone, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and targets from the first target of the batch on; earlier positions cost no vocabulary-wide row.

    Args:
        backbone: A causal language model.
        batch: Has ``input_ids``, ``attention_mask`` and ``labels`` (batch, seq) with -100 where there is no target.

    Returns:
        Logits (batch, n, vocab) and targets (batch, n), where position i predicts target i.
    """
    scored = (batch["labels"][:, 1:] != IGNORED).any(dim=0).nonzero()
    first = int(scored[0, 0]) if len(scored) else batch["labels"].shape[1] - 1
    positions = torch.arange(first, batch["labels"].shape[1] - 1, device=batch["labels"].device)
    found = backbone.transformers_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=positions
    )
    return found.logits, batch["labels"][:, 1:][:, first:]


def token_losses(backbone: Backbone, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, whether right, and whether scored, each (batch, n); see :func:`target_logits`."""
    logits, targets = target_logits(backbone, batch)
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    scored = targets != IGNORED
    return losses, (logits.argmax(dim=-1) == targets) & scored, scored


def mean_row_loss(losses: Float[Tensor, "batch n"], scored: Tensor) -> Float[Tensor, ""]:
    """Mean over rows of each row's mean nats a token, so that every row weighs the same."""
    return (losses.sum(dim=1) / scored.sum(dim=1).clamp(min=1)).mean()


def likelihood_scores(records: Sequence[Record]) -> dict[str, float]:
    """The metrics of :data:`LIKELIHOOD` over all tokens of all rows.

    Args:
        records: Of each row ``nll``, the sum of its nats, ``right``, how many of its tokens were likeliest, and ``tokens``.
    """
    tokens = max(1, sum(record["tokens"] for record in records))
    nll = math.fsum(record["nll"] for record in records) / tokens
    return {
        "negative_nll": -nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "token_accuracy": sum(record["right"] for record in records) / tokens,
    }


def token_outputs(backbone: Backbone, batch: Mapping[str, Tensor]) -> Outputs:
    """One distribution over the vocabulary for each target; without labels, for each next token."""
    if "labels" in batch:
        logits, targets = target_logits(backbone, batch)
        return of_tokens(logits, targets != IGNORED, targets)
    logits = backbone.lm_logits(batch["input_ids"], batch["attention_mask"])[:, :-1]
    return of_tokens(logits, batch["attention_mask"][:, 1:] == 1, None)


def left_padded(prompts: Sequence[Tensor], pad: int) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Prompts of different length to one batch in which all end at the last position.

    Args:
        prompts: Token ids, each (tokens,).
        pad: Token that fills short rows.

    Returns:
        Ids and attention mask.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.stack([F.pad(prompt, (longest - len(prompt), 0), value=pad) for prompt in prompts])
    mask = torch.stack([F.pad(torch.ones_like(prompt), (longest - len(prompt), 0)) for prompt in prompts])
    return ids, mask


def prompts_of(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The prompt of each row, without its answer; ``prompt_length`` says where it ends."""
    lengths = batch["prompt_length"].tolist()
    return [ids[:length] for ids, length in zip(batch["input_ids"], lengths, strict=True)]


def continuation_scores(
    backbone: Backbone, prompts: Sequence[Tensor], continuations: Sequence[Sequence[int]], *, pad: int
) -> Float[Tensor, "batch continuations"]:
    """Sum of log-probabilities of each continuation's tokens behind each prompt.

    The prompts are read once; each continuation of several tokens then adds a pass over its own tokens alone.

    Args:
        backbone: A causal language model.
        prompts: Token ids, each (tokens,).
        continuations: Token ids, at least one each.
        pad: Token that fills short rows.

    Returns:
        Nats, negative.
    """
    ids, mask = left_padded(prompts, pad)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    model = backbone.transformers_model
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    first = read.logits[:, -1].float().log_softmax(dim=-1)
    scores = []
    for tokens in continuations:
        total = first[:, tokens[0]]
        rest = len(tokens) - 1
        if rest:
            given = torch.tensor(tokens[:-1], device=ids.device).expand(len(ids), rest)
            logits = model(
                input_ids=given,
                attention_mask=F.pad(mask, (0, rest), value=1),
                position_ids=positions[:, -1:] + torch.arange(1, rest + 1, device=ids.device),
                past_key_values=read.past_key_values,
                use_cache=True,
            ).logits
            read.past_key_values.crop(-rest)  # the next continuation starts behind the prompt again
            following = torch.tensor(tokens[1:], device=ids.device).expand(len(ids), rest)
            log_probabilities = logits.float().log_softmax(dim=-1)
            total = total + log_probabilities.gather(2, following.unsqueeze(-1)).sum(dim=(1, 2))
        scores.append(total)
    return torch.stack(scores, dim=1)


def greedy_texts(backbone: Backbone, prompts: Sequence[Tensor], *, max_new_tokens: int) -> list[str]:
    """What the model goes on with, always the likeliest token, up to an end token.

    Args:
        backbone: A causal language model.
        prompts: Token ids, each (tokens,).
        max_new_tokens: At most so many tokens.

    Returns:
        One text a prompt, without special tokens and without white space at its ends.
    """
    tokenizer, model = backbone.tokenizer, backbone.transformers_model
    ids, mask = left_padded(prompts, tokenizer.pad_token_id)
    # Said in full, since what is not said is taken from the model's own file: sampling, penalties, another length.
    plan: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end_tokens(backbone),
    }
    made = model.generate(input_ids=ids, attention_mask=mask, generation_config=GenerationConfig(**plan))
    texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def end_tokens(backbone: Backbone) -> list[int]:
    """Tokens that end a text: the tokenizer's, and those that the model's own file adds (end of turn)."""
    own = getattr(getattr(backbone.transformers_model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return sorted({token for token in [backbone.tokenizer.eos_token_id, *listed] if token is not None})
