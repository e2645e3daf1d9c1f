"""A small web server that gives parts of files, counts what is asked of it, and fails as it is told to."""

import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from tests.support.quiet_server import QuietHandler, QuietServer, in_thread

CHUNK = 1 << 18


class RangeServer(QuietServer):
    """Serves the files of a folder. `asked` holds (path, first byte, bytes) of each GET that was answered with data."""

    request_queue_size = 64

    def __init__(self, folder, latency=0.0):
        super().__init__(_Handler)
        self.folder, self.latency = Path(folder), latency
        """Seconds before each answer."""
        self.lock = threading.Lock()
        self.pace = lambda count: None
        """Told how many bytes come, before each part of an answer."""
        self.fault = lambda number, path: ""
        """Given the number of a GET and its path, how it fails: 500, cut, wrong_range, no_range, no_etag, gone, denied, weak; "" not at all."""
        self.stopped = False
        self.forget()

    def forget(self):
        self.asked, self.requests = [], 0

    @property
    def bytes_sent(self):
        return sum(count for _, _, count in self.asked)


@contextmanager
def serving(folder, latency=0.0):
    server = RangeServer(folder, latency)
    with in_thread(server):
        try:
            yield server
        finally:
            server.stopped = True


class _Handler(QuietHandler):
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        server = self.server
        if server.stopped:  # a connection from before
            self.close_connection = True
            return
        path = self.path.partition("?")[0].lstrip("/").replace("%20", " ")
        with server.lock:
            number, server.requests = server.requests, server.requests + 1
        self.give(server, path, server.fault(number, path) if body else "", body=body)

    def give(self, server, path, fault, *, body):
        if server.latency:
            time.sleep(server.latency)
        file = server.folder / path
        if not file.is_file() or fault in ("gone", "denied", "500"):
            self.refuse({"500": 500, "denied": 403}.get(fault, 404))
            return
        about = file.stat()
        etag = f'"{about.st_mtime_ns:x}-{about.st_size:x}"'
        if (match := self.headers.get("If-Match")) and match != etag:
            self.refuse(412)
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        first, end = 0, about.st_size
        if wanted and fault != "no_range":
            first = int(wanted[1]) if wanted[1] else max(0, end - int(wanted[2]))
            end = min(end, int(wanted[2]) + 1) if wanted[1] and wanted[2] else end
            if first >= end:
                self.refuse(416)
                return
            self.send_response(206)
            moved = 7 * (fault == "wrong_range")
            self.send_header("Content-Range", f"bytes {first + moved}-{end - 1 + moved}/{about.st_size}")
        else:
            self.send_response(200)
        if fault != "no_etag":
            self.send_header("ETag", f"W/{etag}" if fault == "weak" else etag)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        if not body:
            return
        with file.open("rb") as opened:
            opened.seek(first)
            data = opened.read(end - first)
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        with server.lock:
            server.asked.append((path, first, end - first))
        for at in range(0, len(data), CHUNK):
            server.pace(len(data[at : at + CHUNK]))
            self.wfile.write(data[at : at + CHUNK])

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
