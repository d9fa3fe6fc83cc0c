"""CURLoRA as a PEFT tuner: configuration, bases, update, files and export."""

from curlora_lab.adapters.registration import add_peft_type, register

add_peft_type()

from curlora_lab.adapters.config import CurLoraConfig  # noqa: E402  the enum member must exist first
from curlora_lab.adapters.export import LoraExport, to_lora  # noqa: E402
from curlora_lab.adapters.layer import CurLoraLinear  # noqa: E402
from curlora_lab.adapters.model import CurLoraModel  # noqa: E402

register()

__all__ = ["CurLoraConfig", "CurLoraLinear", "CurLoraModel", "LoraExport", "to_lora"]
