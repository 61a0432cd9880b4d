"""What the guard inside vLLM keeps of an answer's tokens, and how the worker's rows become findings, without vLLM."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anydepth.backends.protocol import CONTENT, WHOLE, FinishedAnswer, Read, Site
from anydepth.errors import CheckError, UnsupportedModel
from anydepth.templates.template import Prompt
from anydepth.vllm import vllm_backend
from anydepth.vllm.additional_config import EngineOptions
from anydepth.vllm.engine.answer_tokens import AnswerTokens
from anydepth.vllm.engine.range_sums import RangeSums
from anydepth.vllm.setup import Setup
from anydepth.vllm.vllm_backend import VllmBackend
from anydepth.vllm.wire import Orders, Span
from anydepth.vllm.worker.readout import HookReadOut, ReadOut
from anydepth.vllm.worker.runner_state import RunnerState
from anydepth.vllm.worker.step_reader import StepReader

FIRST, SECOND = Site(1), Site(2, "self_attn")
READS = (Read(FIRST, 2), Read(FIRST, -3), Read(SECOND, WHOLE), Read(FIRST, WHOLE), Read(SECOND, 0))


def test_a_mean_is_over_the_last_tokens_before_the_depth():
    tokens = AnswerTokens(100)
    found = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0], [8.0, 80.0]])
    tokens.add(100, found)
    assert tokens.next == 104
    assert [tokens.mean(0, depth, -2) for depth in (1, 2, 3, 4)] == [0.5, 1.5, 4.0, 7.0]
    assert [tokens.mean(1, depth, WHOLE) for depth in (1, 2, 3, 4)] == pytest.approx([10, 15, 30, 42.5])
    with pytest.raises(CheckError, match="position 104"):
        tokens.mean(0, 5, -2)


def test_a_token_is_kept_once_and_nothing_behind_a_gap():
    tokens = AnswerTokens(10)
    tokens.add(11, np.ones((2, 1)))
    assert tokens.next == 10
    tokens.add(10, np.array([[1.0], [2.0]]))
    tokens.add(10, np.array([[7.0], [7.0], [3.0]]))  # preempted and computed again
    tokens.add(11, np.array([[7.0]]))
    assert tokens.next == 13 and [float(each[0]) for each in tokens.found] == [1.0, 2.0, 3.0]


def test_what_is_kept_of_a_token_does_not_keep_the_whole_step():
    tokens, step = AnswerTokens(3), np.arange(12.0).reshape(4, 3)
    tokens.add(2, step[:3])
    step[:] = 7
    assert [each.tolist() for each in tokens.found] == [[3, 4, 5], [6, 7, 8]]
    assert all(each.base is None for each in tokens.found)


def test_what_is_dropped_leaves_the_positions_right():
    tokens = AnswerTokens(10)
    tokens.add(10, np.arange(6.0)[:, None])
    for before in (-3, 0, 2, 1):
        tokens.drop_before(before)
    assert (tokens.dropped, tokens.read, tokens.next) == (2, 6, 16) and len(tokens.found) == 4
    tokens.add(10, np.array([[9.0]] * 6 + [[6.0]]))  # preempted and computed again
    assert tokens.read == 7 and tokens.mean(0, 7, -5) == 4.0 and tokens.mean(0, 4, -2) == 2.5
    for depth, token, position in ((7, -6, 11), (7, WHOLE, 10), (1, -2, 10)):
        with pytest.raises(CheckError, match=f"position {position} is not kept"):
            tokens.mean(0, depth, token)
    with pytest.raises(CheckError, match="nothing was read at position 17"):
        tokens.mean(0, 8, -2)
    tokens.drop_before(100)
    assert (tokens.dropped, tokens.next, tokens.found) == (7, 17, [])


def test_a_check_at_a_stop_string_counts_its_tokens_and_none_of_the_window_behind_it():
    """The engine decodes to the end of the window; an answer that a stop string ends is checked at its last token."""
    states = np.random.default_rng(2).standard_normal((12, 2, 3)).astype(np.float32)
    tokens = AnswerTokens(40)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        tokens.add(40 + begin, states[begin:end])
    stop = 7
    for column, token in ((0, -3), (1, -3), (0, -9), (1, WHOLE)):
        last = states[:stop, column][token:] if token != WHOLE else states[:stop, column]
        plain = last.astype(float).sum(0) / (stop if token == WHOLE else -token)
        np.testing.assert_allclose(tokens.mean(column, stop, token), plain, rtol=1e-6)
    tokens.drop_before(stop - 3)
    np.testing.assert_allclose(tokens.mean(0, stop, -3), states[4:7, 0].mean(0), rtol=1e-6)


def test_means_of_states_are_summed_in_float64():
    tokens = AnswerTokens(0)
    states = np.array([[[2.0**25, 1.0]], [[1.0, 2.0]], [[1.0, 3.0]], [[2.0**25, 4.0]]], np.float32)
    tokens.add(0, states)
    mean = tokens.mean(0, 4, WHOLE)
    assert mean.dtype == np.float32 and mean.tolist() == [np.float32((2**26 + 2) / 4), 2.5]


def test_sums_over_ranges_that_come_in_pieces():
    states = np.random.default_rng(0).standard_normal((20, 2, 3)).astype(np.float32)
    ranges = [[5, 9], [5, 17], [12, 17], [8, 9]]
    sums = RangeSums(ranges)
    assert (sums.next, sums.end) == (5, 17)
    sums.add(7, states[7:9])  # a gap: not kept
    for begin, end in ((3, 6), (3, 6), (6, 13), (10, 20)):
        sums.add(begin, states[begin:end])
    assert sums.next >= sums.end
    for found, (begin, end) in zip(sums.sums(), ranges, strict=True):
        np.testing.assert_allclose(found, states[begin:end].astype(float).sum(0), rtol=1e-12)
    nothing = RangeSums([])
    assert not range(nothing.next, nothing.end) and nothing.sums() == []


def test_the_sums_of_the_engine_are_divided_once_by_the_length_of_the_mean(tmp_path, monkeypatch):
    """An engine that writes what it is asked for: the state at position p is p, at the second site ten times that."""
    depths, tokens = (0, 1, 2, 5, 7), (1, -3, WHOLE, CONTENT)

    def generate(prompts, sampling, use_tqdm):
        for prompt, params in zip(prompts, sampling, strict=True):
            asked = params.extra_args["anydepth"]
            places = np.arange(float(len(prompt["prompt_token_ids"])), dtype=np.float32)
            states = np.stack([places, 10 * places], 1)[:, :, None]
            sums = RangeSums(asked["sums"])
            sums.add(0, states)
            found = [*states[asked["read"]], *sums.sums()]
            np.save(tmp_path / f"{asked['file']}.npy", np.array(found, np.float32))

    monkeypatch.setattr(vllm_backend, "require", lambda *_, **__: SimpleNamespace(SamplingParams=SimpleNamespace))
    backend = object.__new__(VllmBackend)
    backend.sites, backend._batches = (FIRST, SECOND), 0
    backend._folder, backend._llm = SimpleNamespace(name=str(tmp_path)), SimpleNamespace(generate=generate)
    backend._config = SimpleNamespace(max_model_len=100)
    backend.__dict__["_identity"] = SimpleNamespace(hidden_size=1)
    backend.template = SimpleNamespace(
        header=SimpleNamespace(ids=(7, 8)), position=lambda prompt, token, depth: None if token >= 0 else 2 + depth
    )
    answer = FinishedAnswer(Prompt((1, 2, 3)), tuple(range(20, 27)), depths)
    (found,) = backend.read_batch([answer], [SECOND, FIRST], tokens=tokens)
    wanted = np.zeros((5, 4, 1))
    for place, depth in enumerate(depths):
        text = np.arange(3.0, 3 + depth)
        wanted[place, :, 0] = 4 + depth, text[-3:].sum() / 3, text.mean() if depth else 0, 2 + depth
    np.testing.assert_allclose(found[FIRST], wanted, rtol=1e-6)
    np.testing.assert_allclose(found[SECOND], 10 * wanted, rtol=1e-6)
    assert not list(tmp_path.iterdir())


class Layers(ReadOut):
    """States of a pass that is written down."""

    name = "written down"

    def __init__(self, states):
        super().__init__()
        self.states, self.asked = states, {}

    def take(self, aux):
        self.asked = self._rows
        return {site: self.states[site].index_select(0, rows) for site, rows in self._rows.items()}


def made(reads, *, linear):
    """A setup, a reader of it and the states of a step of nine rows."""
    rng = np.random.default_rng(1)
    setup = Setup(EngineOptions(), model=SimpleNamespace(identity=SimpleNamespace(hidden_size=4)))
    members = {"name": "p", "needs": frozenset(), "reads": reads}
    if linear:
        members |= {"weight": rng.standard_normal((len(reads), 4)).astype(np.float32), "bias": 0.0}
    setup.__dict__["detector"] = SimpleNamespace(
        **members, **dict.fromkeys(("bind", "check", "score_each"), lambda *_: None)
    )
    states = {site: torch.tensor(rng.standard_normal((9, 4)), dtype=torch.float32) for site in (FIRST, SECOND)}
    layers = Layers(states)
    return setup, layers, StepReader(setup, layers, torch.device("cpu")), states


def orders():
    """Request `a` decodes with a header behind it (rows 0 to 3), `b` runs five tokens, the last four its answer's."""
    places = {("a", 33, 0): 3, ("a", 31, 4): 1}
    return Orders(places, {"a": Span(30, 0, 1), "b": Span(50, 1, 4)}), {"a": 0, "b": 4}


