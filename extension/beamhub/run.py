"""One job, on whatever node it was started: `python -m beamhub.run FOLDER`.

Reads `job.json`, runs `template.ipynb` with papermill into `notebook.ipynb` (written as it goes), keeps what
the cells print in `log.txt`, and at the very end writes `result.json`, atomically. It knows nothing of the
service or its
database: whoever started it watches the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.util
import json
import logging
import math
import os
import platform
import re
import resource
import shlex
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from beamhub import failures, notebooks
from beamhub.schemas import Artifact, JobResult, JobSpec, Quantity
from beamhub.software import versions
from beamhub.text import one_line

if TYPE_CHECKING:
    from beamhub.kernel import Kernel

# Importing jsonschema (papermill does, by way of nbformat) builds a grammar for the "iri" format with this
# package, for 1.5 s. Notebooks have no such fields, and jsonschema does without the package where it is
# missing.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

LANGUAGE = "python"
GO = b"go\n"  # the word
RESERVE = Path(".reserve")  # whose time tells that the job is alive
BEAT = 10.0  # seconds between two signs of life
ROOM = 64 * 1024  # bytes: more than a result without metrics has
MINORS = (4, 5)  # of nbformat 4: without and with ids of cells
READY = ".ready"  # a file that tells that only the word is missing
ENGINE = ("papermill", "ipykernel.kernelapp", "ipykernel.zmqshell", "beamhub.kernel", "beamhub.report")
PRELOADED = ("beamhub_notebooks.warm", "matplotlib_inline.backend_inline")  # as far as it is installed
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def main(folder: Path, *, held: bool = False, warm: bool = False) -> int:
    """Run the job in `folder` to its end. Returns the exit code: 0 finished, 1 failed.

    Args:
        held: wait for the word on standard input before the folder is looked at. Without it, nothing is run.
        warm: import beforehand what notebooks usually need. Makes sense only if there is time for it.
    """
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if Path(path) != folder]  # python -m puts it there
    own = _own_folder()
    _get_ready(own, warm=warm)
    from beamhub.kernel import Kernel

    kernel = Kernel(own)
    try:
        if warm:
            Path(READY).touch()
        if held and os.read(0, len(GO)) != GO:
            return 1
        return _work(kernel)
    finally:
        kernel.end()
        shutil.rmtree(own, ignore_errors=True)


def _own_folder() -> Path:
    """A folder for what nobody else is to see. Without a sandbox it is in the job's own folder, and named
    from there: the path of a socket has 107 bytes."""
    own = Path(tempfile.mkdtemp(prefix="beamhub-")).resolve()
    return own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own


def _work(kernel: Kernel) -> int:
    spec = JobSpec.model_validate_json(Path("job.json").read_bytes())
    template = Path("template.ipynb").read_bytes()
    environment = _environment(spec)
    os.environ.update(environment)
    # memory of each process, as a first line: the runner watches what they use together
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_DATA: spec.memory}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    kernel.settle(environment, limits)
    _reserve()
    over = threading.Event()
    threading.Thread(target=_live, args=(over,), daemon=True).start()
    try:
        with Path("log.txt").open("a", encoding="utf-8", errors="replace", buffering=1) as log:
            outcome = _run(spec, template, kernel, log)
            reported = _reported(notebooks.metrics(template), log)
        result = outcome.model_copy(update=reported)
        _write(result, Path("result.json.part"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        result = _failed(failures.DISK_FULL, None)
        _write(result, RESERVE)
    finally:
        over.set()
    RESERVE.unlink(missing_ok=True)
    return 0 if result.outcome == "finished" else 1


def _reserve() -> None:
    """Keeps room for a word about the end, should the disk be full by then."""
    with RESERVE.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, ROOM)


def _live(over: threading.Event) -> None:
    """Gives signs of life, for those who can't see this process."""
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):  # the storage is away for a while
            os.utime(RESERVE)


