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
A family that is not listed works if its cache layers are of a kind in
`anydepth/backends/transformers/fork.py`; an unknown kind is refused by name. `anydepth inspect MODEL` shows all of this
for a real model. `tests/contract/test_cache_kinds.py` covers caches of other kinds: a static cache is forked in place
behind the parent's end, a quantised one is shared.
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
    PAGE.write_text(HEAD.format(version=transformers.__version__) + "\n".join(rows) + "\n" + FOOT, encoding="utf-8")


if __name__ == "__main__":
    main()
