"""Train the built-in backbone (``model=tiny``) and write it with its tokenizer and its provenance.

A small Llama-architecture causal language model learns the package's own seeded text
(``curlora_lab.data.builtin.corpus``) on one CPU core. The files that ship in ``src/curlora_lab/assets/tiny`` came from::

    python scripts/train_tiny_backbone.py

Everything is drawn from ``--seed``; with the same versions, processor type and thread count the weights come out
byte for byte equal, elsewhere to rounding (the held-out perplexity to about 1 %).
"""

import argparse
import hashlib
import json
import logging
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curlora_lab.data.builtin.corpus import documents
from curlora_lab.data.builtin.draw import Draw

ASSETS = Path(__file__).resolve().parents[1] / "src/curlora_lab/assets/tiny"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
MEGABATCH = 4096
log = logging.getLogger("train_tiny_backbone")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of text, weights and order")
    parser.add_argument("--documents", type=int, default=150_000, help="training documents; each is seen once")
    parser.add_argument("--plain-first", type=int, default=22_500, help="documents at the start without negation")
    parser.add_argument("--heldout", type=int, default=1000, help="held-out documents")
    parser.add_argument("--batch-tokens", type=int, default=640, help="tokens a step, about")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of AdamW")
    parser.add_argument(
        "--warmup", type=int, default=100, help="steps of linear warm-up; linear decay over the last 30 percent"
    )
    parser.add_argument("--hidden", type=int, default=128, help="hidden size")
    parser.add_argument("--mlp", type=int, default=320, help="MLP size")
    parser.add_argument("--layers", type=int, default=4, help="layers")
    parser.add_argument("--heads", type=int, default=4, help="attention heads")
    parser.add_argument("--context", type=int, default=256, help="maximum positions")
    parser.add_argument("--init", type=float, default=0.06, help="standard deviation of the first weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(argv)


def build_tokenizer(texts: list[str], context: int, merges: int = 160) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer that knows every word of the texts as one token and spells all others.

    Any string comes back from ``decode(encode(s))``: bytes are the floor. Words of the language are tokens of their own
    (``ignore_merges``, as in Llama 3); a few byte-pair merges shorten other English text.

    Args:
        texts: Text in the language, long enough to hold every word.
        context: Most tokens that the model reads.
        merges: Number of byte-pair merges.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    fallback = Tokenizer(models.BPE())
    fallback.pre_tokenizer = split
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    fallback.train_from_iterator(texts, trainer)
    bpe = json.loads(fallback.to_str())["model"]
    pieces = [*SPECIAL, *sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)]
    pieces += sorted(set(words) - set(pieces))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [tuple(pair) for pair in bpe["merges"]], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False, padding_side="right", model_max_length=context,
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of each document, from <s> to </s>."""
    found = tokenizer.backend_tokenizer.encode_batch([row["text"] for row in rows])
    return [[*document.ids, SPECIAL.index("</s>")] for document in found]


def batches(encoded: list[list[int]], budget: int, context: int, seed: int) -> Iterator[list[list[int]]]:
    """Batches of about ``budget`` tokens: documents of like length together, one part in seven packed to full context.

    Args:
        encoded: Token ids a document, with <s> and </s>.
        budget: Tokens a batch, padding included.
        context: Length of a packed row; long windows must be seen for the model to be good at them.
        seed: Seed of the order.
    """
    draw = Draw("batches", seed)
    for start in range(0, len(encoded), MEGABATCH):
        chunk = encoded[start : start + MEGABATCH]
        cut = len(chunk) // 7
        stream = [token for document in chunk[:cut] for token in document]
        rows = [stream[i : i + context] for i in range(0, len(stream) - context + 1, context)]
        rows += sorted(chunk[cut:], key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if groups[-1] and max(len(row), len(groups[-1][0])) * (len(groups[-1]) + 1) > budget:
                groups.append([])
            groups[-1].append(row)
        yield from draw.shuffled(groups)


def padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows, longest), padded on the right, and labels with -100 on padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, ids.masked_fill(torch.arange(longest) >= lengths[:, None], -100)


def optimiser_of(model: LlamaForCausalLM, lr: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-9)


def train(model: LlamaForCausalLM, steps: list[list[list[int]]], args: argparse.Namespace) -> int:
    """One pass over the batches; returns the number of tokens trained on."""
    pad = SPECIAL.index("<pad>")
    optimiser = optimiser_of(model, args.lr)
    seen, started, running = 0, time.perf_counter(), 0.0
    model.train()
    for step, rows in enumerate(steps):
        warm, left = min(1.0, (step + 1) / args.warmup), (len(steps) - step) / (0.3 * len(steps))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * warm * min(1.0, left)
        ids, labels = padded(rows, pad)
        # causal attention never looks at padding on the right, so no mask: the fast attention path
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seen += sum(map(len, rows))
        running += loss.item()
        if (step + 1) % 100 == 0:
            log.info("step %d/%d loss %.4f tokens %d %.0f s", step + 1, len(steps), running / 100, seen,
                     time.perf_counter() - started)  # fmt: skip
            running = 0.0
    return seen


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, encoded: list[list[int]]) -> tuple[float, int]:
    """Perplexity a token of documents, each from its own <s> to its </s>, and the number of tokens predicted."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(encoded), 50):
        ids, labels = padded(encoded[start : start + 50], SPECIAL.index("<pad>"))
        logits = model(input_ids=ids).logits[:, :-1]
        targets = labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="sum", ignore_index=-100)
        total += losses.item()
        count += int((targets != -100).sum())
    return math.exp(total / count), count


