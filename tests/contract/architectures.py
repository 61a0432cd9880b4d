"""Write docs/architectures.md from what the contract suite finds: `python -m tests.contract.architectures`."""

from pathlib import Path

from anydepth.backends.transformers import TransformersBackend
from anydepth.errors import UnsupportedModel
from tests import tiny
from tests.contract.contract import (
    GREEDY,
    MAX_NEW_TOKENS,
    SAMPLED,
    TOLERANCE,
    backend_of,
    largest_difference,
    prompt_of,
    run,
    watcher_for,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"

MARK = "<!-- the sweep: written by `python -m benchmarks.architectures --page` -->"
"""What the part of the page begins with that this module does not write."""

HEAD = """\
# Architectures

<!-- Written by `python -m tests.contract.architectures` from the contract suite's result. Do not edit by hand. -->

Each family is tested as a tiny random model, in float32, with Transformers {version} (5.16 is the oldest that
works). There are two contracts:

1. **Same stream**: a guarded answer that is not halted is, token for token, the unguarded one, with greedy decoding and
   with seeded sampling.
2. **True states**: the state that a check reads on the fork equals that of a full recomputation without a cache (within
   1e-4).

"Forked" names how each layer of the cache is forked at a check:

- *shared*: nothing is copied;
- *slots*: nothing is copied, and the fork writes into slots behind the parent's end, which the parent overwrites;
- *cloned*: a state is copied whose size does not grow with depth.

The last column names what the family cannot do, or does at a higher price.

| family | cache layers, forked | same stream | true states | packed scan | limits |
|---|---|---|---|---|---|
"""

FOOT = """
A family that is not listed works if its cache layers are of a kind in `anydepth/backends/transformers/fork.py`; an
unknown kind is refused by name. `anydepth inspect MODEL` shows all of this for a real model, and `anydepth inspect
MODEL --prove` tries each kind of check on it. `tests/contract/test_cache_kinds.py` covers caches of other kinds: a
static cache is forked in place behind the parent's end, a quantised one is shared.

What a peculiarity leads to (`tests/contract/test_architectures.py`):

- **Position factors that change with the length** (longrope: Phi-3.5, Phi-4-mini beyond 4,096 tokens). The library
  runs such a text anew where it passes that length, and leaves the caller's cache behind. The guard goes on with the
  new cache, runs a check that passes the length over the whole text, and scans longer answers on forks. Prompts of
  different lengths in one batch are refused if the batch may pass the length.
  Where the library goes on there from the last token alone (Phi-3 before Transformers 5.20; by its source,
  Phi-4-multimodal in 5.24 still), the model is refused.
- **Blocks that share keys and values** (Gemma 4 E2B and E4B). The library runs them on the last token of a prompt
  only. The default site is the highest block below them, and a site in one of them is refused by the trial check.
  Reading there would take another call of the library than an unguarded answer makes.
- **Caches of a model's own**: those of DeepSeek-V4 and of MiniMax-M3's sparse layers are forked.
- **State outside of the cache** (RecurrentGemma), **a cache that the model makes itself** (MiniMax, xLSTM), **forward
  passes that want the whole text** (CPM-Ant, ProphetNet): refused when the guard is made.
- **Layers that run several times** (HRM): no block can be read, and a look-ahead works.
- **Encoders** (a BERT checkpoint as it is): refused when the model is opened, since they read a text in both
  directions. Where layers do not say so (RoFormer, RemBERT, Megatron-BERT, BigBird), it is tried once.
- **No `position_ids`, or a mask by index** (BART and its kin, MPT, RoFormer, GPT-Neo, BLOOM): scanned on forks; the
  scan's notes and `anydepth inspect --prove` say why.
- **Padding that counts as text** (EXAONE 4.5, HyperCLOVA X Vision): in a batch of prompts of different lengths, the
  library gives the shorter ones other positions than they have alone. Checks use the positions of the batch.
- **Models of text and images or sound** are loaded for text, with the tokenizer of their processor.

Quantised weights keep both contracts (`tests/contract/test_quantised.py`, on a CPU): Quanto in 8 and 4 bits, torchao
in 8 and 4 bits, and GGUF (Q8_0, which the library unpacks when it loads the file). bitsandbytes is in the test, but
has not been run. A probe that was fitted on the weights before binds, since norms and biases are not quantised; it
warns of what it [was measured to be worth there](probes.md#on-quantised-and-adapted-weights).
"""


def row(family: str, backend: TransformersBackend) -> str:
    """The row of a family that has kept both contracts."""
    facts = backend.describe()
    layers = ", ".join(f"{layer['layer']} ({layer['fork']})" for layer in facts["cache"])
    limits = []
    if not facts["packed"]:
        limits.append("a scan forks at each depth")
    if not backend.inputs.takes_chunks:
        limits.append("a check feeds the header token by token")
    if not backend.inputs.slices_history:
        limits.append("no sampling options that look at earlier tokens (repetition penalty, n-grams, minimum length)")
    packed = "yes" if facts["packed"] else "no"
    return f"| {family} | {layers} | yes | yes | {packed} | {'; '.join(limits) or 'none'} |"


def refused_row(family: str, why: Exception) -> str:
    """The row of a family that cannot be guarded in process."""
    return f"| {family} | none | no | no | no | refused: {why} |"


def keeps_both(backend: TransformersBackend, options: dict) -> bool:
    """True if the stream is the same and the states are true under these sampling options."""
    prompt, watcher = prompt_of(backend), watcher_for(backend)
    (plain,) = backend.unguarded([prompt], max_new_tokens=MAX_NEW_TOKENS, seed=3, **options)
    (released,), _ = run(backend, [prompt], watcher, **options)
    return released == plain and largest_difference(backend, prompt, released, watcher) < TOLERANCE


def main() -> None:
    """Try every family and write the page."""
    import transformers

    rows = []
    for family in tiny.FAMILIES:
        try:
            backend = backend_of(family)
        except UnsupportedModel as error:
            rows.append(refused_row(family, error))
            continue
        for options in (GREEDY, SAMPLED):
            if not keeps_both(backend, options):
                raise SystemExit(f"{family} breaks the contract with {options}; mend it before writing the page")
        rows.append(row(family, backend))
    sweep = PAGE.read_text(encoding="utf-8").partition(MARK)
    page = HEAD.format(version=transformers.__version__) + "\n".join(rows) + "\n" + FOOT
    PAGE.write_text(f"{page}\n{sweep[1]}{sweep[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
