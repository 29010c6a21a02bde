"""Conditions between the options of a command line: what an option needs, and beside what it has no effect.

A condition is a text such as `"lora_rank"`, `"frame_store=jpeg"`, `"source=*.csv or source=*.tsv"` or
`"window_seconds and labels"`. A name alone means that the option is set: not none, false, 0 or empty. `and` binds more
tightly than `or`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


@dataclasses.dataclass(frozen=True)
class Term:
    """An option that is set, or one whose value has the form of `pattern`."""

    name: str
    pattern: str | None = None

    def holds(self, values: Mapping[str, Any]) -> bool:
        value = values[self.name]
        if self.pattern is not None:
            return fnmatchcase(str(value).lower(), self.pattern)
        return value not in (None, False, "", "none") and value != []

    def __str__(self) -> str:
        return f"--{self.name}" if self.pattern is None else f"--{self.name} {self.pattern}"


def alternatives(condition: str) -> list[list[Term]]:
    """The terms of a condition: it holds if all terms of one of the lists hold."""
    return [[_term(part) for part in one.split(" and ")] for one in condition.split(" or ")]


def _term(text: str) -> Term:
    name, equals, pattern = text.strip().partition("=")
    return Term(name, pattern if equals else None)


def names_in(condition: str) -> set[str]:
    """The options that a condition is about."""
    return {term.name for one in alternatives(condition) for term in one}


def in_words(condition: str) -> str:
    """The condition as `--help` shows it."""
    return _joined([_joined(map(str, one), "and") for one in alternatives(condition)], "or")


def conditions_in_words(needs: str | None, unused_with: str | None) -> str:
    """Sentences for the help of an option with these conditions; empty without conditions."""
    needed = f" Needs {in_words(needs)}." if needs else ""
    return needed + (f" Not with {in_words(unused_with)}." if unused_with else "")


def _joined(parts: Iterable[str], word: str) -> str:
    *first, last = dict.fromkeys(parts)
    comma = "," if any(" and " in part for part in (*first, last)) else ""
    return f"{', '.join(first)}{comma} {word} {last}" if first else last


def check_conditions(options_class: type, values: Mapping[str, Any], given: Iterable[str]) -> None:
    """Raises `ValueError` for an option on the command line that has no effect beside the others.

    Args:
        options_class: A dataclass of options.
        values: Values of all its options.
        given: Names of the options that stand on the command line. Other options are not checked: their values are
            defaults or come from a saved run.
    """
    given = set(given)
    for item in dataclasses.fields(options_class):
        # `--flag false` asks for nothing, so it cannot be ignored
        asks = item.name in given and not (values[item.name] is False and item.default is False)
        if asks:
            _check_option(item, values, given)


def _check_option(item: dataclasses.Field, values: Mapping[str, Any], given: set[str]) -> None:
    needs, unused_with = item.metadata.get("needs"), item.metadata.get("unused_with")
    if needs is not None:
        unmet = [[term for term in one if not term.holds(values)] for one in alternatives(needs)]
        if all(unmet):
            raise ValueError(_without(item.name, unmet, values, given))
    if unused_with is not None:
        for one in alternatives(unused_with):
            if all(term.holds(values) for term in one):
                present = _joined(map(str, one), "and")
                raise ValueError(f"--{item.name} has no effect with {present}: leave one of them out.")


def check_without_effect(options: Any, names: Iterable[str], beside: str) -> None:
    """Raises `ValueError` if an option is set that has no effect beside something that only the data tells.

    Args:
        options: An instance of a dataclass of options; the defaults of `names` are None, false or empty.
        beside: What was found, for the message.
    """
    for name in names:
        if Term(name).holds(vars(options)):
            raise ValueError(f"--{name} has no effect with {beside}: leave it out.")


def _without(name: str, unmet: list[list[Term]], values: Mapping[str, Any], given: set[str]) -> str:
    switched_off = [term for one in unmet for term in one if term.pattern is None and term.name in given]
    if switched_off:
        off = switched_off[0].name
        return f"--{name} has no effect with --{off} {_as_typed(values[off])}: leave one of them out."
    missing = _joined([_joined(map(str, one), "and") for one in unmet], "or")
    it = "it" if " " not in missing else missing
    return f"--{name} has no effect without {missing}: add {it}, or leave --{name} out."


def _as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


__all__ = [
    *("Term", "alternatives", "check_conditions", "check_without_effect", "conditions_in_words", "in_words"),
    "names_in",
]
