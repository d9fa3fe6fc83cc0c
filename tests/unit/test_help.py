"""``python train.py --help`` against the keys that there are."""

import re

import yaml

from curlora_lab.config import conf_dir
from curlora_lab.config.schema import PARTS, ROOT_KEYS


def test_help_lists_every_root_key_with_a_clause() -> None:
    template = yaml.safe_load((conf_dir() / "hydra" / "help" / "lab.yaml").read_text(encoding="utf-8"))["template"]
    lines = template.split("== Root keys (key=value) ==\n")[1].split("\n\n")[0].splitlines()
    found = [re.fullmatch(r"(\w+(?:  \w+)*) {2,}(\S.*)", line) for line in lines]
    assert all(found), lines
    listed = [key for match in found if match for key in match[1].split()]
    assert sorted(listed) == sorted(set(ROOT_KEYS) - set(PARTS))