def test_the_rows_of_a_step_become_parts_of_the_logit():
    setup, layers, reader, states = made(READS, linear=True)
    assert setup.means == ((1, -3), (2, WHOLE), (3, WHOLE)) and setup.span_reads == (1, 2, 3)
    assert setup.longest_mean == -WHOLE
    reader.expect(*orders())
    found = reader.take(None).findings()
    assert layers.asked[FIRST].tolist() == [3, 0, 5, 6, 7, 8] and layers.asked[SECOND].tolist() == [1, 0, 5, 6, 7, 8]
    weight = setup.weight.astype(float)
    assert found.states == pytest.approx({
        ("a", 33, 0): float(states[FIRST][3].double().numpy() @ weight[0]),
        ("a", 31, 4): float(states[SECOND][1].double().numpy() @ weight[4]),
    })  # fmt: skip
    for name, first, rows in (("a", 30, [0]), ("b", 50, [5, 6, 7, 8])):
        position, values = found.spans[name]
        assert position == first and values.dtype == np.float64
        for column, read in enumerate((1, 2, 3)):
            wanted = states[READS[read].site][rows].double().numpy() @ weight[read]
            np.testing.assert_allclose(values[:, column], wanted, rtol=1e-12)
    assert reader.take(None) is None
    reader.expect(Orders({("a", 33, 0): 2}), {"a": 1})
    only = reader.take(None).findings()
    assert set(layers.asked) == {FIRST} and not only.spans and list(only.states) == [("a", 33, 0)]


