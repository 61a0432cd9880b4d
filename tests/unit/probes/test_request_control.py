"""The control: a probe of depth 0 alone, and what of the training answers and states it takes."""

from dataclasses import replace

import numpy as np
import pytest

from anydepth.backends.protocol import CONTENT, WHOLE, ModelIdentity, Read, Site
from anydepth.errors import ConfigError, StoreError
from anydepth.probes.fitting.fit import FitOptions
from anydepth.probes.fitting.request_control import RequestControl, control_reads, fit_on_requests
from anydepth.probes.states.store import Checks, Manifest
from tests.planted import planted

BLOCK = Site(2)


def manifest(sites: tuple[Site, ...], tokens: tuple[int, ...]) -> Manifest:
    model = ModelIdentity("org/m", None, "llama", 8, 4, "f1")
    return Manifest(model, "t", "header", (1, 2, 3), ("a", "b", "c"), 1, sites, tokens, "float32", {})


def test_the_control_reads_the_states_of_the_probe_that_are_no_means() -> None:
    there = manifest((Site(0), BLOCK), (CONTENT, 0, 1, 2, -5, WHOLE))
    mixed = (Read(BLOCK, 1), Read(BLOCK, WHOLE), Read(BLOCK, CONTENT))
    assert control_reads(there, mixed) == (Read(BLOCK, 1), Read(BLOCK, CONTENT))


def test_the_control_of_means_reads_the_last_header_token_of_their_sites() -> None:
    there = manifest((Site(0), BLOCK, Site(3)), (CONTENT, 0, 1, 2, -5))
    assert control_reads(there, (Read(BLOCK, -5),)) == (Read(BLOCK, 2),)
    assert control_reads(there, (Read(Site(0), -5),)) == (Read(Site(3), 2),), "before the model nothing differs"
    assert control_reads(there, (Read(Site(0), 1), Read(BLOCK, -5))) == (Read(BLOCK, 2),)
    assert control_reads(manifest((BLOCK,), (CONTENT, -5)), (Read(BLOCK, -5),)) == (Read(BLOCK, CONTENT),)


def test_a_store_without_a_state_that_the_request_changes_is_refused() -> None:
    with pytest.raises(ConfigError, match="none was collected; collect a header token at a block from 1 on"):
        control_reads(manifest((Site(0),), (0, 1, -5)), (Read(Site(0), -5),))


def starts(**columns: np.ndarray) -> Checks:
    checks = planted(60, depths=(0,))
    return replace(checks, columns={**checks.columns, **columns})


def test_answers_under_other_requests_and_parts_judged_later_do_not_train_it() -> None:
    plain = planted(60, depths=(0,))
    moved = np.arange(60) < 20
    hosts = np.where(moved, "host", plain["prompt_key"])
    late = np.where(np.arange(60) >= 50, 4, 0)
    assert fit_on_requests(starts(host_key=hosts), FitOptions(first_depth=0)).checks == 40
    assert fit_on_requests(starts(host_key=hosts, first_depth=late), FitOptions(first_depth=0)).checks == 30
    every = starts(host_key=hosts, first_depth=np.full(60, 4))
    assert fit_on_requests(every, FitOptions(first_depth=0)).checks == 40, "without a label, all own requests"
    none = starts(host_key=np.full(60, "host"), first_depth=np.full(60, 4))
    assert fit_on_requests(none, FitOptions(first_depth=0)).checks == 60


def test_an_answer_that_is_harmful_later_has_its_label_at_depth_0() -> None:
    begins = np.where(planted(60, depths=(0,))["label"] == "harmful", 20, -1)
    spliced = starts(host_key=np.full(60, "host"), harm_begins=begins, harm_ends=begins + 10)
    assert fit_on_requests(spliced, FitOptions(first_depth=0)).checks == 60


def test_an_answer_that_was_not_read_at_depth_0_is_named() -> None:
    control = RequestControl({"a": 1.5}, 0.0)
    assert control.starts(np.array(["a", "a"])).tolist() == [1.5, 1.5]
    with pytest.raises(StoreError, match="answer b has no check at depth 0"):
        control.starts(np.array(["a", "b"]))
