"""How a mistake is said: pydantic's findings in our words, and places as `upstreams.openai.urls[1]`.

Only names are shown of a place, never whatever else stands where a name should: `key:sk-...`, without the space, is one
key to YAML. It must not know files or lines.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from gateway.config.fields import Section
from gateway.config.mistake import Mistake, Place
from gateway.config.settings import Settings

_WORDS = {
    "missing": "required",
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "finite_number": "must be finite",
    "greater_than_equal": "must be at least {ge:.0f}",
    "greater_than": "must be more than {gt:.0f}",
    "less_than_equal": "must be at most {le:.0f}",
}


def mistakes_in(failure: ValidationError) -> list[Mistake]:
    """All that pydantic found, in our words."""
    return [_mistake(error["type"], error["loc"], dict(error)) for error in failure.errors(include_url=False)]


def spoken(mistake: Mistake) -> str:
    """`path: message`, or the message alone for what is wrong with the whole."""
    path = _path(mistake.place)
    return f"{path}: {mistake.message}" if path else mistake.message


def _mistake(kind: str, place: Place, error: Mapping[str, Any]) -> Mistake:
    if place and place[-1] == "[key]":
        return Mistake(place[:-1], error["msg"])
    if kind == "extra_forbidden":
        return Mistake(place, f"unknown key; known here: {', '.join(_section_at(place[:-1]).model_fields)}")
    if kind != "missing" and error["input"] is None:
        return Mistake(place, "has no value")
    context = error.get("ctx", {})
    if kind == "literal_error":
        supported = context["expected"].replace(" or ", ", ").replace("'", "")
        return Mistake(place, f"not supported; supported here: {supported}")
    words = next((words for start, words in _WORDS.items() if kind.startswith(start)), None)
    return Mistake(place, error["msg"] if words is None else words.format_map(context))


def _section_at(place: Place) -> type[Section]:
    """The section at a place that is known to have one."""
    here: type[Section] = Settings
    steps = iter(place)
    for step in steps:
        section, entries = _held(here, str(step))
        if entries:
            next(steps, None)
        here = section or here
    return here


def _held(section: type[Section], field: str) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if any, and whether it holds it as entries of a mapping or a list."""
    annotation = section.model_fields[field].annotation
    sections = [held for held in (annotation, *get_args(annotation)) if _is_section(held)]
    return (sections[0] if sections else None), get_origin(annotation) in {dict, tuple}


def _is_section(held: object) -> bool:
    return isinstance(held, type) and issubclass(held, Section)


def _path(place: Place) -> str:
    """The place in words, up to the first key that is not known to be a name."""
    path = ""
    here: type[Section] | None = Settings
    entry: type[Section] | None = None  # what the entries of the mapping or the list hold that the path has come to
    for step in place:
        if isinstance(step, int):
            path += f"[{step}]"
            here = entry
        elif here is None:
            path += _entry_name(step)
            here = entry
        elif step in here.model_fields:
            path += f".{step}"
            held, entries = _held(here, step)
            here, entry = (None, held) if entries else (held, None)
        else:
            path += _unknown_name(step, here)
            break
    return path.removeprefix(".")


def _entry_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        return f".{name}"
    return f'."{name}"' if re.fullmatch(r"[A-Za-z0-9_./:@*-]+", name) else ".?"


def _unknown_name(name: str, section: type[Section]) -> str:
    """A misspelt or future setting is shown; what looks like neither may be anything."""
    letters = re.sub("[_-]", "", name).lower()
    misspelt = any(letters == field.replace("_", "") for field in section.model_fields)
    return f".{name}" if misspelt or re.fullmatch("[a-z_]{1,20}", name) else ".?"
