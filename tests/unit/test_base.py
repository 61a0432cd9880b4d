"""Sites and reads: the text they are written as is read back, and nothing else is."""

import pytest

from anydepth.backends.protocol import (
    CONTENT,
    WHOLE,
    FinishedAnswer,
    Read,
    Site,
    last_header_token,
    require_no_means,
)
from anydepth.errors import CapabilityError, ConfigError
from anydepth.templates.template import Prompt


@pytest.mark.parametrize("site", [Site(0), Site(15), Site(3, "output"), Site(7, "self_attn.q_proj")])
def test_a_site_is_read_back(site: Site) -> None:
    assert Site.parse(str(site)) == site


def test_a_site_is_written_as_block_and_module() -> None:
    assert str(Site(15)) == "15.input_layernorm"


@pytest.mark.parametrize("text", ["", "15", "15.", ".output", "x.output", "-1.output", "1 5.output", "output.15"])
def test_what_is_no_site_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as BLOCK\.MODULE") as error:
        Site.parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "read",
    [
        Read(Site(0), 0),
        Read(Site(15), 12),
        Read(Site(3, "output"), CONTENT),
        Read(Site(15), -2),
        Read(Site(15, "mlp"), -25),
        Read(Site(15), WHOLE + 1),
        Read(Site(15), WHOLE),
    ],
)
def test_a_read_is_read_back(read: Read) -> None:
    assert Read.parse(str(read)) == read


def test_a_read_of_the_content_says_so() -> None:
    assert str(Read(Site(15), CONTENT)) == "15.input_layernorm@content"
    assert str(Read(Site(15), 3)) == "15.input_layernorm@3"


def test_a_mean_says_over_how_many_tokens() -> None:
    assert str(Read(Site(15), -25)) == "15.input_layernorm@mean25"
    assert str(Read(Site(15), WHOLE)) == "15.input_layernorm@mean"
    assert Read.parse("15.input_layernorm@mean2").token == -2
    assert Read.parse("15.input_layernorm@mean").token == WHOLE == -(2**31 - 1)


@pytest.mark.parametrize(("token", "is_mean"), [(0, False), (3, False), (CONTENT, False), (-2, True), (WHOLE, True)])
def test_a_mean_is_told_from_the_state_of_one_token(token: int, is_mean: bool) -> None:
    assert Read(Site(3), token).is_mean is is_mean


@pytest.mark.parametrize("name", ["mean1", "mean0", "meanx", "mean-2", "mean 2", "mean2.5", "Mean", f"mean{-WHOLE}"])
def test_what_is_no_mean_is_refused_with_the_form(name: str) -> None:
    with pytest.raises(ConfigError, match=r"mean25 for the mean of the last 25 answer tokens \(2 or more\)") as error:
        Read.parse(f"15.output@{name}")
    assert repr(f"15.output@{name}") in str(error.value)


@pytest.mark.parametrize(
    "text", ["15.output", "15.output@", "15.output@-1", "15.output@x", "15.output@3@4", "15.output@Content"]
)
def test_what_is_no_read_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as SITE@TOKEN") as error:
        Read.parse(text)
    assert repr(text) in str(error.value)


def test_a_read_of_no_site_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"site is '15'; write it as BLOCK\.MODULE"):
        Read.parse("15@3")


@pytest.mark.parametrize("token", [WHOLE - 1, True, "3", 1.0, None])
def test_a_token_that_there_cannot_be_is_refused(token: object) -> None:
    with pytest.raises(ConfigError, match=r"token is .*; give an index in the header, -1 for"):
        Read(Site(3), token)  # pyright: ignore[reportArgumentType]


def test_the_header_is_run_to_the_last_token_that_is_read() -> None:
    means = [Read(Site(3), -25), Read(Site(4), WHOLE)]
    assert last_header_token([*means, Read(Site(3), 2), Read(Site(5), 1)]) == 2
    assert last_header_token(means) == last_header_token([*means, Read(Site(3), CONTENT)]) == CONTENT


def test_who_cannot_read_means_refuses_them_by_name() -> None:
    require_no_means([Read(Site(3), 0), Read(Site(3), CONTENT)], "a search")
    with pytest.raises(CapabilityError, match=r"a search reads .* the probe reads 3\.input_layernorm@mean25, a mean"):
        require_no_means([Read(Site(3), 0), Read(Site(3), -25)], "a search")


def test_reads_can_be_compared_and_counted() -> None:
    assert len({Read(Site(3), 1), Read(Site(3), 1), Read(Site(3), CONTENT), Read(Site(4), 1)}) == 3


def test_an_answer_is_run_to_its_deepest_read() -> None:
    answer = FinishedAnswer(Prompt((1, 2)), (5, 6, 7), (0, 2, 1))
    assert answer.deepest == 2
    assert FinishedAnswer(Prompt((1, 2)), (5, 6, 7), ()).deepest == 0