def build_model(args: argparse.Namespace, vocabulary: int) -> LlamaForCausalLM:
    """The untrained model, its weights drawn from the seed."""
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=args.hidden, intermediate_size=args.mlp, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, num_key_value_heads=args.heads, max_position_embeddings=args.context,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=args.init,
        attention_dropout=0.0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def text_hash(rows: list[dict[str, Any]]) -> str:
    """sha256 of the texts, one a line."""
    return hashlib.sha256("\n".join(row["text"] for row in rows).encode()).hexdigest()


def command_of(args: argparse.Namespace) -> str:
    """The command that gives the same files: what differs from the defaults, less the folder."""
    defaults = vars(arguments([]))
    given = {name: value for name, value in vars(args).items() if name != "out" and value != defaults[name]}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
    return " ".join(["python scripts/train_tiny_backbone.py", *options])


def environment() -> dict[str, Any]:
    """What the weights' last bits depend on besides the arguments."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)}
    return {
        "deterministic": "byte for byte on the same processor type, versions and thread count; elsewhere to rounding",
        "versions": {"python": platform.python_version(), **versions},
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> dict[str, str]:
    """Write model and tokenizer; returns the sha256 of each file that holds learnt or counted things."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    names = ("model.safetensors", "tokenizer.json")
    for name in names:
        (out / name).chmod(0o644)
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, write, and return the provenance."""
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    corpus = documents("train", min(args.plain_first, args.documents), args.seed, plain=1.0)
    corpus += documents("train", args.documents, args.seed)[len(corpus) :]
    heldout = documents("test", args.heldout, args.seed)
    tokenizer = build_tokenizer([row["text"] for row in corpus[-20_000:]], args.context)
    encoded, encoded_heldout = encode(tokenizer, corpus), encode(tokenizer, heldout)
    model = build_model(args, len(tokenizer))
    steps = list(batches(encoded, args.batch_tokens, args.context, args.seed))
    log.info("%d parameters, vocabulary %d, %d steps", model.num_parameters(), len(tokenizer), len(steps))
    tokens = train(model, steps, args)
    value, counted = perplexity(model, encoded_heldout)
    log.info("held-out perplexity %.4f over %d tokens", value, counted)
    hashes = write(model, tokenizer, args.out)
    provenance = {
        "what": "Llama-architecture causal language model, trained on the package's own seeded text generator",
        "command": command_of(args),
        "arguments": {name: value for name, value in vars(args).items() if name != "out"},
        "parameters": model.num_parameters(),
        "corpus": {
            "generator": "curlora_lab.data.builtin.corpus.documents", "split": "train", "documents": args.documents,
            "seed": args.seed, "sha256": text_hash(corpus), "tokens_trained": tokens, "steps": len(steps),
        },
        "heldout": {
            "split": "test", "documents": args.heldout, "seed": args.seed, "sha256": text_hash(heldout),
            "protocol": "each document alone, from its <s> to its </s>", "tokens": counted, "perplexity": value,
        },
        "sha256": hashes,
        **environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "licence": "MIT, as the package",
    }  # fmt: skip
    (args.out / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")
    return provenance


if __name__ == "__main__":
    main()
