"""An S3 server that counts what is asked of it, in a process of its own: `python -m tests.support.counted_store HOST PORT [LATENCY]`.

It knows what object stores are asked for here: objects, ranges of them, conditional writes, lists, deletes, uploads in parts; it checks no signature, and
buckets are made by writing into them. Latency is seconds before each answer. Who stops the process (SIGSTOP) has a store that does not answer.

`GET /counts` tells by bucket and method the requests and bytes since it was asked last, `GET /asked` each of these requests, `GET /count/BUCKET/PREFIX?ENDING`
how many objects are named so; none of these is counted.
"""

import hashlib
import json
import re
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
"""Names of a list, at most."""


class CountedStore(ThreadingHTTPServer):
    """Objects by bucket and key, each with its ETag. `asked` holds (bucket, method, path and query, bytes taken, bytes given, status) of each request."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host="127.0.0.1", port=0, latency=0.0):
        super().__init__((host, port), _Handler)
        self.latency, self.lock = latency, threading.Lock()
        self.buckets, self.parts, self.asked = {}, {}, []

    def put(self, bucket, key, data):
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        self.buckets.setdefault(bucket, {})[key] = data, etag, time.time()
        return etag

    def counts(self):
        """Requests and bytes by bucket and method, which are forgotten."""
        with self.lock:
            asked, self.asked = self.asked, []
        told = {}
        for bucket, method, _, taken, given, _ in asked:
            found = told.setdefault(bucket, {}).setdefault(method, {"requests": 0, "bytes": 0})
            found["requests"] += 1
            found["bytes"] += taken + given
        return told


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:  # the other side went away
            self.close_connection = True

    def answer(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if bucket in ("counts", "asked", "count"):
            self.give(200, json.dumps(self.tell(bucket, key, url.query)).encode())
            return
        if self.server.latency:
            time.sleep(self.server.latency)
        with self.server.lock:
            status, data, headers = self.react(bucket, key, query, body)
            given = 0 if self.command == "HEAD" else len(data)
            self.server.asked.append((bucket, self.command, self.path, len(body), given, status))
        self.give(status, data, headers)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815  # names of the library

    def tell(self, what, key, ending):
        if what == "count":
            bucket, _, prefix = key.partition("/")
            return sum(name.startswith(prefix) and name.endswith(ending) for name in list(self.server.buckets.get(bucket, {})))
        return self.server.counts() if what == "counts" else self.server.asked

    def react(self, bucket, key, query, body):
        """Status, bytes and headers of an answer."""
        objects = self.server.buckets.setdefault(bucket, {})
        if self.command == "POST":
            return self.post(objects, bucket, key, query, body)
        if self.command == "DELETE":
            objects.pop(key, None)
            return 204, b"", {}
        if self.command == "PUT":
            return self.put(objects, bucket, key, query, body)
        if not key:
            return 200, _list(bucket, objects, query), {"Content-Type": "application/xml"}
        return self.part_of(*objects[key]) if key in objects else _refusal(404, "NoSuchKey")

    def put(self, objects, bucket, key, query, body):
        if "partNumber" in query:
            self.server.parts[query["uploadId"]][int(query["partNumber"])] = body
            return 200, b"", {"ETag": f'"{query["partNumber"]}"'}
        etag, wanted = objects[key][1] if key in objects else None, self.headers.get("If-Match")
        if (etag and self.headers.get("If-None-Match") == "*") or (wanted and etag != wanted):
            return _refusal(412, "PreconditionFailed")
        return 200, b"", {"ETag": self.server.put(bucket, key, body)} if key else {}

    def part_of(self, data, etag, written):
        if (wanted := self.headers.get("If-Match")) and wanted != etag:
            return _refusal(412, "PreconditionFailed")
        about = {"ETag": etag, "Last-Modified": formatdate(written, usegmt=True), "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, data, about
        first = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
        end = min(len(data), int(asked[2]) + 1) if asked[1] and asked[2] else len(data)
        if first >= end:
            return _refusal(416, "InvalidRange")
        return 206, data[first:end], {**about, "Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}

    def post(self, objects, bucket, key, query, body):
        if "delete" in query:
            keys = [unescape(name) for name in re.findall(r"<Key>(.*?)</Key>", body.decode())]
            for name in keys:
                objects.pop(name, None)
            gone = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in keys)
            return 200, f"<DeleteResult>{gone}</DeleteResult>".encode(), {}
        if "uploads" in query:
            number = str(len(self.server.parts))
            self.server.parts[number] = {}
            words = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{number}</UploadId>"
            return 200, f"<InitiateMultipartUploadResult>{words}</InitiateMultipartUploadResult>".encode(), {}
        parts = self.server.parts.pop(query["uploadId"])
        etag = self.server.put(bucket, key, b"".join(parts[number] for number in sorted(parts)))
        words = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag>"
        return 200, f"<CompleteMultipartUploadResult>{words}</CompleteMultipartUploadResult>".encode(), {}

    def give(self, status, data, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _refusal(status, code):
    return status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), {}


def _list(bucket, objects, query):
    """A page of names below a prefix, those behind a delimiter as one."""
    prefix, delimiter, after = (
        query.get("prefix", ""),
        query.get("delimiter", ""),
        query.get("continuation-token") or query.get("start-after", ""),
    )
    entries, folders, more = [], [], False
    for key in sorted(name for name in objects if name.startswith(prefix)):
        rest = key[len(prefix) :]
        folder = prefix + rest[: rest.index(delimiter) + 1] if delimiter and delimiter in rest else ""
        if key <= after or (folder and (folder in folders or after.startswith(folder))):
            continue
        if len(entries) + len(folders) == PAGE:
            more = True
            break
        last = key
        (folders if folder else entries).append(folder or key)
    told = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(objects[key][2]))}</LastModified>"
        f"<ETag>{escape(objects[key][1])}</ETag><Size>{len(objects[key][0])}</Size></Contents>"
        for key in entries
    ) + "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
    return (
        f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries) + len(folders)}</KeyCount>"
        f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{told}</ListBucketResult>"
    ).encode()


if __name__ == "__main__":
    started = CountedStore(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    print(started.server_address[1], flush=True)
    started.serve_forever()
