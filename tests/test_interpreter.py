"""Fresh interpreters for functions of this package."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from idefics_cli.interpreter import start_interpreter


def tell(descriptor: int, words: str, nothing: None) -> None:
    """Write what is here to a descriptor."""
    facts = {
        "words": words,
        "nothing": nothing,
        "variable": os.environ["IDEFICS_CLI_TEST"],
        "home": os.environ.get("PATH"),
        "path": sys.path,
        "leads": os.getsid(0) == os.getpid(),
        "main": getattr(sys.modules["__main__"], "__file__", None),
        "pytest": "pytest" in sys.modules,
        "stdin": sys.stdin.read(),
    }
    os.write(descriptor, json.dumps(facts).encode())


def test_a_function_runs_with_its_arguments_and_nothing_else_of_the_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = start_interpreter(tell, (write, 'it\'s "quoted" \n\\', None), [write], {"IDEFICS_CLI_TEST": "7"})
    os.close(write)
    with os.fdopen(read) as stream:
        facts = json.loads(stream.read())
    assert process.wait(30) == 0
    assert facts == {
        "words": 'it\'s "quoted" \n\\',
        "nothing": None,
        "variable": "7",
        "home": os.environ.get("PATH"),
        "path": sys.path,
        "leads": True,
        "main": None,
        "pytest": False,
        "stdin": "",
    }
