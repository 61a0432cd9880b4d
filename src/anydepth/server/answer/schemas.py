"""Vet the JSON Schemas that clients send, and close their objects."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from anydepth.errors import BadRequest

LONGEST_SCHEMA = 100_000
"""Characters of the schemas of one request, as JSON."""

DEEPEST_SCHEMA = 64
"""Objects and lists inside one another."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = (
    "items",
    "additionalProperties",
    "unevaluatedProperties",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
)
_JOINED = frozenset({"$ref", "anyOf", "oneOf", "allOf", "not", "if", "dependentSchemas"})
"""Keywords that hold beside `properties`: what they name may be properties too."""
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def check_schemas(schemas: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse schemas that are too long or too deep, before anything reads them; BadRequest names the field.

    Args:
        schemas: The schemas of a request by the names of their fields.
    """
    left = LONGEST_SCHEMA
    for name, schema in schemas.items():
        if (depth := _depth(schema)) > DEEPEST_SCHEMA:
            raise BadRequest(f"{name} has {depth} levels of objects and lists; send {DEEPEST_SCHEMA} at most", name)
        left -= len(json.dumps(schema, ensure_ascii=False))
        if left < 0:
            raise BadRequest(
                f"the schemas of the request, up to {name}, have more than {LONGEST_SCHEMA} characters; send fewer or "
                "shorter ones",
                name,
            )


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without properties that it does not list, where it does not say whether there may be others.

    What is valid by it is valid by the schema as it was. A schema in which properties are joined from several places
    stays as it is: each place would shut out the others' properties.
    """
    schema = dict(schema)
    nodes = list(_nodes(schema))
    if any("properties" in node and _JOINED & node.keys() for node in nodes) or any(_joins(node) for node in nodes):
        return schema
    return _closed(schema)


def moved(value: Any, place: str) -> Any:
    """A schema as it reads at `place` (e.g. `#/properties/arguments`) of another one: its references begin there."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        new = {key: moved(each, place) for key, each in value.items()}
        if isinstance(reference, str) and reference.startswith("#"):
            new["$ref"] = place + reference[1:]
        return new
    return [moved(each, place) for each in value] if isinstance(value, list) else value


def _closed(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    new = dict(node)
    for name in _MAPS:
        if isinstance(new.get(name), Mapping):
            new[name] = {key: _closed(each) for key, each in new[name].items()}
    for name in _LISTS:
        if isinstance(new.get(name), list):
            new[name] = [_closed(each) for each in new[name]]
    for name in _SINGLE:
        if isinstance(new.get(name), Mapping):
            new[name] = _closed(new[name])
    if isinstance(new.get("properties"), Mapping) and not any(name in new for name in _OPEN):
        new["additionalProperties"] = False
    return new


def _joins(node: Mapping[str, Any]) -> bool:
    return isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas in it."""
    if not isinstance(node, Mapping):
        return
    yield node
    for name in _MAPS:
        for each in node[name].values() if isinstance(node.get(name), Mapping) else ():
            yield from _nodes(each)
    for name in _LISTS:
        for each in node[name] if isinstance(node.get(name), list) else ():
            yield from _nodes(each)
    for name in _SINGLE:
        yield from _nodes(node.get(name))


def _depth(value: Any) -> int:
    """How many objects and lists are inside one another; without recursion, however deep it is."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, Mapping | list):
            deepest = max(deepest, depth)
            waiting += [(inner, depth + 1) for inner in (each.values() if isinstance(each, Mapping) else each)]
    return deepest
