"""`anydepth generate` on a scripted guard."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Run, ScriptedGuard


def test_streams_the_answer_on_stdout_and_the_summary_on_stderr(run: Run, guard: ScriptedGuard) -> None:
    result = run("generate", "org/m", "Say hello")
    assert (result.exit_code, result.stdout) == (0, "Hello there!\n")
    assert "2 checks" in result.stderr
    assert "highest score 0.20 at depth 10" in result.stderr
    assert guard.asked == [
        ([{"role": "user", "content": "Say hello"}], {"prefill": None, "max_new_tokens": 512, "seed": None})
    ]


def test_a_halted_answer_prints_the_refusal_and_exits_0_unless_asked(run: Run, guard: ScriptedGuard) -> None:
    guard.scores = (0.1, 0.9)
    result = run("generate", "org/m", "x")
    assert (result.exit_code, result.stdout) == (0, "Sorry, no.\n")
    assert "HALTED at check 2 of 2 (depth 10)" in result.stderr
    assert "leak 0 tokens, 3 withheld" in result.stderr
    assert run("generate", "org/m", "x", "--fail-on-halt").exit_code == 3
    assert run("generate", "org/m", "x", "--fail-on-halt", "--json").exit_code == 3


def test_a_failed_check_is_named_in_the_summary(run: Run, guard: ScriptedGuard) -> None:
    guard.scores = (0.1, float("nan"))
    result = run("generate", "org/m", "x")
    assert "NaN in the hidden state" in result.stderr
    record = json.loads(run("generate", "org/m", "x", "--json").stdout)
    assert record["checks"][1] == {"depth": 10, "score": None, "statistic": None, "error": "NaN in the hidden state"}
    assert record["verdict"] == {"halt": True, "depth": 10, "score": None, "reason": "error", "errors": 1}


def test_json_is_one_object_with_the_whole_account(run: Run, guard: ScriptedGuard) -> None:
    record = json.loads(run("generate", "org/m", "x", "--json").stdout)
    assert record == {
        "text": "Hello there!",
        "finish_reason": "stop",
        "halted": False,
        "leak": 0,
        "verdict": {"halt": False, "depth": 10, "score": 0.2, "reason": "clear", "errors": 0},
        "checks": [{"depth": 0, "score": 0.1, "statistic": 0.1}, {"depth": 10, "score": 0.2, "statistic": 0.2}],
        "windows": [{"start": 0, "stop": 3, "checked_at": 10, "state": "released"}],
        "token_ids": [0, 1, 2],
        "prompt_tokens": 7,
        "prefill_tokens": 0,
        "generated_tokens": 3,
    }


def test_reads_the_prompt_from_stdin(run: Run, guard: ScriptedGuard) -> None:
    run("generate", "org/m", "-", stdin="from a pipe")
    run("generate", "org/m", stdin="from a pipe")
    assert [messages for messages, _ in guard.asked] == [[{"role": "user", "content": "from a pipe"}]] * 2


def test_text_means_the_same_however_it_is_given(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    mark, opening = b"\xef\xbb\xbf", tmp_path / "prefill.txt"
    for text in ("Q\n", "Q\r\n", mark + b"Q\n", "Q"):
        run("generate", "org/m", "-", stdin=text)
    run("generate", "org/m", "Q")
    assert [messages[0]["content"] for messages, _ in guard.asked] == ["Q"] * 5
    run("generate", "org/m", "-", stdin="Q\n\n")
    assert guard.asked[-1][0][0]["content"] == "Q\n", "one newline is the shell's, more are the user's"
    opening.write_bytes(mark + b"Sure,\r\n")
    run("generate", "org/m", "Q", "--prefill-file", opening)
    assert guard.asked[-1][1]["prefill"] == "Sure,"
    chat = tmp_path / "chat.json"
    chat.write_bytes(mark + b'[{"role": "user", "content": "Q"}]')
    run("generate", "org/m", "--messages-file", chat)
    assert guard.asked[-1][0] == [{"role": "user", "content": "Q"}]


def test_files_may_be_pipes(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('[{"role": "user", "content": "Q"}]'))
    writer.start()
    assert run("generate", "org/m", "--messages-file", pipe).exit_code == 0
    writer.join()
    assert guard.asked[0][0] == [{"role": "user", "content": "Q"}]


def test_a_prompt_that_is_no_text_is_refused(run: Run, guard: ScriptedGuard) -> None:
    wrong = os.fsdecode(b"H\xe9")
    for given in (["-"], [wrong], ["x", "--system", wrong], ["x", "--prefill", wrong]):
        result = run("generate", "org/m", *given, stdin=b"H\xe9\n")
        assert result.exit_code == 2 and "convert it first" in result.stderr
        assert not guard.opened


@pytest.mark.parametrize(
    "given", [["--seed", "1" + "0" * 30], ["--seed", "-1"], ["--temperature", "nan"], ["--temperature", "inf"]]
)
def test_numbers_that_no_sampler_takes_are_refused(run: Run, guard: ScriptedGuard, given: list[str]) -> None:
    assert run("generate", "org/m", "x", *given).exit_code == 2
    assert not guard.opened


def command(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, over the guard of these tests."""
    code = (
        "from anydepth.cli import load, main\n"
        "from tests.unit.cli.conftest import ScriptedGuard\n"
        "load.open_guard = lambda model, options, external: ScriptedGuard(words=('H\u00e9', ' \U0001f33f'))\n"
        "main()"
    )
    run = [sys.executable, "-c", code, *arguments]
    return subprocess.run(run, stderr=subprocess.PIPE, text=True, encoding="utf-8", check=False, **more)


