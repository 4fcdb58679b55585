"""Queries of a command line: class names, minimum scores, and example images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovd.build.prompts import Example, Prompt
from ovd.data.formats.text_files import read_lines
from ovd.format_count import format_count
from ovd.text.names import name_key
from ovd.warn import warn


@dataclass(frozen=True)
class Query:
    """A class to detect."""

    prompt: str | Prompt
    """Name of the class, or a prompt with texts and examples."""
    min_score: float | None = None
    """Minimum score of the class's boxes, 0 to 1; None for the minimum score of all classes."""

    @property
    def name(self) -> str:
        """Name of the class in results."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt.name

    def threshold(self, default: float) -> float:
        """Return the minimum score of the class's boxes: its own, or `default` if it has none."""
        return default if self.min_score is None else self.min_score


def describe_thresholds(queries: Sequence[Query], default: float, kind: str) -> str:
    """Describe the minimum scores of boxes for a summary, such as "score of at least 0.45".

    Args:
        default: minimum score of queries without their own.
        kind: word for the scores, `probability` or `score`.
    """
    own = ", or the minimum score after its name" if any(query.min_score is not None for query in queries) else ""
    return f"{kind} of at least {default:.2f}{own}"


def parse_query(query: str) -> Query:
    """Parse a query such as `anchor:0.8` into its name and its minimum score, if it has one.

    A minimum score has a decimal point, so that `a ratio of 16:9` and `a clock at 12:00` are names.

    Raises:
        ValueError: there is no name, or the minimum score is not in 0..1.
    """
    name, _, minimum = query.rpartition(":")
    if not re.fullmatch(r"\s*-?\d*\.\d+\s*", minimum):
        return Query(query.strip())
    value = float(minimum)
    if not 0 <= value <= 1 or not name.strip():
        raise ValueError(f"{query.strip()!r}: write it as NAME:0.8, a name and a minimum score from 0 to 1")
    return Query(name.strip(), value)


def read_queries(classes: str | None, file: Path | None = None) -> list[Query]:
    """Read queries by class name, each once (`deduplicate`).

    Args:
        classes: comma-separated queries (`parse_query`).
        file: text file with one query per line, which may contain commas.

    Raises:
        ValueError: a minimum score is not in 0..1, a name reads as blank or has two minimum scores, or the file cannot
            be read.
    """
    queries = [query for query in (classes or "").split(",") if query.strip()]
    if file is not None:
        queries += [line for _, line in _lines_of_names(file)]
    return deduplicate(list(map(parse_query, queries)))


def read_class_names(file: Path) -> tuple[str, ...]:
    """Read class names from a file with one per line; of names that read alike, keep the first.

    Raises:
        ValueError: a name reads as blank, or the file cannot be read.
    """
    first: dict[str, str] = {}
    for number, name in _lines_of_names(file):
        reading = name_key(name)
        if not reading.strip("() "):
            raise ValueError(
                f"{file}: line {number}: {name!r} is blank to the text tower; write a class name, or remove the line"
            )
        first.setdefault(reading, name)
    return tuple(first.values())


def _lines_of_names(file: Path) -> list[tuple[int, str]]:
    """Read the lines of a file of class names with their numbers.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    if not file.exists():
        raise ValueError(f"{file} does not exist; give a text file with one class name per line")
    return read_lines(file)


def parse_example(word: str) -> tuple[str, Example]:
    """Parse `NAME=IMAGE` or `NAME=IMAGE:x,y,width,height` into the name and the example.

    Raises:
        ValueError: `word` does not have this form.
    """
    name, equals, rest = word.partition("=")
    if not equals or not name.strip() or not rest:
        raise ValueError(f"--prompt {word}: write it as NAME=IMAGE or NAME=IMAGE:x,y,width,height")
    found = re.fullmatch(r"(.+):([^:/]+(?:,[^:/]+)+)", rest)
    if found is None:
        return name.strip(), Example(rest)
    try:
        x, y, width, height = map(float, found[2].split(","))
    except ValueError:
        if found[2].count(",") != 3 and not re.fullmatch(r"[\d.,\s-]+", found[2]):
            return name.strip(), Example(rest)  # the file name has a colon and commas
        raise ValueError(f"--prompt {word}: {found[2]} is not a box x,y,width,height in pixels") from None
    return name.strip(), Example(found[1], (x, y, x + width, y + height))


def deduplicate(queries: Sequence[Query]) -> list[Query]:
    """Remove repeated queries, which would share the probability of one name, and warn of their number.

    Raises:
        ValueError: a name reads as blank, or is given with two minimum scores.
    """
    first: dict[str, Query] = {}
    for query in queries:
        reading = name_key(query.name)
        if not reading:
            raise ValueError(f"{query.name!r} is blank to the text tower; write a class name, or leave it out")
        before = first.setdefault(reading, query)
        if before.min_score != query.min_score:
            raise ValueError(
                f"{before.name!r} and {query.name!r} are the same name with two minimum scores; give it only once"
            )
    if num_repeats := len(queries) - len(first):
        are = "is" if num_repeats == 1 else "are"
        warn(f"{format_count(num_repeats, 'name')} {are} given more than once; each is used once")
    return list(first.values())


def add_examples(queries: Sequence[Query], words: Sequence[str]) -> list[Query]:
    """Combine names and examples into queries by name, by name with examples, and by examples alone.

    Args:
        queries: queries by name.
        words: examples (`parse_example`); an example belongs to the query whose name reads like its own.

    Raises:
        ValueError: as raised by `parse_example`.
    """
    called: dict[str, str] = {}
    examples: dict[str, list[Example]] = {}
    for name, example in map(parse_example, words):
        examples.setdefault(name_key(name), []).append(example)
        called.setdefault(name_key(name), name)
    by_name = []
    for query in queries:
        own = examples.pop(name_key(query.name), None)
        prompt = query.prompt if own is None else Prompt(query.name, (query.name,), tuple(own))
        by_name.append(replace(query, prompt=prompt))
    alone = [Query(Prompt(called[reading], images=tuple(own))) for reading, own in examples.items()]
    return [*by_name, *alone]
