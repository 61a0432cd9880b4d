"""Write a model of random weights and a probe for it, where no checkpoint is at hand: speed does not depend on them.

    python benchmarks/random_model.py config.json TOKENIZER FOLDER

FOLDER gets the model in bfloat16 with the tokenizer, and FOLDER-probe.safetensors a probe on the state before the block
in the middle. TOKENIZER is a folder or a Hub id with a chat template; the model's vocabulary must hold its tokens.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers

from anydepth import LinearProbe
from anydepth.backends.checkpoint_identity import identify
from anydepth.backends.protocol import Read, Site
from anydepth.detectors import ProbeCard
from anydepth.templates.template import ChatTemplate


def write(config_file: Path, tokenizer_name: str, folder: Path) -> Path:
    """Write model and tokenizer into `folder`, and the probe beside it; returns the probe's path.

    Raises:
        SystemExit: The tokenizer has more tokens than the model's vocabulary.
    """
    config = transformers.AutoConfig.from_pretrained(config_file)
    text = config.get_text_config(decoder=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_name)
    if len(tokenizer) > text.vocab_size:
        raise SystemExit(
            f"{tokenizer_name} has {len(tokenizer)} tokens and the model a vocabulary of {text.vocab_size}; give the "
            "tokenizer that belongs to the config"
        )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.9, 1.1)  # the fingerprint is made of these
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = ChatTemplate(tokenizer)
    read = Read(Site(text.num_hidden_layers // 2), template.header.read_index)
    card = ProbeCard(
        model=identify(str(folder), config),
        header_ids=template.header.ids,
        reads=(read,),
        template_digest=template.digest,
        policy={"name": "threshold", "threshold": 1.0},
    )
    weight = np.random.default_rng(0).standard_normal((1, text.hidden_size)).astype(np.float32)
    probe = folder.with_name(f"{folder.name}-probe.safetensors")
    LinearProbe(weight / np.float32(text.hidden_size), 0.0, card).save(probe)
    return probe


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(write(args.config, args.tokenizer, args.folder))


if __name__ == "__main__":
    main()
