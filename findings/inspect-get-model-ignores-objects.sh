#!/usr/bin/env bash
# Inspect's get_model() gives back a model that was made with another object among its arguments.
#
# Guess: get_model(name, reader=B) makes a new model after get_model(name, reader=A), since "a call with the same arguments
#   will return the same instance", and these are not the same.
# What happens: the arguments that are no JSON count as None in the key of its cache, so that the first model is returned,
#   with A in it, and B is never used. Strings and numbers are told apart; memoize=False makes a new one.
# Versions: inspect-ai 0.3.285; Python 3.11
# Output seen on 2026-11-29:
#   two objects: the second call has the reader of the first: True
#   two strings: the second call has the reader of the first: False
#   two objects, memoize=False: the second call has the reader of the first: False
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile inspect-ai==0.3.285
"$work/venv/bin/python" - <<'PYTHON'
from inspect_ai.model import ModelAPI, get_model, modelapi


class Reader:
    """Any object that a provider takes."""


class Provider(ModelAPI):
    def __init__(self, model_name, base_url=None, api_key=None, config=None, reader=None):
        super().__init__(model_name, base_url, api_key)
        self.reader = reader

    async def generate(self, input, tools, tool_choice, config):
        raise NotImplementedError


@modelapi(name="reading")
def reading():
    return Provider


def same(one, two, **options):
    first, second = (get_model("reading/model", reader=each, **options).api for each in (one, two))
    assert first.reader is one or first.reader == one
    return second.reader is one


found = [same(Reader(), Reader()), same("a", "b"), same(Reader(), Reader(), memoize=False)]
for name, kept in zip(("two objects", "two strings", "two objects, memoize=False"), found):
    print(f"{name}: the second call has the reader of the first: {kept}")
raise SystemExit(found != [True, False, False])
PYTHON
