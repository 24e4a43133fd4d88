"""What a notebook's text says of itself, and which names and values of a job get into it."""

from __future__ import annotations

import json
import keyword
import math
import shlex
from typing import Any

import nbformat
import pytest
import yaml
from beamhub import run
from beamhub.failures import DISK_FULL, MEMORY, last_words, sentence
from beamhub.notebooks import Notebook, assignments, declared, metrics, misfit, parse
from beamhub.schemas import JobSpec, SpecInput
from hypothesis import example, given, settings
from hypothesis import strategies as st
from papermill.cli import _resolve_type
from papermill.parameterize import parameterize_notebook


def notebook(source: str, *cells: Any, **metadata: Any) -> bytes:
    v4: Any = nbformat.v4
    parameters = v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    return str(v4.writes(v4.new_notebook(cells=[parameters, *cells], metadata=metadata))).encode()


def spec(parameters: dict[str, Any], *inputs: SpecInput, cpus: int = 2) -> JobSpec:
    return JobSpec(
        id=1,
        experiment="e",
        template="t",
        template_version="v",
        parameters=parameters,
        inputs=list(inputs),
        cpus=cpus,
        memory=2**30,
        folder="/jobs/1",
    )


def test_literals_are_read_and_nothing_is_executed() -> None:
    found = assignments(
        "a = 1  # Å, how far\nb: float = 2\nc, d = 1, 2\ne = f = -1.5\n"
        "g = open('/etc/passwd')\nh = (1, 2)\ni = {'x': None}\nj += 1\nk = b'x'\nl = {1, 2}\nm: int\n"
    )
    assert [*found] == ["a", "b", "e", "f", "g", "h", "i", "k", "l", "m"]
    assert (found["a"].literal(), found["a"].comment) == (1, "Å, how far")
    assert (found["b"].literal(), found["b"].annotation) == (2, "float")
    assert [found[name].literal() for name in "efhi"] == [-1.5, -1.5, [1, 2], {"x": None}]
    for name in "gklm":
        with pytest.raises(ValueError):
            found[name].literal()


@pytest.mark.parametrize(
    "source",
    [
        *("a = ", "a = '", "\0", "a = 1\n  b = 2"),
        *(
            "(" * 10000,
            "a: " + "-" * 2500 + "1 = 2",
            "a = " + "not " * 7000 + "1",
            "a = [" + "1, " * 20000 + "]",
        ),
    ],
)
def test_what_is_no_python_is_said_to_be_none(source: str) -> None:
    with pytest.raises(ValueError):
        assignments(source)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(source: str) -> None:
    try:
        found = assignments(source)
    except ValueError:
        return
    for one in found.values():
        try:
            json.dumps(one.literal(), allow_nan=False)
        except ValueError:
            continue


def test_a_cell_is_about_the_heading_above_it() -> None:
    v4: Any = nbformat.v4
    content = notebook(
        "a = 1",
        v4.new_markdown_cell("text\n## Find spots ##\nmore"),
        v4.new_code_cell("find()"),
        v4.new_markdown_cell("only text"),
        v4.new_code_cell("look()"),
        kernelspec={"name": "ir", "display_name": "R", "language": "R"},
    )
    found = parse(content)
    assert [found.heading(index) for index in range(6)] == [
        "a = 1",
        "text",
        "Find spots",
        "Find spots",
        "Find spots",
        "Find spots",
    ]
    assert (found.title, found.language) == ("Find spots", "r")
    assert (Notebook({}, []).title, Notebook({}, []).language) == ("", "")


def test_reported_metrics_are_those_that_are_declared() -> None:
    content = notebook("a = 1", beamhub={"metrics": {"cell_a": {"unit": "Å"}, "spots": {}}})
    assert metrics(content) == {"cell_a": "Å", "spots": ""}
    for strange in ({}, {"beamhub": 7}, {"beamhub": {"metrics": [1]}}):
        assert metrics(notebook("a = 1", **strange)) == {}
    assert misfit(metrics(content), "cell_a", "Å") == ""
    assert "does not declare" in misfit(metrics(content), "cell_b", "Å")
    assert "in nm, and the template declares Å" in misfit(metrics(content), "cell_a", "nm")
    assert "in Å, and the template declares no unit" in misfit(metrics(content), "spots", "Å")
    assert misfit({}, "anything", "m") == ""


def test_a_job_is_given_what_its_notebook_asks_for() -> None:
    one = SpecInput(id=1, name="a", path="/d/a.h5")
    two = SpecInput(id=2, name="b", path="/d/b.h5")
    job = SpecInput(kind="job", id=3, name="DIALS", path="/p/3")
    file = SpecInput(kind="file", id=None, name="raw/x.txt", path="/d/x.txt")
    for source, inputs, wanted in (
        ("data = ''\ncpus = 1", [one], {"data": "/d/a.h5", "cpus": 2}),
        ("data = ''", [one], {"data": "/d/a.h5"}),
        ("datasets = []", [one, two], {"datasets": ["/d/a.h5", "/d/b.h5"]}),
        ("datasets = []", [one], {"datasets": ["/d/a.h5"]}),
        ("job = ''", [job], {"job": "/p/3"}),
        ("jobs = []", [job], {"jobs": ["/p/3"]}),
        ("file = ''", [file], {"file": "/d/x.txt"}),
        ("n = 1", [], {"n": 5}),
    ):
        parameters = {"n": 5} if "n = 1" in source else {}
        assert run.parameters(spec(parameters, *inputs), notebook(source)) == wanted


