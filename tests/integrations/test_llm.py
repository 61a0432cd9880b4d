"""The plugin of `llm` under the real `llm`, found by its entry point, over scripted guards."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.program_runs import ROOT, example, run

pytestmark = [pytest.mark.registry, pytest.mark.slow]

FINE = "all is well here, and it stays so"
LATE = "all is well here, then harm, and on it goes"
SHOWN = "all is well here"  # 16 tokens, checked at 16; the check at 24 covers the first word of harm
ERROR = "Error: anydepth halted the answer at depth 24: No."


class Llm:
    """The command line of llm with the plugin installed, and models of its own."""

    def __init__(self, folder: Path) -> None:
        installed = folder / "site" / "anydepth-0.dist-info"
        installed.mkdir(parents=True)
        entry = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["llm"]
        lines = [f"{name} = {module}" for name, module in {**entry, "zz-scripted": "scripted_llm"}.items()]
        (installed / "entry_points.txt").write_text("[llm]\n" + "\n".join(lines) + "\n")
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: anydepth\nVersion: 0\n")
        self.path = ":".join(map(str, (ROOT / "src", folder / "site", ROOT / "tests" / "integrations")))
        self.user = folder / "user"
        self.user.mkdir()

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.python("-m", "llm", *arguments, stdin=stdin)
        assert done.returncode == code, done.stderr + done.stdout
        return done

    def python(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run(arguments, "apps", stdin=stdin, PYTHONPATH=self.path, LLM_USER_PATH=str(self.user))

    @property
    def asked(self) -> list[str]:
        return (self.user / "asked.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    llm = Llm(tmp_path_factory.mktemp("llm"))
    for name, text in (("fine", FINE), ("late", LATE), ("first", "harm")):
        assert llm("anydepth", "add", text, "--name", name).stdout == f"llm -m anydepth/{name}\n"
    return llm


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--async"]])
def test_an_answer_is_printed_and_logged(command, how):
    assert command("-m", "anydepth/fine", "q", *how).stdout == FINE + "\n"
    (logged,) = json.loads(command("logs", "-n", "1", "--json").stdout)
    assert logged["response"] == FINE and logged["model"] == "anydepth/fine"
    assert logged["response_json"]["finish_reason"] == "stop"
    assert logged["response_json"]["anydepth"]["halted"] is False
    assert (logged["input_tokens"], logged["output_tokens"]) == (4, 34)


@pytest.mark.parametrize(("how", "shown"), [([], SHOWN), (["--async"], SHOWN), (["--no-stream"], "")])
def test_a_blocked_answer_is_an_error_and_nothing_left_before_its_check(command, how, shown):
    done = command("-m", "anydepth/late", "q", *how, code=1)
    assert done.stdout.rstrip("\n") == shown and ERROR in done.stderr
    done = command("-m", "anydepth/first", "q", *how, code=1)
    assert done.stdout == "" and "halted the answer at depth 1: No." in done.stderr


def test_a_blocked_answer_can_end_as_its_refusal_and_the_log_says_so(command):
    done = command("-m", "anydepth/late", "q", "-o", "blocked", "text")
    assert done.stdout == f"{SHOWN}\n\nNo.\n"
    (logged,) = json.loads(command("logs", "-n", "1", "--json").stdout)
    assert logged["response_json"]["finish_reason"] == "content_filter"
    assert logged["response_json"]["anydepth"]["halted"] is True


def test_options_and_the_conversation_reach_the_guard(command):
    command("-m", "anydepth/fine", "q", "-s", "be kind", "-o", "temperature", "0.5", "-o", "seed", "3")
    prompt, given = eval(command.asked[-1])
    assert prompt == "<|system|>be kind<|end|><|user|>q<|end|><|assistant|>"
    assert given == {"max_new_tokens": 512, "seed": 3, "do_sample": True, "temperature": 0.5}
    command("-c", "and now?", "-o", "temperature", "0", "-o", "max_tokens", "4", "-o", "prefill", "Well")
    prompt, given = eval(command.asked[-1])
    turns = f"<|user|>q<|end|><|assistant|>{FINE}<|end|><|user|>and now?<|end|><|assistant|>Well"
    assert prompt.endswith(turns) and given == {"max_new_tokens": 4, "seed": None, "do_sample": False}


def test_what_cannot_be_guarded_is_an_error(command, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    done = command("-m", "anydepth/fine", "q", "-a", str(picture), code=1)
    assert "does not support attachments" in done.stderr
    assert "does not support tools" in command("-m", "anydepth/fine", "q", "-T", "llm_time", code=1).stderr
    assert "does not support schemas" in command("-m", "anydepth/fine", "q", "--schema", "a int", code=1).stderr


def test_python_gets_the_block_as_an_exception(command):
    code = """
import llm
response = llm.get_model("anydepth/late").prompt("q")
text = ""
try:
    for piece in response:
        text += piece
except llm.ModelError as error:
    print([text, str(error), response.response_json["finish_reason"]])
"""
    done = command.python("-c", code)
    assert done.returncode == 0, done.stderr
    text, error, reason = eval(done.stdout)
    assert (text, error, reason) == (SHOWN + "\n", ERROR.removeprefix("Error: "), "content_filter")


def test_finished_answers_are_scanned(command):
    assert command("anydepth", "scan", "fine", "-p", "q", FINE).stdout.endswith("clear at depth 0\n")
    done = command("anydepth", "scan", "anydepth/late", "-p", "q", "--json", stdin=LATE, code=3)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["flagged"] is True and result["depth"] == 24
    assert [check["depth"] for check in result["checks"]] == [0, 1, 2, 4, 8, 16, 24, 32, 40, 43]
    assert "there is no model anydepth/other" in command("anydepth", "scan", "other", "-p", "q", "x", code=1).stderr


def test_models_are_removed(command):
    command("anydepth", "add", "hello", "--name", "gone")
    assert "anydepth/gone" in command("models").stdout
    command("anydepth", "remove", "gone")
    assert "anydepth/gone" not in command("models").stdout
    assert "there is no model anydepth/gone" in command("anydepth", "remove", "gone", code=1).stderr


def test_a_broken_list_of_models_is_told_and_leaves_the_others(tmp_path):
    llm = Llm(tmp_path)
    (llm.user / "anydepth.json").write_text("{")
    done = llm("models")
    assert "anydepth.json cannot be read" in done.stderr and "OpenAI" in done.stdout
    assert "cannot be read" in llm("anydepth", "add", "x", code=1).stderr


def test_the_example_of_the_page_prints_what_the_page_says(command):
    code, prints = example("llm")
    done = command.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == prints
