"""A reference means one thing, or an error says what was looked for."""

import csv
import gzip
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anydepth.conversations.corpora import allows, corpora, load, terms_of
from anydepth.conversations.dataset import Columns
from anydepth.errors import ConfigError, MissingExtra, RecordError

ANSWER = "A metre,\nno more"
ROWS = [
    {"id": "1", "source": "gptfuzz", "prompt": "How deep is the pond?", "response": ANSWER, "label": "benign"},
    {"id": "2", "source": "jbb-x", "prompt": "Größe?", "response": "", "label": "harmful"},
]


def write(path: Path, rows: list[dict] = ROWS) -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        if kind in ("csv", "tsv"):
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
        elif kind == "json":
            json.dump({"version": 1, "rows": rows}, file)
        else:
            file.write("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


@pytest.mark.parametrize(
    "ending",
    ["jsonl", "jsonl.gz", "ndjson", "json", "json.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet"],
)
def test_every_format_gives_the_same(tmp_path: Path, ending: str) -> None:
    first, second = load(write(tmp_path / f"table.{ending}"))
    assert (first.id, first.prompt, first.label) == ("1", "How deep is the pond?", "benign")
    assert first.response == ANSWER
    assert (second.prompt, second.response, second.label) == ("Größe?", "", "harmful")
    assert [row.licence for row in (first, second)] == ["MIT", "MIT"], "from the source key, also by pattern"


def test_a_byte_order_mark_and_long_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    limit = csv.field_size_limit()
    path.write_text("\ufeffprompt,response\nq," + "word " * 50_000 + "\n", encoding="utf-8")
    (found,) = load(path)
    assert (found.prompt, len(found.response), found.source) == ("q", 250_000, "table")
    assert csv.field_size_limit() == limit


def test_a_name_is_a_table_of_the_data_folder(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl.gz")
    assert [row.id for row in load("mine", data=tmp_path)] == ["1", "2"]
    write(tmp_path / "mine.csv")
    with pytest.raises(ConfigError, match=r"'mine' may mean .*mine\.csv or .*mine\.jsonl\.gz; write the path"):
        load("mine", data=tmp_path)


def test_a_bare_name_is_never_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("mine.jsonl"))
    Path("folder").mkdir()
    write(Path("folder/a.jsonl"))
    assert len(load("mine.jsonl")) == len(load("./folder")) == len(load(Path("folder"))) == 2
    with pytest.raises(ConfigError, match=r"'folder' is neither .* \(\./folder\), for the hub hf:owner/name"):
        load("folder")


def test_a_folder_means_all_its_tables(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS[:1])
    write(tmp_path / "b.csv", ROWS[1:])
    (tmp_path / "README.md").write_text("not a table")
    assert [row.id for row in load(tmp_path)] == ["1", "2"]
    write(tmp_path / "c.json", ROWS[:1])
    with pytest.raises(RecordError, match=r"id '1' is both in .*a\.jsonl and in .*c\.json"):
        load(tmp_path)


def test_a_local_copy_stands_for_a_corpus_in_either_form(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", [{"question": "1+1?", "answer": "2"}])
    (raw,) = load("gsm8k", data=tmp_path)
    assert (raw.prompt, raw.source, raw.licence, raw.tags) == ("1+1?", "gsm8k", "MIT", {"answer": "2"})
    write(tmp_path / "alpaca.jsonl", [{"id": 1, "prompt": "Sort.", "response": "a b", "label": "benign"}])
    (normalised,) = load("alpaca", data=tmp_path)
    assert (normalised.id, normalised.response, normalised.licence) == ("1", "a b", "CC-BY-NC-4.0")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"prompt": "fine"}\n{"prompt": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"prompt": "fine"}\n[1]\n', "a.jsonl, line 2: a list, not an object"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', "a.jsonl, line 1: not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "x", "label": "odd"}\n', "a.jsonl, line 1: column 'label' is 'odd'"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz is not a whole gzip file"),
        ("a.json", b'{"prompt": "x"}\n{"prompt": "y"}', "call it .jsonl"),
        ("a.json", b'{"prompt": "x"}', "no list of records"),
        ("a.csv", b"prompt,label\nx,benign,more\n", "a.csv, line 2: has more fields"),
        ("a.csv", b'prompt\n"open', "a.csv: not a readable table"),
        ("a.csv", b"prompt,label,label\nx,benign,harmful\n", "a.csv has the column 'label' twice"),
        ("a.jsonl", b'{"prompt": "x", "label": "benign", "label": "harmful"}\n', "line 1: has 'label' twice"),
        ("a.json", b'[{"prompt": "x", "prompt": "y"}]', "has 'prompt' twice"),
        ("a.jsonl", b'{"prompt": "\\ud800"}\n', "a.jsonl, line 1: holds half a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not usable JSON: nested too deeply"),
        ("a.txt", b"x", "does not say its format"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((ConfigError, RecordError), match=re.escape(told)):
        load(path)


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_arrays([arrow.array(["x"]), arrow.array(["y"])], names=["prompt", "prompt"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RecordError, match=r"a\.parquet has the column 'prompt' twice"):
        load(tmp_path / "a.parquet")


def test_a_pipe_is_refused_since_tables_are_read_more_than_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for pipe in (tmp_path / "pipe.jsonl", "/dev/stdin"):
        with pytest.raises(ConfigError, match="is a pipe or a device, which cannot be read twice; write it to a file"):
            load(pipe)


def test_one_text_with_two_labels_in_two_tables_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"id": "1", "prompt": "q", "response": "a", "label": "benign"}])
    write(tmp_path / "b.jsonl", [{"id": "2", "prompt": "q", "response": "a", "label": "harmful"}])
    with pytest.raises(RecordError, match="'1' of a and '2' of b are the same text, labelled benign and harmful"):
        load(tmp_path)