HOSTILE = [
    "x=__import__('os').system('id')#",
    "x\n__import__('os').abort()",
    "class",
    "__class__",
    "data",
    "cpus",
    "jobs",
    "",
    " n",
    "n ",
    "ｎ",  # which Python takes for n
    "n, m",
    "n.real",
    "n[0]",
    "print",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_the_notebook_does_not_set_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a parameter"):
        run.parameters(spec({name: 1}), notebook("data = ''\ncpus = 1\nn = 1"))


@settings(deadline=None)
@given(st.text() | st.sampled_from([*keyword.kwlist, *HOSTILE]))
def test_only_names_that_are_set_are_passed(name: str) -> None:
    content = notebook("n = 1\nmode = 'fast'\ncpus = 1")
    try:
        given = run.parameters(spec({name: 1}), content)
    except ValueError:
        assert name not in ("n", "mode")
    else:
        assert set(given) == {name, "cpus"}
        assert set(given) <= declared(content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(VALUES)
@example('"); import os; os.abort() #')
@example("\\")
@example('"""\\"\n\r\t\0\x1b{}{data}%s')
@example([1e-05, math.inf, -math.inf, 10**4000, -1, True, None])
@example({"\\'": {"__class__": ["'''", {"": float("nan")}]}})
@example("\u2028\u202e")
def test_what_is_executed_is_the_literal_that_was_given(value: Any) -> None:
    content = notebook("n = 1", kernelspec={"name": "python3", "display_name": "P", "language": "python"})
    given = run.parameters(spec({"n": value}), content)
    whole: Any = nbformat.reads(content.decode(), as_version=4)  # type: ignore[no-untyped-call]
    whole.metadata["papermill"] = {}
    for cell in whole.cells:
        cell.metadata.setdefault("tags", [])
    (cell,) = [
        cell
        for cell in parameterize_notebook(whole, given, kernel_name="python3", language=run.LANGUAGE).cells
        if "injected-parameters" in cell.metadata.tags
    ]
    namespace: dict[str, Any] = {}
    exec(cell.source, namespace)
    del namespace["__builtins__"]
    assert set(namespace) == {"n"}
    assert repr(namespace["n"]) == repr(value)


@settings(deadline=None, max_examples=300)
@given(VALUES)
def test_the_command_gives_the_same_values(value: Any) -> None:
    words = shlex.split(run._command({"n": value}, "python3"))
    option, *rest = words[words.index("--language") + 2 :]
    match option:
        case "-p":
            assert repr(_resolve_type(rest[1])) == repr(value)
        case "-r":
            assert rest == ["n", value]
        case "-y":
            assert repr(yaml.safe_load(rest[0])["n"]) == repr(value)
        case _:
            raise AssertionError(words)


@pytest.mark.parametrize(
    ("name", "text", "traceback", "meant"),
    [
        ("ProcessingError", "No spots found on 2 frames.", "", "No spots found on 2 frames."),
        ("MemoryError", "", "", MEMORY),
        ("_ArrayMemoryError", "Unable to allocate 8.00 TiB for an array", "", MEMORY),
        ("OSError", "[Errno 28] No space left on device", "", DISK_FULL),
        ("OSError", "[Errno 122] Disk quota exceeded: 'x'", "", DISK_FULL),
        (
            "FileNotFoundError",
            "[Errno 2] No such file or directory: 'xds'",
            "in _execute_child",
            "The program xds is not installed where the job ran: ask the facility for it.",
        ),
        (
            "FileNotFoundError",
            "[Errno 2] No such file or directory: 'x.h5'",
            "in open",
            "FileNotFoundError: [Errno 2] No such file or directory: 'x.h5'",
        ),
        (
            "ModuleNotFoundError",
            "No module named 'pyfai.ext'",
            "",
            "The Python package pyfai.ext is not installed where the job ran: ask the facility for it.",
        ),
        ("KeyError", "'a'", "", "KeyError: 'a'"),
        ("KeyboardInterrupt", "", "", "KeyboardInterrupt"),
    ],
)
def test_exceptions_are_said_in_a_sentence(name: str, text: str, traceback: str, meant: str) -> None:
    assert sentence(name, text, traceback) == meant


def test_last_words_tell_of_a_full_disk_or_of_memory() -> None:
    assert last_words("a\nOSError: [Errno 28] No space left on device: 'result.json.part'") == DISK_FULL
    assert last_words("terminate called after throwing an instance of 'std::bad_alloc'") == MEMORY
    assert last_words("all is well") == ""