def test_an_output_of_ascii_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    found = command("generate", "org/m", "x", stdout=subprocess.PIPE)
    assert (found.returncode, found.stdout) == (0, "H\\xe9 \\U0001f33f\n"), found.stderr
    found = command("generate", "org/m", "x", "--json", stdout=subprocess.PIPE)
    assert found.stdout.isascii() and json.loads(found.stdout)["text"] == "Hé \U0001f33f"


@pytest.mark.parametrize(
    "arguments", [["generate", "org/m", "x"], ["generate", "org/m", "x", "--json"], ["--version"], ["--help"]]
)
def test_a_full_disk_behind_the_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        found = command(*arguments, stdout=full)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ") and "No space left on device" in found.stderr
    assert found.stderr.count("\n") == 1


def test_reads_a_conversation_and_a_prefill_from_files(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    chat, opening = tmp_path / "chat.json", tmp_path / "prefill.txt"
    chat.write_text('[{"role": "user", "content": "Hé"}]', encoding="utf-8")
    opening.write_text("Sure,\n\n", encoding="utf-8")
    run("generate", "org/m", "--messages-file", chat, "--prefill-file", opening, "--system", "Be brief.")
    messages, arguments = guard.asked[0]
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé"}]
    assert arguments["prefill"] == "Sure,\n"


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], {}),
        (["--temperature", "0"], {"do_sample": False}),
        (["--temperature", "0.7", "--top-p", "0.9"], {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        (["--seed", "3"], {"seed": 3}),
    ],
)
def test_sampling_options_reach_the_engine(
    run: Run, guard: ScriptedGuard, given: list[str], passed: dict[str, object]
) -> None:
    assert run("generate", "org/m", "x", *given).exit_code == 0
    assert guard.asked[0][1] == {"prefill": None, "max_new_tokens": 512, "seed": None, **passed}


def test_guard_options_reach_the_guard(run: Run, guard: ScriptedGuard) -> None:
    options = ["--policy", "ewma", "--threshold", 0.4, "--interval", 10, "--release", "eager", "--on-error", "open"]
    assert run("generate", "org/m", "x", *options, "--dtype", "float32", "--revision", "main").exit_code == 0
    model, guarded = guard.opened[0]
    assert (model.model, model.dtype, model.revision) == ("org/m", "float32", "main")
    assert (guarded.policy, guarded.threshold, guarded.interval) == ("ewma", 0.4, 10)
    assert (guarded.release, guarded.on_error) == ("eager", "open")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["x", "--interval", "0"], "interval is 0"),
        (["x", "--threshold", "-1"], "threshold is -1.0"),
        (["x", "--policy", "threshold", "--threshold", "2"], "threshold is 2.0"),
        (["x", "--probe", "nowhere.safetensors"], "there is no such file"),
        (["x", "--probe", "p", "--detector", "rethink"], "--detector rethink"),
        (["x", "--prefill", "a", "--prefill-file", "b"], "give one of them"),
        (["x", "--prefill-file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["x", "--messages-file", "chat.json"], "give one of them"),
        (["--messages-file", "nowhere.json"], "nowhere.json: No such file"),
        (["  "], "the prompt is empty"),
        (["x", "--temperature", "0", "--top-p", "0.5"], "has no effect"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run: Run, guard: ScriptedGuard, given: list[str], says: str) -> None:
    result = run("generate", "org/m", *given)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert not guard.opened, "a model was loaded for options that cannot work"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "at least one"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"role": "user", "content": "\\ud800"}]', "half a surrogate pair"),
        ('[{"role": "user", "content": "H\\ud83d"}]', "half a surrogate pair"),
        ('[{"role": "user", "content": 3}]', "a content that is not text"),
        ("9" * 5000, "is not JSON"),
        ('[{"role": "user"}]', "message 1"),
        ('[{"role": "system", "content": "a"}]', "has a system message already"),
    ],
)
def test_a_broken_conversation_is_refused(run: Run, guard: ScriptedGuard, tmp_path: Path, text: str, says: str) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text(text)
    result = run("generate", "org/m", "--messages-file", chat, "--system", "s")
    assert result.exit_code == 2
    assert says in result.stderr
