"""A web server of a folder behind a line: it waits before each answer, paces all answers together, and takes little of the cores that it shares with who asks.

    python -m benchmarks.line_server FOLDER LATENCY RATE

It says its port; `/counts` tells what was asked of it since that was asked last. Latency in seconds, rate in bytes a second. One thread: a loop over events,
and `sendfile`. When a part of an answer comes is reckoned, not slept for: a loop that wakes late sends the parts that are due at once, and the line loses nothing.
"""

import heapq
import json
import os
import re
import select
import socket
import stat
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

PART = 128 * 1024
"""Bytes of an answer that have the line to themselves."""

SEND_BUFFER = 4 * 1024**2
"""Bytes that lie in the kernel for a client that does not read them yet, as they would lie on their way."""

RANGE = re.compile(r"^range: *bytes=(\d*)-(\d*)\r?$", re.MULTILINE | re.IGNORECASE)
MATCH = re.compile(r"^if-match: *(\S+)\r?$", re.MULTILINE | re.IGNORECASE)


@dataclass(eq=False)
class Client:
    """A connection, and the answer that it is being given."""

    socket: socket.socket
    asked: bytearray = field(default_factory=bytearray)
    """What came and was not answered."""
    busy: bool = False
    file: int = -1
    at: int = 0
    left: int = 0
    """Bytes of the answer that did not have the line yet."""
    unsent: int = 0
    """Bytes that had it and that the kernel did not take yet."""
    ready: float = 0.0
    """When the next part is ready for the line."""


