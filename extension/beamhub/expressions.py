"""Small expressions that people write into trigger rules: `wavelength < 1.1 and frames >= 100`.

The syntax is Python's, of which only this is understood: numbers, texts, True, False and None; names, also
`one.of_two` parts; + - * / // %, comparisons, `in` a list, `and`, `or`, `not`, `… if … else …`; and the
functions `abs`, `min`, `max`, `round` and `like(text, pattern)`, a case-sensitive glob. Nothing is ever run:
the expression is read as a tree, and its parts are computed one by one from the values that are given.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from pydantic import JsonValue

Value = float | int | str | bool | list[Any] | None

LONGEST = 500  # characters of an expression, and of a text that one makes
DEEPEST = 40  # parts within parts
DIGITS = 18  # that round() may be asked for
LARGEST = 10**18  # of whole numbers: more is an error of whoever wrote it, and grows without bound


class ExpressionError(ValueError):
    """It is none, or it can't be computed from these values; the message says what is wrong with it."""


class UnknownError(ExpressionError):
    """A name has no value here."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not known")
        self.name = name


@dataclass(frozen=True)
class Expression:
    """An expression that has been read and understood."""

    text: str
    tree: ast.expr

    @classmethod
    @lru_cache(maxsize=1000)
    def parse(cls, text: str) -> Expression:
        """Raises ExpressionError for what is not understood."""
        if len(text) > LONGEST or not text.isprintable() or "\\" in text:
            raise ExpressionError(f"an expression is one line of up to {LONGEST} characters without \\")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ExpressionError(f"{text.strip() or 'nothing'} is not an expression") from error
        for depth, node in _parts(tree, 0):
            if depth > DEEPEST:
                raise ExpressionError(f"it has more than {DEEPEST} parts within parts")
            _understand(node)
        return cls(text.strip(), tree)

    @property
    def names(self) -> frozenset[str]:
        """What it asks for."""
        return frozenset(
            name for _, node in _parts(self.tree, 0) if (name := _name(node)) and name not in FUNCTIONS
        )

    def value(self, values: Mapping[str, Value]) -> Value:
        """What it amounts to. Raises UnknownError for a name without a value, else ExpressionError."""
        return _compute(self.tree, values)


def _number(*values: Value) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _arithmetic(work: Callable[[Any, Any], Any]) -> Callable[[Value, Value], Value]:
    def compute(left: Value, right: Value) -> Value:
        texts = work is operator.add and isinstance(left, str) and isinstance(right, str)
        if not texts and not _number(left, right):
            raise ExpressionError(f"{left!r} and {right!r} are not both numbers")
        try:
            return _bounded(work(left, right))
        except ArithmeticError as error:
            raise ExpressionError(str(error)) from error

    return compute


def _bounded(value: Any) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        raise ExpressionError("a number has become infinite")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ExpressionError("a number has become too large")
    if isinstance(value, str) and len(value) > LONGEST:
        raise ExpressionError("a text has become too long")
    bounded: Value = value
    return bounded


def _ordering(work: Callable[[Any, Any], bool]) -> Callable[[Value, Value], bool]:
    def compute(left: Value, right: Value) -> bool:
        if not _number(left, right) and not (isinstance(left, str) and isinstance(right, str)):
            raise ExpressionError(f"{left!r} and {right!r} can't be ordered")
        return work(left, right)

    return compute


def _within(item: Value, group: Value) -> bool:
    if isinstance(group, str) and isinstance(item, str):
        return item in group
    if isinstance(group, list):
        return item in group
    raise ExpressionError(f"nothing is in {group!r}")


def _like(*values: Value) -> bool:
    match values:
        case str(text), str(pattern):
            return fnmatchcase(text, pattern)
    raise ExpressionError("like() compares a text with a pattern")


def _of_numbers(work: Callable[..., Any]) -> Callable[..., Value]:
    def compute(*values: Value) -> Value:
        if not values or not _number(*values):
            raise ExpressionError(f"{work.__name__.strip('_')}() takes numbers")
        try:
            return _bounded(work(*values))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ExpressionError(
                f"{work.__name__.strip('_')}() can't take {len(values)} of these"
            ) from error

    return compute


OPERATORS: Mapping[type[ast.AST], Callable[[Value, Value], Value]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.FloorDiv: _arithmetic(operator.floordiv),
    ast.Mod: _arithmetic(operator.mod),
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _ordering(operator.lt),
    ast.LtE: _ordering(operator.le),
    ast.Gt: _ordering(operator.gt),
    ast.GtE: _ordering(operator.ge),
    ast.In: _within,
    ast.NotIn: lambda item, group: not _within(item, group),
}


def _round(number: float, digits: int = 0) -> float:
    if not isinstance(digits, int) or abs(digits) > DIGITS:  # Python would compute 10**digits
        raise TypeError(f"digits are whole numbers up to {DIGITS}")
    return round(number, digits) if digits else round(number)


FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "abs": _of_numbers(abs),
    "min": _of_numbers(min),
    "max": _of_numbers(max),
    "round": _of_numbers(_round),
    "like": _like,
}


def _parts(node: ast.AST, depth: int) -> Iterator[tuple[int, ast.AST]]:
    """The tree's parts and how deep they lie; what is too deep is not looked into."""
    yield depth, node
    if depth <= DEEPEST:
        for child in ast.iter_child_nodes(node):
            yield from _parts(child, depth + 1)


