"""`python -m tilestream`, and the script `tilestream`."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tilestream.config.local_files import user_cache
from tilestream.errors import InterruptedRunError
from tilestream.stages.clock import process_began
from tilestream.tiles.decoding.signals import stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from tilestream.cli.streams import Stream


def keep_bytecode() -> None:
    """Have Python keep compiled modules in the user's cache, where it may write none beside their sources and torch's are not there.

    Images of containers are often made so (`PYTHONDONTWRITEBYTECODE`, or folders of another user): each start would compile 2,000 modules anew,
    which takes 4 s. Processes that are started from this one do the same. Without effect where `PYTHONPYCACHEPREFIX` is set, and where the cache
    cannot be written to: modules that have been compiled elsewhere would be compiled anew each time.
    """
    torch = find_spec("torch")
    if sys.pycache_prefix is not None or torch is None or torch.cached is None or Path(torch.cached).exists():
        return
    if not (sys.dont_write_bytecode or not os.access(Path(torch.cached).parents[1], os.W_OK)):
        return
    try:
        folder = user_cache("bytecode")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def leave() -> None:
    """Run the command line and end the process with its exit code.

    The script finds `module:factory` in the folder it is called from, as `python -m` does.

    Libraries make many objects that stay; left as it is, the garbage collector goes through them again and again while they are imported, 0.1 s in all.
    """
    _hear(_end_unbegun)
    if not sys.flags.safe_path and "" not in sys.path and (here := os.path.realpath(os.curdir)) not in sys.path:
        sys.path.append(here)
    keep_bytecode()
    from tilestream.cli import main
    from tilestream.cli.interrupts import raise_again
    from tilestream.cli.streams import keep_streams

    out, _ = keep_streams()
    sys.unraisablehook = raise_again
    gc.set_threshold(50_000, 20, 50)
    try:
        main(began=process_began())
    except SystemExit as ended:
        if "cProfile" in sys.modules or sys.gettrace() is not None or not isinstance(ended.code, int):
            raise
        code = ended.code
    except KeyboardInterrupt:  # as the command was ending anyway
        code = InterruptedRunError.exit_code
    _end(code, out)


def _end(code: int, out: Stream) -> NoReturn:
    """End the process. Signals that come meanwhile end it at once, with the same code: what the command did is done.

    The interpreter is not taken down part by part: that takes 0.3 s once torch was imported, and a thread of an object store's library that answers
    meanwhile would abort the process, as one command in ten ended, whatever its exit code. Where somebody profiles or traces it, it is.
    """
    _hear(lambda *_: os._exit(code))
    sys.stdout.flush()
    if out.lost is not None:
        print(f"tilestream: stdout cannot be written: {out.lost.strerror}. Make room, then run the same command again.", file=sys.stderr)
        code = code or InterruptedRunError.exit_code
    atexit._run_exitfuncs()  # noqa: SLF001
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _hear(handler: Callable[[int, Any], object]) -> None:
    for number in stopping():
        signal.signal(number, handler)


def _end_unbegun(_number: int, _frame: Any) -> NoReturn:
    """Before anything was done, and while libraries are imported, which is no place for an exception."""
    with contextlib.suppress(OSError):
        os.write(2, b"tilestream: interrupted.\n")
    os._exit(InterruptedRunError.exit_code)


if __name__ == "__main__":
    leave()
