"""Starts functions of this package in fresh interpreters: what does not survive a fork is not there to begin with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence


def start_interpreter(
    main: Callable[..., None], arguments: Sequence[object], descriptors: Sequence[int], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start an interpreter that runs a function and imports nothing but its module; not the script that was started.

    It leads a process group and a session of its own: Ctrl-C goes to the whole foreground group, and the parent decides
    what it means. Its stdin and stdout are empty; stderr is the parent's.

    Args:
        main: a function of a module.
        arguments: numbers, strings and None.
        descriptors: stay open there, under their numbers.
        environment: variables beside, or in the place of, the parent's; set before anything is imported.

    Raises:
        OSError: no room for another process.

    """
    call = f"main({', '.join(map(repr, arguments))})"
    start = f"from {main.__module__} import {main.__name__} as main; {call}"
    return subprocess.Popen(  # noqa: S603 - this interpreter and a function of ours
        [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}; {start}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=tuple(descriptors),
        start_new_session=True,
        env={**os.environ, **environment},
    )