def test_the_rows_of_a_step_become_states_for_a_detector_that_is_not_linear():
    setup, _, reader, states = made(READS, linear=False)
    assert setup.weight is None and setup.nothing.tolist() == [0, 0, 0, 0] and setup.nothing.dtype == np.float32
    reader.expect(*orders())
    found = reader.take(None).findings()
    np.testing.assert_array_equal(found.states["a", 31, 4], states[SECOND][1].numpy())
    position, values = found.spans["b"]
    assert position == 50 and values.dtype == np.float32 and values.shape == (4, 3, 4)
    for column, read in enumerate((1, 2, 3)):
        np.testing.assert_array_equal(values[:, column], states[READS[read].site][5:].numpy())


def test_a_detector_of_means_alone_runs_one_token_of_the_header():
    setup, layers, reader, _ = made((Read(FIRST, -3),), linear=True)
    setup.model.header = SimpleNamespace(ids=(7, 8, 9), answer_ids=())
    assert setup.header_ids == (7,) and setup.header_sites == () and setup.nothing == 0.0
    assert setup.longest_mean == 3 and made((Read(FIRST, 0),), linear=True)[0].longest_mean == 0
    content, *_ = made((Read(FIRST, CONTENT), Read(FIRST, -3)), linear=True)
    content.model.header = setup.model.header
    assert content.header_ids == (7,) and content.header_sites == () and content.sites == (FIRST,)
    reader.expect(Orders(spans={"a": Span(30, 0, 2)}), {"a": 4})
    assert reader.take(None).findings().spans["a"][1].shape == (2, 1) and layers.asked[FIRST].tolist() == [4, 5]


def test_a_module_that_is_never_called_is_named():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp, self.spare = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, states):
            return self.mlp(states)

    model = torch.nn.Sequential(torch.nn.ModuleList([Block(), Block()]))
    blocks, rows = model[0], torch.tensor([1])
    for name in ("mlp", "spare"):
        read_out = HookReadOut(model, 2, [Site(1, name)])
        read_out.expect({Site(1, name): rows})
        states = torch.ones(3, 4)
        for block in blocks:
            states = block(states)
        if name == "mlp":
            torch.testing.assert_close(read_out.take(None)[Site(1, "mlp")], states[1:2])
        else:
            with pytest.raises(UnsupportedModel, match=r"site 1\.spare cannot be read"):
                read_out.take(None)
    state = RunnerState(made((Read(Site(1, "mlp"), -3),), linear=True)[0])
    state.prove(lambda: 1 / 0, "cpu")  # without hooks nothing is run
    ran = []

    def trial():
        ran.append(blocks[1](blocks[0](torch.ones(1, 4))))

    state.read_out = read_out = HookReadOut(model, 2, [Site(1, "mlp"), Site(0, "output")])
    state.prove(trial, "cpu")
    assert len(ran) == 1 and not read_out._rows and not read_out._states
    state.read_out = HookReadOut(model, 2, [Site(1, "mlp"), Site(0, "spare")])
    with pytest.raises(UnsupportedModel, match=r"site 0\.spare cannot be read: vLLM does not call"):
        state.prove(trial, "cpu")
    with pytest.raises(UnsupportedModel, match=r"1\.self_attn does not exist: .* has mlp, spare and output"):
        HookReadOut(model, 2, [Site(1, "self_attn")])
