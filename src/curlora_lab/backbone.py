"""The pretrained model that every task shares: transformer, LM head and tokenizer, with one way to read features.

A backbone comes from the Hugging Face hub, from a local folder or from this package (``path: builtin``). A causal
language model keeps its LM head beside the task heads, so that the language model can be probed after every stage.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

BUILTIN = "builtin"
MOST_LAYERS = 10_000  # more are a mistake or an attack, and take memory without end
BUILTIN_FOLDER = Path(__file__).parent / "assets" / "tiny"

Pooling = Literal["last_token", "cls", "mean", "last_position"]
POOLINGS: tuple[Pooling, ...] = ("last_token", "cls", "mean", "last_position")
Dtype = Literal["float32", "bfloat16", "float16", "float64"]

# The attention projections that read the input (queries, keys, values), by architecture family; the first set of
# names that is present as a whole is taken. Fused projections count as one module, as in the CURLoRA paper.
ATTENTION_INPUTS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT, Phi
    ("c_attn",),  # GPT-2 (fused, Conv1D)
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa v2/v3
    ("query_key_value",),  # GPT-NeoX, BLOOM, Falcon
    ("qkv_proj",),  # Phi-3
    ("Wqkv",),  # ModernBERT, MPT
    ("att_proj",),  # OLMo
)


class Backbone(nn.Module):
    """A pretrained transformer with its tokenizer.

    Args:
        model: a Hugging Face causal LM (``is_causal``) or encoder; may later be wrapped by PEFT.
        tokenizer: its fast tokenizer, with a pad token.
        name: short name for run folders.
        fingerprint: identifies the content of weights and tokenizer.
        is_causal: whether the model has a next-token LM head.
        pooling: how a text becomes one vector, see :meth:`features`.
        target_modules: names of the modules that adapters adapt by default.
        source: where it came from, for the record (path, revision, dtype).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        fingerprint: str,
        is_causal: bool,
        pooling: Pooling,
        target_modules: str | Sequence[str] | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is unknown; choose one of {', '.join(POOLINGS)}.")
        if is_causal and pooling == "cls":
            raise ValueError(
                "pooling=cls reads the first token, which in a causal model has seen no other; use last_token or mean."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self.is_causal = is_causal
        self.pooling: Pooling = pooling
        self.source = dict(source or {})
        self.target_modules = resolve_targets(model, target_modules)
        self.training = model.training  # nn.Module begins in training mode, loaded models do not

    @property
    def transformers_model(self) -> Any:
        """The Hugging Face model itself, without a PEFT wrapper (its modules carry the adapters)."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> PretrainedConfig:
        """Configuration of the Hugging Face model."""
        return self.transformers_model.config

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of rows of the input embedding."""
        return int(self.transformers_model.get_input_embeddings().num_embeddings)

    @property
    def context(self) -> int:
        """Longest input in tokens that the model has positions for."""
        config = self.config
        positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        reserved = (
            2 if config.model_type in {"roberta", "xlm-roberta", "camembert"} else 0
        )  # positions start at pad + 1
        return int(positions) - reserved if positions else 1_000_000

    def hidden_states(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq hidden"]:
        """Last hidden states of the transformer, before any head."""
        transformer = self.transformers_model
        if self.is_causal:
            transformer = transformer.base_model
        return transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def features(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch hidden"]:
        """One vector a text.

        ``last_token``: the last real token (never padding, on whichever side it is); ``cls``: the first real token;
        ``mean``: mean over real tokens; ``last_position``: position -1 whatever stands there, as the published CURLoRA
        code reads it (with right padding a pad position for every row but the longest of its batch).
        """
        return pool(self.hidden_states(input_ids, attention_mask), attention_mask, self.pooling)

    def lm_logits(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq vocab"]:
        """Next-token logits of the language model.

        Raises:
            ValueError: the backbone is an encoder, which has no next-token head.
        """
        if not self.is_causal:
            raise ValueError(f"Backbone {self.name!r} is an encoder and has no next-token LM head; use a causal model.")
        return self.transformers_model(input_ids=input_ids, attention_mask=attention_mask).logits

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """The model without its PEFT adapter; no effect where none is attached."""
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            yield


def pool(
    hidden: Float[Tensor, "batch seq hidden"], mask: Int[Tensor, "batch seq"], pooling: Pooling
) -> Float[Tensor, "batch hidden"]:
    """Reduce hidden states to one vector a row; see :meth:`Backbone.features`."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    if pooling == "last_token":
        return hidden[rows, (mask * positions).argmax(dim=1)]
    if pooling == "cls":
        return hidden[rows, mask.argmax(dim=1)]
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()  # half precision can't count beyond 256
        return ((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(hidden.dtype)
    return hidden[:, -1]


def load_backbone(
    path: str | None,
    *,
    name: str | None = None,
    revision: str | None = None,
    kind: Literal["auto", "causal", "encoder"] = "auto",
    dtype: Dtype = "float32",
    pooling: Pooling | None = None,
    target_modules: str | Sequence[str] | None = None,
    quantization: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a pretrained backbone.

    Args:
        path: ``builtin``, a folder in Hugging Face format, or a hub id such as ``gpt2``.
        name: short name for run folders; default: the last part of ``path``.
        revision: hub revision (branch, tag or commit).
        kind: ``causal`` keeps the LM head, ``encoder`` has none, ``auto`` decides by the model's own configuration.
        dtype: of the weights.
        pooling: see :meth:`Backbone.features`; default: ``last_token`` for causal models, ``cls`` for encoders.
        target_modules: modules that adapters adapt by default (names, or a regular expression); default: the query, key
            and value projections of known architectures.
        quantization: arguments of ``transformers.BitsAndBytesConfig`` (extra ``quant``); ``None`` for no quantisation.
        trust_remote_code: run code from the hub repository. Off unless asked in so many words.

    Raises:
        ValueError: the folder does not exist or is not a model, lacks weights, can't be had from the hub, or an argument has an
            unknown value.
    """
    if not path:
        raise ValueError(
            "model.path is not set; give a folder in Hugging Face format or a hub id: model.path=<folder>."
        )
    location = locate_model(path)
    if dtype not in get_args(Dtype):
        raise ValueError(f"model.dtype={dtype!r} is unknown; choose one of {', '.join(get_args(Dtype))}.")
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(location, **common)
    except OSError as error:
        raise ValueError(_not_there(path, error)) from error
    _refuse_odd(config, path, trusted=trust_remote_code)
    is_causal = decide_kind(kind, config, path)
    arguments: dict[str, Any] = {**common, "config": config, "dtype": getattr(torch, dtype), "use_safetensors": True}
    if quantization is not None:
        arguments["quantization_config"] = _quantization(quantization)
    model = _load_model(location, is_causal=is_causal, **arguments)
    return Backbone(
        model,
        load_tokenizer(location, vocab_size=model.get_input_embeddings().num_embeddings, **common),
        name=name or ("tiny" if path == BUILTIN else Path(path).name.lower()),
        fingerprint=_fingerprint(location, getattr(config, "_commit_hash", None)),
        is_causal=is_causal,
        pooling=pooling or ("last_token" if _is_causal(config) else "cls"),
        target_modules=target_modules,
        source={"path": path, "revision": getattr(config, "_commit_hash", None) or revision, "dtype": dtype},
    )


def _load_model(location: str, *, is_causal: bool, **arguments: Any) -> Any:
    """The transformer, frozen; missing weights, which transformers would fill with random numbers, raise ValueError."""
    loader = AutoModelForCausalLM if is_causal else AutoModel
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of missing weights is replaced by the error below
    try:
        with torch.random.fork_rng(devices=[]):  # weights that are missing are drawn
            model, loaded = loader.from_pretrained(location, output_loading_info=True, **arguments)
    except SafetensorError as error:
        raise ValueError(
            f"The weights at {location!r} are damaged ({error}); fetch or save the model again."
        ) from error
    except OSError as error:
        raise ValueError(_not_there(location, error)) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # an encoder's own pooler is never read here, and often not in the file
    missing = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)
    if missing:
        raise ValueError(
            f"{location!r} lacks {len(missing)} of the weights of {type(model).__name__} ({', '.join(missing[:3])}), which would "
            "be random; use a complete checkpoint, or model.kind=encoder where only the LM head is missing."
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes would repack 4-bit weights in evaluation,
            module.support_avx512bf16_for_cpu = False  # and no gradient passes them after that
    return model.requires_grad_(False)


def decide_kind(kind: str, config: PretrainedConfig, path: str) -> bool:
    """Whether the model keeps a next-token head.

    Raises:
        ValueError: ``causal`` was asked of a model that reads in both directions.
    """
    if kind not in ("auto", "causal", "encoder"):
        raise ValueError(f"model.kind={kind!r} is unknown; choose one of auto, causal, encoder.")
    if kind == "causal" and not _is_causal(config):
        raise ValueError(
            f"model.kind=causal, but {path!r} is no causal language model (architectures {config.architectures}, type "
            f"{config.model_type!r}); use model.kind=encoder or auto."
        )
    return kind == "causal" or (kind == "auto" and _is_causal(config))


def _refuse_odd(config: PretrainedConfig, path: str, *, trusted: bool) -> None:
    """Refuse layers without end, and kernels on the hub, which transformers would fetch and run."""
    if getattr(config, "num_hidden_layers", 0) > MOST_LAYERS:
        raise ValueError(f"model.path={path!r} has more than {MOST_LAYERS} layers; no model has.")
    if not trusted and any("implementation" in key and "/" in str(value) for key, value in vars(config).items()):
        raise ValueError(
            f"model.path={path!r} asks for kernels (code) from the hub; allow it with model.trust_remote_code=true."
        )


def _not_there(path: str, error: OSError) -> str:
    """What to do when neither the hub nor a folder gives the model."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"model.path={path!r} can't be loaded: it is no folder here, and the hub does not give it ({first.rstrip('.')}). "
        "Check the name, log in where the model is gated, or without a network use model=tiny or model=local "
        "model.path=<folder>."
    )


def load_tokenizer(location: str, *, vocab_size: int, **arguments: Any) -> Any:
    """The model's tokenizer, padding on the right with a real pad token.

    Raises:
        ValueError: the tokenizer knows more tokens than the model has embeddings for, or it has neither pad nor eos token.
    """
    tokenizer = AutoTokenizer.from_pretrained(location, **arguments)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer at {location!r} has {len(tokenizer)} tokens but the model embeds only {vocab_size}: they do not "
            "belong together. Use the tokenizer that was saved with the model."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer at {location!r} has neither a pad nor an eos token; set one and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token  # masked everywhere: pooling and losses go by the attention mask
    tokenizer.padding_side = "right"
    return tokenizer


def resolve_targets(model: nn.Module, targets: str | Sequence[str] | None) -> str | list[str]:
    """Names of the modules to adapt: as given, or the attention inputs of a known architecture.

    Raises:
        ValueError: nothing was given and the architecture is unknown; the message lists the linear modules there are.
    """
    if targets is not None:
        return targets if isinstance(targets, str) else list(targets)
    present = set(linear_names(model))
    for names in ATTENTION_INPUTS:
        if present.issuperset(names):
            return list(names)
    raise ValueError(
        f"No known attention projections in {type(model).__name__}; name the modules to adapt with model.target_modules=[...]. "
        f"Linear modules there are: {', '.join(sorted(present)) or 'none'}."
    )


def linear_names(model: nn.Module) -> list[str]:
    """Last name parts of all modules with a weight matrix (``nn.Linear`` and kin, ``Conv1D``), each once, in order."""
    names = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or type(module).__name__.startswith("Linear")
    )
    return list(dict.fromkeys(names))


def locate_model(path: str) -> str:
    """Folder of a built-in or local model, else the hub id unchanged.

    Raises:
        ValueError: a folder is no model in Hugging Face format, or what is clearly a path leads nowhere.
    """
    if path == BUILTIN:
        return str(BUILTIN_FOLDER)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{path!r} is a folder without config.json, so not a model in Hugging Face format.")
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(f"model.path={path!r}: there is no such folder (from {Path.cwd()}).")
    return path


def _is_causal(config: PretrainedConfig) -> bool:
    """Whether the checkpoint was made as a causal LM; by model type where it does not say."""
    architectures = getattr(config, "architectures", None) or []
    if architectures:
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _quantization(arguments: Mapping[str, Any]) -> Any:
    """A bitsandbytes configuration; says which extra to install where the library is missing."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError("model.quantization needs bitsandbytes: pip install 'curlora-lab[quant]'.") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**arguments)


def _fingerprint(location: str, commit: str | None) -> str:
    """Sha256 of a local model's files; of name and commit for one from the hub, whose commits are immutable."""
    digest = hashlib.sha256()
    folder = Path(location)
    if not folder.is_dir():
        digest.update(f"{location}@{commit}".encode())
        return digest.hexdigest()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".model", ".txt"} and file.name != "PROVENANCE.json":
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
