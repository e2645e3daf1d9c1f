"""A command on a terminal of its own: a pseudo-terminal of a given width, and what a person sees on it."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """What stands on a terminal of `width` columns, by as much of its language as is written to it here."""

    def __init__(self, width):
        self.width, self.lines, self.row, self.col = width, [""], 0, 0

    def feed(self, text):
        at = 0
        while at < len(text):
            found = CONTROL.match(text, at)
            if found:
                self._control(found[1], found[2])
                at = found.end()
                continue
            self._put(text[at])
            at += 1

    def _put(self, letter):
        if letter == "\r":
            self.col = 0
        elif letter == "\n":
            self.row, self.col = self.row + 1, 0
        elif letter >= " ":
            if self.col == self.width:
                self.row, self.col = self.row + 1, 0
            self._grow()
            line = self.lines[self.row].ljust(self.col)
            self.lines[self.row] = line[: self.col] + letter + line[self.col + 1 :]
            self.col += 1
        self._grow()

    def _grow(self):
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def _control(self, numbers, kind):
        if kind == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif kind == "K":
            self.lines[self.row] = "" if numbers == "2" else self.lines[self.row][: self.col]

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.lines).rstrip()


class Terminal:
    """A command at work on a terminal."""

    def __init__(self, arguments, width, folder):
        self.screen, self.master = Screen(width), None
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")} | {
            "TERM": "xterm",
            "PYTHONPATH": str(ROOT),
        }
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tilestream", *arguments], stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment,
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # noqa: PLW1509  # Ctrl-C needs a terminal that controls
        )  # fmt: skip
        os.close(slave)

    def wait_for(self, pattern, seconds=120):
        """Read until the screen shows a pattern; the match."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.screen.text)) is None:
            assert time.monotonic() < deadline, self.screen.text
            assert self._read(), f"{pattern} never came:\n{self.screen.text}"
        return found

    def type(self, keys):
        os.write(self.master, keys)

    def end(self):
        """Read all that is left; what stands there at the end, and the exit code."""
        while self._read():
            pass
        os.close(self.master)
        return self.screen.text, self.process.wait(60)

    def _read(self):
        """Feed the screen with what comes next; whether more may come."""
        select.select([self.master], [], [], 60)
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            return False
        self.screen.feed(self._decode(data))
        return bool(data)
