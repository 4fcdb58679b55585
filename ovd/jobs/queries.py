"""What is asked for on a command line: names, minimum scores, and examples."""

import re
from pathlib import Path

from ovd.build.prompts import Example, Prompt
from ovd.data.formats.text_files import read_lines
from ovd.text.names import name_key
from ovd.warn import warn


def split_query(query: str) -> tuple[str, float | None]:
    """The name of a query such as `anchor:0.8`, and its minimum score, if it has one.

    A minimum has a decimal point: `a ratio of 16:9` and `a clock at 12:00` are names.

    Raises:
        ValueError: no name, or a minimum that is not in 0..1.
    """
    name, _, minimum = query.rpartition(":")
    if not re.fullmatch(r"\s*-?\d*\.\d+\s*", minimum):
        return query.strip(), None
    value = float(minimum)
    if not 0 <= value <= 1 or not name.strip():
        raise ValueError(f"{query.strip()!r}: write it as NAME:0.8, with a minimum score from 0 to 1")
    return name.strip(), value


def read_queries(classes: str | None, file: Path | None = None) -> list[tuple[str, float | None]]:
    """Names and minimum scores, each name once (`each_once`).

    Args:
        classes: comma-separated queries (`split_query`).
        file: has a query per line, which may have commas.

    Raises:
        ValueError: a minimum score is wrong, a name has two, or the file cannot be read.
    """
    queries = [query for query in (classes or "").split(",") if query.strip()]
    if file is not None:
        queries += [line for _, line in read_lines(file)]
    return each_once(list(map(split_query, queries)))


def read_example(word: str) -> tuple[str, Example]:
    """The name and the example of `NAME=IMAGE`, or of `NAME=IMAGE:x,y,width,height`.

    Raises:
        ValueError: it is not of that form.
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
            return name.strip(), Example(rest)  # a colon and commas in the name of a file
        raise ValueError(f"--prompt {word}: {found[2]} is not a box x,y,width,height in pixels") from None
    return name.strip(), Example(found[1], (x, y, x + width, y + height))


def each_once(asked: list[tuple[str, float | None]]) -> list[tuple[str, float | None]]:
    """What is asked for without repeats, which would share the probability of one name; a note counts them.

    Raises:
        ValueError: a name is given with two minimum scores.
    """
    first: dict[str, tuple[str, float | None]] = {}
    for name, minimum in asked:
        before = first.setdefault(name_key(name), (name, minimum))
        if before[1] != minimum:
            raise ValueError(f"{before[0]!r} and {name!r} are one name with two minimum scores; give it once")
    if len(first) < len(asked):
        warn(f"{len(asked) - len(first)} names are given twice, and asked for once")
    return list(first.values())


def with_examples(
    asked: list[tuple[str, float | None]], words: list[str]
) -> tuple[list[str | Prompt], list[float | None]]:
    """What is asked for, and the minimum scores: names, names with examples, and examples alone."""
    called: dict[str, str] = {}
    examples: dict[str, list[Example]] = {}
    for name, example in map(read_example, words):
        examples.setdefault(name_key(name), []).append(example)
        called.setdefault(name_key(name), name)
    by_name = [
        Prompt(name, (name,), tuple(examples.pop(name_key(name)))) if name_key(name) in examples else name
        for name, _ in asked
    ]
    alone = [Prompt(called[reading], images=tuple(own)) for reading, own in examples.items()]
    return [*by_name, *alone], [*(minimum for _, minimum in asked), *(None for _ in alone)]
