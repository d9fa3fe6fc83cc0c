"""Make CURLoRA known to PEFT, whose list of methods is closed to other packages.

`register_peft_method` is the official way, but it accepts only names that are members of the enum `PeftType`. So a
member is added first. This leans on internals: the package pins PEFT, and the contract test in
`tests/unit/adapters/test_registration.py` fails loudly on an upgrade that breaks it.
"""

import peft
from peft.utils.peft_types import PeftType, register_peft_method

PEFT_TYPE = "CURLORA"


def add_peft_type() -> None:
    """Add the member `CURLORA` to `PeftType`; must happen before a `CurLoraConfig` is made.

    Raises:
        ImportError: The installed PEFT keeps its types in another way.
    """
    if PEFT_TYPE in PeftType.__members__:
        return
    try:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = PEFT_TYPE
        member._value_ = PEFT_TYPE
        member._sort_order_ = len(PeftType.__members__)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._value2member_map_[PEFT_TYPE] = member
        type.__setattr__(PeftType, PEFT_TYPE, member)
        works = PeftType(PEFT_TYPE) is PeftType.CURLORA and PEFT_TYPE in list(PeftType)
    except (AttributeError, TypeError) as error:
        raise ImportError(_message(str(error))) from error
    if not works:
        raise ImportError(_message("the new member of PeftType cannot be found"))


def register() -> None:
    """Register configuration and tuner with PEFT; safe to call again.

    Raises:
        ImportError: The installed PEFT does not take the registration.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    from curlora_lab.adapters.config import CurLoraConfig
    from curlora_lab.adapters.model import CurLoraModel

    if PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType.CURLORA) is CurLoraModel:
        return
    try:
        register_peft_method(name=PEFT_TYPE.lower(), config_cls=CurLoraConfig, model_cls=CurLoraModel)
    except (KeyError, TypeError, ValueError) as error:
        raise ImportError(_message(str(error))) from error


def _message(cause: str) -> str:
    return (
        f"curlora_lab cannot register CURLoRA with the installed peft {peft.__version__} ({cause}); "
        f"it is tested with peft>=0.21.2,<0.22: pip install 'peft>=0.21.2,<0.22'."
    )
