"""How docstrings begin: a function's with an imperative, a class's or module's with what it is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ntkdist"
MODULES = sorted(ROOT.rglob("*.py"))
NO_VERBS = {
    *("a", "an", "the", "this", "that", "these", "those", "all", "any", "both", "each", "every", "no", "some", "such"),
    *("what", "which", "who", "whose", "whom", "whether", "how", "if", "where", "when", "why", "because"),
    *("of", "at", "as", "by", "for", "from", "in", "into", "on", "over", "per", "to", "under", "with", "within"),
    *("after", "before", "between", "beside", "beyond", "but", "and", "or", "not", "only", "also", "more", "most"),
    *("it", "its", "they", "their", "he", "she", "we", "you", "one", "two", "three", "there", "here", "otherwise"),
    *("same", "least", "greatest", "largest", "smallest", "mean", "rows", "columns", "whole", "like", "then"),
}
VERBS = {"assess", "compress", "express", "guess", "pass", "process", "embed", "feed", "need", "seed", "bring"}
NO_NOUNS = NO_VERBS - {
    "least",
    "some",
    "a",
    "an",
    "the",
    "all",
    "one",
    "two",
    "three",
    "rows",
    "columns",
    "largest",
    "greatest",
    "smallest",
    "mean",
}
PERSONS = re.compile(r"\b(hears?|heard|tells?|told|(is|are|was|were|being) at home)\b", re.IGNORECASE)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


def definitions(path: Path) -> Iterator[tuple[str, Definition, str]]:
    """Yield the place, the node and the docstring of every module, class and function that has one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Definition) and (text := ast.get_docstring(node)):
            name, line = ("", 1) if isinstance(node, ast.Module) else (node.name, node.lineno)
            yield f"{path.relative_to(ROOT.parent)}:{line} {name}".strip(), node, text


def is_property(node: Definition) -> bool:
    names = {ast.unparse(each).split(".")[-1] for each in getattr(node, "decorator_list", [])}
    return bool(names & {"property", "cached_property", "setter"})


def fault(node: Definition, text: str) -> str:
    """Describe what is wrong with how a docstring begins, or return ''."""
    match = re.match(r"([A-Za-z]+)(?=[\s.,:;]|$)( of\b)?", text)
    word, of = (match.group(1).lower(), bool(match.group(2))) if match else ("", False)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
        if not word:
            return "begins with no word"
        if word in NO_VERBS or of or (word.endswith(("s", "ed", "ing")) and word not in VERBS):
            return f"begins with '{' '.join(text.split()[:2])}', not with an imperative"
    elif word in NO_NOUNS or text.startswith("The same "):
        return f"begins with '{' '.join(text.split()[:2])}', not with a noun"
    return ""


@pytest.mark.parametrize(
    ("source", "faulty"),
    [
        ('def f():\n    """Return x."""', False),
        ('def f():\n    """Process rows."""', False),
        ('def f():\n    """Returns x."""', True),
        ('def f():\n    """What is there."""', True),
        ('def f():\n    """``x`` of y."""', True),
        ('def f():\n    """The rows of x."""', True),
        ('def f():\n    """Sum of x."""', True),
        ('def f():\n    """Sum x."""', False),
        ('def f():\n    """Mapped rows."""', True),
        ('@property\ndef f():\n    """The rows of x."""', False),
        ('@property\ndef f():\n    """What is there."""', True),
        ('class C:\n    """A map."""', False),
        ('class C:\n    """Rows by name."""', False),
        ('class C:\n    """How rows are named."""', True),
        ('class C:\n    """The same for rows."""', True),
        ('"""Of rows."""', True),
    ],
)
def test_the_rule(source: str, faulty: bool) -> None:
    module = ast.parse(source)
    node = module if ast.get_docstring(module) else module.body[0]
    assert isinstance(node, Definition)
    text = ast.get_docstring(node)
    assert text
    assert bool(fault(node, text)) == faulty


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    faults = [
        f"{place} {said}" for path in MODULES for place, node, text in definitions(path) if (said := fault(node, text))
    ]
    assert not faults, "\n".join(["", *faults])


def test_things_are_no_persons() -> None:
    """Nothing in a docstring hears, tells or is at home."""
    faults = [
        f"{place}: {found.group()}"
        for path in MODULES
        for place, _, text in definitions(path)
        if (found := PERSONS.search(text))
    ]
    assert not faults, "\n".join(["", *faults])