def _name(node: ast.AST) -> str:
    """The name that a part asks for; "" for other parts, and for the first half of a name in two."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(ast.Name(group), name):
            return f"{group}.{name}"
    return ""


def _understand(node: ast.AST) -> None:
    match node:
        case ast.Constant(value) if value is None or isinstance(value, bool | int | float | str):
            _bounded(value)
        case ast.BinOp(_, operation, _) if type(operation) in OPERATORS:
            pass
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.UAdd(), _):
            pass
        case ast.Compare(_, comparisons) if all(type(one) in OPERATORS for one in comparisons):
            pass
        case ast.Call(ast.Name(name), arguments, []) if name in FUNCTIONS and not _starred(arguments):
            pass
        case ast.List(elements) | ast.Tuple(elements) if not _starred(elements):
            pass
        case ast.Attribute(ast.Name(), name) if not name.startswith("_"):
            pass
        case ast.Name(name) if not name.startswith("_"):
            pass
        case ast.BoolOp() | ast.IfExp() | ast.expr_context() | ast.boolop() | ast.operator():
            pass
        case ast.unaryop() | ast.cmpop():
            pass
        case _:
            shown = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise ExpressionError(f"{shown[:60]} is not understood in an expression")


def _starred(parts: list[ast.expr]) -> bool:
    return any(isinstance(part, ast.Starred) for part in parts)


def _compute(node: ast.AST, values: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value):
            return _bounded(value)
        case ast.Name() | ast.Attribute():
            name = _name(node)
            if values.get(name) is None:
                raise UnknownError(name)
            return values[name]
        case ast.List(elements) | ast.Tuple(elements):
            return [_compute(element, values) for element in elements]
        case ast.BinOp(left, operation, right):
            return OPERATORS[type(operation)](_compute(left, values), _compute(right, values))
        case ast.UnaryOp(ast.Not(), operand):
            return not _compute(operand, values)
        case ast.UnaryOp(sign, operand):
            return OPERATORS[ast.Sub if isinstance(sign, ast.USub) else ast.Add](0, _compute(operand, values))
        case ast.BoolOp(junction, operands):
            result: Value = None
            for operand in operands:
                result = _compute(operand, values)
                if bool(result) is isinstance(junction, ast.Or):
                    break
            return result
        case ast.Compare(left, comparisons, others):
            here = _compute(left, values)
            for comparison, other in zip(comparisons, others, strict=True):
                there = _compute(other, values)
                if not OPERATORS[type(comparison)](here, there):
                    return False
                here = there
            return True
        case ast.IfExp(test, body, otherwise):
            return _compute(body if _compute(test, values) else otherwise, values)
        case ast.Call(ast.Name(name), arguments):
            return FUNCTIONS[name](*(_compute(argument, values) for argument in arguments))
    raise AssertionError(f"{type(node).__name__} was understood, and can't be computed")


def expression_of(value: JsonValue) -> str | None:
    """The text of a parameter that is computed on each occasion: `{"expression": "frames // 2"}`."""
    if isinstance(value, dict) and value.keys() == {"expression"} and isinstance(value["expression"], str):
        return value["expression"]
    return None
