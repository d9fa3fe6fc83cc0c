"""What a configuration may be: types of the root keys, the ``mul`` resolver, and one check of everything before work starts."""

from curlora_lab.config.schema import ConfigError, RootConfig, RunError, conf_dir, register
from curlora_lab.config.validation import ADAPTER_KEYS, check_overrides, tasks_of, validate

__all__ = [
    "ADAPTER_KEYS",
    "ConfigError",
    "RootConfig",
    "RunError",
    "check_overrides",
    "conf_dir",
    "register",
    "tasks_of",
    "validate",
]
