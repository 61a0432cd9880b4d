"""Tell in which number format the weights of a GGUF file are."""

from collections import Counter
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from anydepth.extras import require

_FILE_TYPE = "general.file_type"
_PREFIXES = ("MOSTLY_", "ALL_")


def gguf_format(model: str | Path, file: str | Path, **found: Any) -> str:
    """The format as llama.cpp names it, e.g. `Q4_K_M`; that of most weights, e.g. `Q4_K`, if the file does not say.

    Args:
        model: Hub id or folder of the model.
        file: Name of the file there, or its whole path: one that was just loaded.
        **found: Where and how the hub's files are found, e.g. `revision`, `token`, `cache_dir`, `subfolder`.
    """
    gguf = require("gguf", extra="gguf")
    path = file if Path(file).is_absolute() else cached_file(str(model), str(file), **found)
    reader = gguf.GGUFReader(path)
    said = reader.get_field(_FILE_TYPE)
    kinds = {each.value: each.name for each in gguf.LlamaFileType if each.name != "GUESSED"}
    name = None if said is None else kinds.get(int(said.contents()))
    if name is None:
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        name = sizes.most_common(1)[0][0]
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