def _write(result: JobResult, temporary: Path) -> None:
    """Publishes the result, by way of a file beside it; read-only, so that nothing changes it any more."""
    content = result.model_dump_json().encode()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    temporary.rename("result.json")


def _get_ready(own: Path, *, warm: bool) -> None:
    """All that can be done before it is known what is to be run."""
    os.environ |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JUPYTER_RUNTIME_DIR": str(own.absolute()),
    }
    # numba and matplotlib only use caches that they may write to: the shared ones are read-only, so each job
    # works on a copy
    if shared := os.environ.get("BEAMHUB_WARM"):
        warmed = own.absolute() / "warm"
        shutil.copytree(shared, warmed)
        os.environ |= {"NUMBA_CACHE_DIR": str(warmed / "numba"), "MPLCONFIGDIR": str(warmed / "matplotlib")}
    for name in (*ENGINE, *(PRELOADED if warm else ())):
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    versions()
    if warm:
        _compile_schemas()


def _compile_schemas() -> None:
    """Has nbformat compile what it checks notebooks with, for the versions of the format that are in use."""
    import nbformat

    for minor in MINORS:
        nbformat.validate(nbformat.v4.new_notebook(nbformat_minor=minor))  # type: ignore[no-untyped-call]


def _environment(spec: JobSpec) -> dict[str, str]:
    """What the kernel and the programs that it starts learn of the job."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    cpus = dict.fromkeys(("BEAMHUB_CPUS", *threads), str(spec.cpus))
    return {"BEAMHUB_JOB_FOLDER": str(Path.cwd()), **cpus}


def parameters(spec: JobSpec, template: bytes) -> dict[str, Any]:
    """What papermill injects: the parameters, the number of CPUs, and the paths of what the job works on. It
    executes the names as code, so none goes there that the notebook's parameters cell does not set itself."""
    known = notebooks.declared(template)
    for name in spec.parameters:
        if name not in known or name in notebooks.RESERVED:
            raise ValueError(f"{name!r} is not a parameter of this notebook")
    given: dict[str, Any] = {**spec.parameters, notebooks.CPUS: spec.cpus}
    for name, (kind, several) in notebooks.INPUTS.items():
        paths = [one.path for one in spec.inputs if one.kind == kind]
        if several or paths:
            given[name] = paths if several else paths[0]
    return {name: value for name, value in given.items() if name in known}


def _run(spec: JobSpec, template: bytes, kernel: Kernel, log: TextIOWrapper) -> JobResult:
    try:
        given = parameters(spec, template)
    except ValueError as error:
        log.write(traceback.format_exc())
        return _failed(f"The parameters are wrong: {_one_line(str(error))}.", None)
    name = notebooks.parse(template).kernel
    return _execute(given, name, kernel, log).model_copy(update={"command": _command(given, name)})


def _execute(given: Mapping[str, Any], name: str, kernel: Kernel, log: TextIOWrapper) -> JobResult:
    import papermill
    from nbclient.exceptions import DeadKernelError

    # It reads parameters cells with a regular expression, to which "x: float | None = None" sets nothing, and
    # then calls x unknown; what the cell sets has been read already (beamhub.notebooks).
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        # relative names, because papermill takes {} in paths for its own
        papermill.execute_notebook(
            "template.ipynb",
            "notebook.ipynb",
            parameters=dict(given),
            kernel_name=name,
            language=LANGUAGE,
            progress_bar=False,
            stdout_file=log,
            stderr_file=log,
            autosave_cell_every=5,
            **_kernel_for(name, kernel),
        )
    except papermill.PapermillExecutionError as error:
        log.write(_ANSI.sub("", "\n".join(error.traceback)) + "\n")
        what = failures.sentence(
            error.ename, _ANSI.sub("", error.evalue), _ANSI.sub("", "\n".join(error.traceback))
        )
        cell, prompt = _failed_cell()
        where = f" (in cell [{prompt}])" if prompt is not None else ""
        return _failed(f"{_one_line(what)}{where}", cell)
    except DeadKernelError:
        return _failed(
            "The notebook's Python process died, most often out of memory: choose a profile with more.",
            _failed_cell()[0],
        )
    except Exception as error:  # whatever it was, the job ends with a sentence about it
        log.write(traceback.format_exc())
        what = failures.sentence(type(error).__name__, str(error))
        return _failed(f"The notebook could not be run: {_one_line(what)}", None)
    return JobResult(outcome="finished", software=versions(), host=platform.node())


