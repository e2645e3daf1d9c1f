"""The command, but the process dies at the Nth step of a commit: `python -m tests.support.dying run CONFIG`, N from TILESTREAM_TEST_DIE_AT."""

import itertools
import os
import signal
import sys

from tilestream.cli import main
from tilestream.store.folder import Folder

steps = itertools.count(1)


def dying(step):
    """The same method, except that the process dies before its Nth call."""

    def count(self, *arguments):
        if next(steps) == int(os.environ["TILESTREAM_TEST_DIE_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments)

    return count


if __name__ == "__main__":
    for name in ("put", "flush", "flush_all", "delete", "delete_all"):
        setattr(Folder, name, dying(getattr(Folder, name)))
    main(sys.argv[1:])