class LineServer:
    """Serves the files of a folder, `latency` seconds behind each request, at `rate` bytes a second for all."""

    def __init__(self, folder: Path, latency: float, rate: float) -> None:
        self.folder, self.latency, self.rate = folder, latency, rate
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listening.setblocking(False)
        self.events = select.epoll()
        self.events.register(self.listening, select.EPOLLIN)
        self.clients: dict[int, Client] = {}
        self.waiting: list[tuple[float, int, Client, str]] = []
        """Requests whose latency runs: when it ends, and in which order they came."""
        self.line: deque[Client] = deque()
        """Who has parts to send, one after the other."""
        self.free_at = 0.0
        """When the line has sent what was given to it."""
        self.number = 0
        self.forget()

    def forget(self) -> None:
        """Count from nothing."""
        self.requests = self.bytes = self.now = self.most = 0

    def serve(self) -> None:
        """Answer until the process ends."""
        while True:
            for number, event in self.events.poll(self._pause()):
                if number == self.listening.fileno():
                    self._accept()
                    continue
                client = self.clients[number]
                if event & ~select.EPOLLOUT:
                    self._hear(client)
                if event & select.EPOLLOUT and client.unsent:
                    client.ready = max(client.ready, time.monotonic())
                    self._send(client)
            self._pass_time()

    def _pause(self) -> float | None:
        """Seconds until something is due; None where nothing is."""
        due = [self.waiting[0][0]] if self.waiting else []
        if self.line:
            due.append(self._sent_at(self.line[0]))
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _sent_at(self, client: Client) -> float:
        """When the next part of an answer has passed the line."""
        return max(self.free_at, client.ready) + min(PART, client.left) / self.rate

    def _pass_time(self) -> None:
        """Do what is due by now: answers begin, parts leave the line."""
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            due, _, client, words = heapq.heappop(self.waiting)
            client.ready = due
            self._begin(client, words)
        while self.line and (sent := self._sent_at(self.line[0])) <= now:
            client = self.line.popleft()
            self.free_at = client.ready = sent
            count = min(PART, client.left)
            client.left -= count
            client.unsent += count
            self._send(client)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                connection, _ = self.listening.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.clients[connection.fileno()] = Client(connection)
            self.events.register(connection, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _hear(self, client: Client) -> None:
        """Take what a client says; a request starts its latency."""
        try:
            while data := client.socket.recv(65536):
                client.asked += data
        except BlockingIOError:
            self._next(client)
            return
        except OSError:
            pass
        self._drop(client)

    def _next(self, client: Client) -> None:
        """Take the next request of a client that waits for no answer."""
        end = client.asked.find(b"\r\n\r\n")
        if client.busy or end < 0:
            return
        words = client.asked[: end + 2].decode("latin-1")
        del client.asked[: end + 4]
        client.busy = True
        if words.startswith("GET /counts "):
            told = json.dumps({"requests": self.requests, "bytes": self.bytes, "at_once": self.most})
            self.forget()
            self._say(client, "200 OK", f"Content-Length: {len(told)}\r\n", told)
            client.busy = False
            return
        self.now += 1
        self.most = max(self.most, self.now)
        self.number += 1
        heapq.heappush(self.waiting, (time.monotonic() + self.latency, self.number, client, words))

    def _begin(self, client: Client, words: str) -> None:
        """Say the head of an answer; its body waits for the line."""
        if client.socket.fileno() < 0:
            return
        method, path, _ = words.split(" ", 2)
        try:
            file = os.open(self.folder / unquote(path.partition("?")[0]).lstrip("/"), os.O_RDONLY)
        except OSError:
            self._end(client, "404 Not Found")
            return
        about = os.fstat(file)
        etag, size = f'"{about.st_mtime_ns:x}-{about.st_size:x}"', about.st_size
        match, wanted = MATCH.search(words), RANGE.search(words)
        first, end = _bounds(wanted, size)
        is_file = stat.S_ISREG(about.st_mode)
        if not is_file or (match and match[1] != etag) or first >= end:
            os.close(file)
            self._end(
                client,
                "404 Not Found"
                if not is_file
                else "412 Precondition Failed"
                if match and match[1] != etag
                else "416 Range Not Satisfiable",
            )
            return
        told = f"ETag: {etag}\r\nContent-Length: {end - first}\r\n"
        if wanted:
            told += f"Content-Range: bytes {first}-{end - 1}/{size}\r\n"
        status = "206 Partial Content" if wanted else "200 OK"
        if method != "GET":
            os.close(file)
            self._end(client, status, told)
            return
        self._say(client, status, told)
        self.requests += 1
        self.bytes += end - first
        client.file, client.at, client.left = file, first, end - first
        self.line.append(client)

    def _send(self, client: Client) -> None:
        """Give the kernel what had the line; then the next part waits for it."""
        try:
            while client.unsent:
                count = os.sendfile(client.socket.fileno(), client.file, client.at, client.unsent)
                client.at += count
                client.unsent -= count
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if client.left:
            self.line.append(client)
            return
        os.close(client.file)
        client.file = -1
        self._done(client)

    def _end(self, client: Client, status: str, told: str = "Content-Length: 0\r\n") -> None:
        """An answer without a body."""
        self._say(client, status, told)
        self._done(client)

    def _done(self, client: Client) -> None:
        self.now -= 1
        client.busy = False
        self._next(client)

    def _say(self, client: Client, status: str, told: str, body: str = "") -> None:
        with suppress(OSError):  # a client that is gone is noticed where it is heard
            client.socket.send(f"HTTP/1.1 {status}\r\n{told}\r\n{body}".encode())

    def _drop(self, client: Client) -> None:
        """Forget a client that is gone, with its answer."""
        del self.clients[client.socket.fileno()]
        client.socket.close()
        if client.file >= 0:
            os.close(client.file)
            client.file = -1
        with suppress(ValueError):
            self.line.remove(client)
        self.now -= client.busy


def _bounds(wanted: re.Match[str] | None, size: int) -> tuple[int, int]:
    """First byte, and the one behind the last, of what is wanted of an object."""
    if wanted is None:
        return 0, size
    if not wanted[1]:
        return max(0, size - int(wanted[2])), size
    return int(wanted[1]), min(size, int(wanted[2]) + 1) if wanted[2] else size


def main(arguments: list[str]) -> None:
    """Serve a folder."""
    server = LineServer(Path(arguments[0]), float(arguments[1]), float(arguments[2]))
    print(server.listening.getsockname()[1], flush=True)
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
