"""`python -m tilestream`, and the script `tilestream`."""

import atexit
import os
import sys

from tilestream.cli import main


def leave() -> None:
    """Run the command line and end the process with its exit code.

    The script finds `module:factory` in the folder it is called from, as `python -m` does.

    Where an object store was reached, the interpreter is not taken down part by part: a thread of the store's library that answers meanwhile would
    abort the process, as one command in ten ended, whatever its exit code.
    """
    if not sys.flags.safe_path and "" not in sys.path and (here := os.path.realpath(os.curdir)) not in sys.path:
        sys.path.append(here)
    try:
        main()
    except SystemExit as ended:
        if "obstore" not in sys.modules or not isinstance(ended.code, int):
            raise
        atexit._run_exitfuncs()  # noqa: SLF001
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code)


if __name__ == "__main__":
    leave()
