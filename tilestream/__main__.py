"""`python -m tilestream`, and the script `tilestream`."""

import atexit
import os
import sys

from tilestream.cli import main


def leave() -> None:
    """Run the command line and end the process with its exit code.

    Where an object store was reached, the interpreter is not taken down part by part: a thread of the store's library that answers meanwhile would
    abort the process, as one command in ten ended, whatever its exit code.
    """
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