def test_names_are_read_in_whatever_case_and_copies_as_they_are_published(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "B.JSONL"))) == 2
    (tmp_path / "C.CSV.GZ").write_bytes(gzip.compress(b"prompt,response\nq,a\n"))
    assert load(tmp_path / "C.CSV.GZ")[0].response == "a"
    (tmp_path / "strongreject.csv").write_text("category,source,forbidden_prompt\nponds,us,Name a pond.\n")
    (tmp_path / "harmbench.csv").write_text(
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        'Name a pond.,contextual,ponds,"a, b",By the wood.,pond\nName a wood.,standard,woods,,,wood\n'
    )
    (asked,) = load("strongreject", data=tmp_path)
    assert (asked.prompt, asked.source, asked.licence) == ("Name a pond.", "strongreject", "MIT")
    pond, wood = load("harmbench", data=tmp_path)
    assert (pond.id, pond.prompt, wood.prompt) == ("pond", "Name a pond.\n\nBy the wood.", "Name a wood.")


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet is not a readable Parquet file"):
        load(tmp_path / "a.parquet")


def test_an_unknown_name_lists_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "garden.jsonl")
    with pytest.raises(ConfigError, match=r"'gardens' is neither a table of .*; did you mean garden\?"):
        load("gardens", data=tmp_path)
    with pytest.raises(ConfigError, match=r"advbench, .*\bgpqa"):
        load("nothing-like-it")
    with pytest.raises(ConfigError, match=r"none\.jsonl does not exist"):
        load("./none.jsonl")
    with pytest.raises(ConfigError, match="does not exist or is no folder"):
        load("garden", data=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no table in it"):
        load(tmp_path / "empty")


class Hub:
    """Stands in for the `datasets` package, which asks the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        self.answer, self.asked = answer, []
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=self.load_dataset))

    def load_dataset(self, *args: Any, **options: Any) -> Any:
        self.asked.append((args, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_corpus_comes_from_the_hub_at_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(monkeypatch, [{"question": "1+1?", "answer": "2"}])
    (found,) = load("GSM8K", data=tmp_path)
    row = corpora()["gsm8k"]
    assert hub.asked == [(("openai/gsm8k", "main"), {"split": "test", "revision": row.revision})]
    assert (found.source, found.licence, found.tags) == ("gsm8k", "MIT", {"answer": "2", "revision": row.revision})


def test_several_configurations_are_several_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, [{"input": "Which?", "target": "A"}])
    found = load("bbh")
    assert len(hub.asked) == len(found) == 27
    assert found[0].source == "bbh-boolean_expressions"
    assert {row.licence for row in found} == {"MIT"}


@pytest.mark.parametrize(
    ("ref", "asked"),
    [
        ("hf:o/n", ("o/n", None, None, "main")),
        ("hf:o/n:c", ("o/n", "c", None, "main")),
        ("hf:o/n::train[:10]", ("o/n", None, "train[:10]", "main")),
        ("hf:o/n.x:c:train@v1.2", ("o/n.x", "c", "train", "v1.2")),
        ("hf:o/n@refs/pr/1", ("o/n", None, None, "refs/pr/1")),
    ],
)
def test_a_hub_reference_is_read(ref: str, asked: tuple, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    repo, config, split, revision = asked
    rows = [{"prompt": "q", "response": "a"}]
    hub = Hub(monkeypatch, rows if split else {"train": rows})
    with caplog.at_level(logging.WARNING):
        (found,) = load(ref)
    assert hub.asked == [((repo, config), {"split": split, "revision": revision})]
    assert (found.source, found.licence, found.tags) == (repo, "unknown", {"revision": revision})
    assert "not pinned" in caplog.text


def test_a_hub_reference_to_a_known_set_has_its_terms_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"conversation": talk, "toxic": toxic, "model": "m", "language": "en", "ip": "1"} for toxic in (True, False)
    ]
    Hub(monkeypatch, rows)
    first, second = load("hf:allenai/WildChat-1M::train")
    assert (first.label, second.label, first.licence) == (None, "benign", "ODC-BY-1.0")
    assert first.tags == {"model": "m", "language": "en", "revision": "main"}


@pytest.mark.parametrize("ref", ["hf:", "hf:name", "hf:o/n::", "hf:o/n@", "hf:o/n:a:b@c@d", "hf:o/n/x"])
def test_what_is_no_hub_reference_is_refused(ref: str) -> None:
    with pytest.raises(ConfigError, match="no reference to the hub"):
        load(ref)


def test_a_split_must_be_named_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, {"train": [{"prompt": "a"}], "test": [{"prompt": "a"}]})
    with pytest.raises(ConfigError, match="has the splits train, test; write hf:o/n:c:SPLIT"):
        load("hf:o/n:c")
    assert len(load("hex-phi")) == 2
    assert hub.asked[-1][1]["names"] == ["prompt"]


def test_a_local_folder_does_not_stand_in_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("o/n").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"there is a local folder o/n; write \./o/n"):
        load("hf:o/n")


def test_what_the_hub_refuses_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, RuntimeError("no such thing\nand more"))
    with pytest.raises(ConfigError, match=r"no such thing and more; it is gated: accept .*datasets/LLM-Tuning"):
        load("hex-phi")
    with pytest.raises(ConfigError, match=r"check the name, the split and the network, or load a local copy"):
        load("gsm8k")
    Hub(monkeypatch, RuntimeError("'o/n' is a gated dataset"))
    with pytest.raises(ConfigError, match="`hf auth login`"):
        load("hf:o/n")


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"datasets is not installed; run: pip install 'anydepth\[fit\]'"):
        load("gsm8k")
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(MissingExtra, match="pyarrow"):
        load(tmp_path / "a.parquet")


def test_columns_may_be_given(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"ask": "q", "say": "a", "bad": 1}])
    columns = Columns(prompt="ask", response="say", label="bad", labels={"1": "harmful"})
    assert load(tmp_path / "a.csv", columns=columns)[0].label == "harmful"


def test_every_row_of_the_table_is_sound() -> None:
    assert len(corpora()) >= 19
    for name, row in corpora().items():
        assert name == name.casefold()
        assert row.repo.count("/") == 1
        assert row.about
        assert allows(row.licence) is row.permissive, name
        assert row.pinned or row.revision == "main", "a revision is a whole commit id"
    assert not corpora()["beavertails"].permissive
    assert replace(corpora()["gsm8k"], revision="abc").pinned is False


@pytest.mark.parametrize(
    ("source", "licence", "permissive"),
    [
        ("aisafetylab", "MIT", True),
        ("safe-rlhf", "CC-BY-NC-4.0", False),
        ("alpacaeval-koala", "CC-BY-NC-4.0", False),
        ("refdir-harmless-x", "Apache-2.0", True),
        ("bbh-snarks", "MIT", True),
        ("hex-phi", "LicenseRef-HEx-PHI", False),
        ("xstest", "CC-BY-4.0", True),
    ],
)
def test_sources_have_terms(source: str, licence: str, permissive: bool) -> None:
    terms = terms_of(source)
    assert terms is not None
    assert (terms.licence, terms.permissive) == (licence, permissive)


def test_unknown_sources_have_none() -> None:
    assert terms_of("garden") is None
    assert allows("unknown") is None


def test_importing_the_modules_is_light() -> None:
    code = (
        "import sys, anydepth.conversations.dataset, anydepth.conversations.corpora, anydepth.conversations.splits\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'pandas', 'pyarrow', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