def _kernel_for(name: str, kernel: Kernel) -> dict[str, Any]:
    """What papermill's engine is told of kernels: to use this one, if the notebook does not want another."""
    from traitlets.config import Config

    from beamhub.kernel import NAME, START, transport

    if name == NAME:
        return {"km": kernel.manager}
    return {"config": Config(transport(kernel.folder, name)), "start_timeout": int(START)}


def _failed(reason: str, cell: int | None) -> JobResult:
    return JobResult(
        outcome="failed", reason=reason[:2000], cell=cell, software=versions(), host=platform.node()
    )


def _one_line(text: str) -> str:
    return one_line(_ANSI.sub("", text), 1800)


def _failed_cell() -> tuple[int | None, int | None]:
    """Which cell of `notebook.ipynb` stopped the run: its index, and the number that Jupyter shows at it."""
    stopped: tuple[int | None, int | None] = None, None
    for index, cell in enumerate(json.loads(Path("notebook.ipynb").read_bytes())["cells"]):
        run = cell["metadata"].get("papermill", {})
        if cell["cell_type"] == "code" and run.get("start_time"):
            stopped = index, cell["execution_count"]
            if run["status"] == "failed":
                break
    return stopped


def _reported(declared: Mapping[str, str], log: TextIOWrapper) -> dict[str, Any]:
    """Metrics, artifacts and programs that the notebook reported; the last word on each counts. A metric that
    does not fit what the template declares is left out, which the log says."""
    metrics: dict[str, Quantity] = {}
    artifacts: dict[str, Artifact] = {}
    software: dict[str, str] = versions()
    complaints: dict[str, str] = {}
    report = Path("report.jsonl")
    for line in report.read_text("utf-8").splitlines() if report.exists() else []:
        told = json.loads(line)
        match told["what"]:
            case "metric":
                name, quantity = told["name"], Quantity(value=told["value"], unit=told["unit"])
                if complaint := notebooks.misfit(declared, name, quantity.unit):
                    complaints[name] = complaint
                else:
                    metrics[name] = quantity
            case "artifact":
                artifacts[told["path"]] = Artifact(
                    path=told["path"], title=told["title"], kind=told["artifact"]
                )
            case "software":
                software[told["name"]] = told["version"]
    for complaint in complaints.values():
        log.write(f"{complaint}\n")
    return {"metrics": metrics, "artifacts": list(artifacts.values()), "software": software}


def _command(given: Mapping[str, Any], kernel: str) -> str:
    """The same run, by hand, in a folder with the template."""
    words = ["papermill", "template.ipynb", "notebook.ipynb", "-k", kernel, "--language", LANGUAGE]
    for name, value in given.items():
        if isinstance(value, str):
            words += ["-r", name, value]
        elif value is None or isinstance(value, bool | int | float):
            words += ["-p", name, repr(value)]
        else:  # YAML, because it reads a JSON number like 1e-05 as text
            line = yaml.safe_dump(
                {name: value},
                default_flow_style=True,
                width=math.inf,
                sort_keys=False,
            )
            words += ["-y", line.strip()]
    return shlex.join(words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m beamhub.run", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held", action="store_true", help="wait for the word on standard input")
    parser.add_argument("--warm", action="store_true", help="import beforehand what notebooks usually need")
    options = parser.parse_args()
    code = main(options.folder, held=options.held, warm=options.warm)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all the modules apart takes longer than what a short job does
