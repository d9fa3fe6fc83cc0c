"""Continual fine-tuning of language models with small adapters, measured honestly.

Importing the package registers CURLoRA with PEFT, so that `peft.get_peft_model`, `PeftModel.from_pretrained` and
transformers' `load_adapter` know it.
"""

from importlib.metadata import PackageNotFoundError, version

from curlora_lab.adapters import CurLoraConfig, CurLoraModel, to_lora

try:
    __version__ = version("curlora-lab")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["CurLoraConfig", "CurLoraModel", "__version__", "to_lora"]
