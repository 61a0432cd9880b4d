"""What the plugin uses of vLLM is listed once, documented from the list, and looked up in the source of a release."""

from pathlib import Path

import pytest

from anydepth.patches import MODEL_RUNNER, PATCHES
from anydepth.vllm.internals import CHECKED, INTERNALS, REPLACED, missing, table
from anydepth.vllm.versions import SUPPORTED

ROOT = Path(__file__).parents[2]
OWN = ROOT / "src" / "anydepth" / "vllm"


def test_the_documentation_has_the_list():
    page = (ROOT / "docs" / "vllm.md").read_text("utf-8")
    assert table() in page
    assert all(f"**{version}**" in page for version in CHECKED)


def test_every_supported_version_was_checked():
    assert [version.rpartition(".")[0] for version in CHECKED] == list(SUPPORTED)


def test_what_is_replaced_is_listed_by_the_patches_alone():
    ours = [each for each in PATCHES if each.extra == "vllm"]
    wanted = {(each.module, member): parameters for each in ours for member, parameters in each.members.items()}
    found = {(each.module, f"{each.owner}.{name}"): own for each in REPLACED for name, own in each.calls.items()}
    assert found == {member: (parameters,) for member, parameters in wanted.items()}
    assert not found.keys() & {(each.module, f"{each.owner}.{name}") for each in INTERNALS for name in each.calls}


@pytest.mark.parametrize("internal", INTERNALS, ids=[f"{each.module}.{each.owner}" for each in INTERNALS])
def test_what_is_listed_is_used_where_the_list_says(internal):
    folder = (OWN / internal.by).parent
    code = "\n".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    for name in (*internal.calls, *internal.attributes):
        assert name in code or name == "_update_after_schedule", name


def a_release(folder: Path, *, without: str = "", other: str = "") -> Path:
    """The source of a vLLM that has all that is listed, but for one name and for the parameters of another."""
    classes: dict[Path, dict[str, list[str]]] = {}
    every = (*INTERNALS, *REPLACED)
    owned = [(each.module, each.owner, name, own[-1]) for each in every for name, own in each.calls.items()]
    for module, owner, name, parameters in owned:
        path = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        body = classes.setdefault(path, {}).setdefault(owner, [])
        if name != without:
            given = ", ".join(parameters.split()) + (", more" if name == other else "")
            body.append(f"    def {name}({given}): ...\n")
    for each in INTERNALS:
        path = folder.joinpath(*each.module.split(".")[1:]).with_suffix(".py")
        body = classes.setdefault(path, {}).setdefault(each.owner, [])
        body += [f"    {name}: int\n" for name in each.attributes if name != without]
    for path, found in classes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"class {owner}:\n    x: int\n{''.join(body)}" for owner, body in found.items()))
    return folder


def test_a_release_that_has_everything(tmp_path):
    assert missing(a_release(tmp_path)) == []


def test_what_a_release_lacks_is_named(tmp_path):
    assert missing(a_release(tmp_path / "a", without="num_in_flight_tokens")) == [
        "vllm.v1.request.Request has no num_in_flight_tokens"
    ]
    assert missing(a_release(tmp_path / "b", without="_prepare_input_ids")) == [
        f"{MODEL_RUNNER.module}.GPUModelRunner has no _prepare_input_ids"
    ]
    assert missing(a_release(tmp_path / "c", other="_preempt_request")) == [
        "vllm.v1.core.sched.scheduler.Scheduler._preempt_request takes self request timestamp drop_stale_output more, "
        "not self request timestamp drop_stale_output"
    ]
    assert len(missing(tmp_path / "none")) > 30
