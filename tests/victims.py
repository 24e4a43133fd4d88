"""Scripts that kill themselves at a step they are told, each time in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Imports what the script needs, and forks for each line of arguments.
_INTERPRETER = """
import json, os, sys

imports, script, folder = json.loads(sys.stdin.readline())
code = compile(script, "victim", "exec")
exec(imports)
for number, line in enumerate(sys.stdin):
    told = f"{folder}/told-{number}"
    child = os.fork()
    if child == 0:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT), 1)
        sys.argv[1:] = json.loads(line)
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), told]), flush=True)
"""


class Victims:
    """An interpreter that has imported what a script needs: the processes that run the script are its forks,
    as starting an interpreter would take far longer than what they do.

    Args:
        script: its first paragraph imports; arguments are in `sys.argv`.
        folder: for what it prints.
    """

    def __init__(self, script: str, folder: Path) -> None:
        imports, _, rest = script.strip().partition("\n\n")
        self._interpreter = subprocess.Popen(
            [sys.executable, "-c", _INTERPRETER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say([imports, rest, str(folder)])

    def run(self, *arguments: object) -> tuple[int, str]:
        """The exit code, -9 if it has killed itself, and what it has printed."""
        self._say([str(argument) for argument in arguments])
        assert self._interpreter.stdout
        code, told = json.loads(self._interpreter.stdout.readline())
        return code, Path(told).read_text()

    def _say(self, what: list[str]) -> None:
        assert self._interpreter.stdin
        print(json.dumps(what), file=self._interpreter.stdin, flush=True)

    def end(self) -> None:
        self._interpreter.communicate()


@contextmanager
def victims(script: str, folder: Path) -> Iterator[Victims]:
    found = Victims(script, folder)
    try:
        yield found
    finally:
        found.end()
