"""Who may come in: a cluster that a run starts takes work from that run alone."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time

import dask
import distributed
import psutil
import pytest

from tilestream.config.load import load_config
from tilestream.errors import ConfigError
from tilestream.runner.engines import clusters
from tilestream.runner.engines.executors import open_engine

OUTSIDER = """
import sys, distributed
security = distributed.Security.temporary() if sys.argv[1].startswith("tls") else None
try:
    client = distributed.Client(sys.argv[1], security=security, timeout=3, set_as_default=False)
except OSError:
    print("refused")
else:
    print("ran", client.submit(sum, [20, 22]).result())
"""


def compute_section(**compute):
    raw = {"slides": "a.svs", "output": "out", "tiles": {"level": 0}, "encoder": "patch_embed", "compute": compute}
    return load_config(raw).compute


@pytest.fixture(scope="module")
def engine():
    with open_engine(compute_section(scheduler="local", workers=1)) as engine:
        yield engine


def outsider(address):
    done = subprocess.run([sys.executable, "-c", OUTSIDER, address], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip()


def test_the_run_itself_is_served(engine):
    assert engine.call(abs, -42) == 42


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_another_process_is_refused_without_the_certificate_of_the_run(engine, scheme):
    address = engine._client.scheduler.address.partition("://")[2]
    assert outsider(f"{scheme}://{address}") == "refused"


def test_no_port_of_the_run_serves_pages_about_it(engine):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ports = {c.laddr.port: c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert set(ports.values()) == {"127.0.0.1"}
    for port in ports:
        for page in ("/info/main/workers.html", "/json/identity.json", "/metrics"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
            try:
                connection.request("GET", page)
                assert connection.getresponse().status == 404
            except (OSError, http.client.HTTPException):
                pass  # not a page but a port of TLS, which hangs up
            finally:
                connection.close()


def test_an_open_cluster_would_have_served_the_outsider():
    """The oracle: the same stranger gets its code run where nothing keeps it out."""
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                                  protocol="tcp://") as cluster:  # fmt: skip
        assert outsider(cluster.scheduler_address) == "ran 42"


def test_workers_that_do_not_start_are_told_with_where_they_put_their_files(tmp_path):
    (tmp_path / "file").touch()
    with dask.config.set({"temporary-directory": str(tmp_path / "file" / "below")}):
        words = (
            rf"compute.scheduler: the 2 worker processes of this machine do not start: .*{tmp_path}/file/below, where they put their files"
        )
        with pytest.raises(ConfigError, match=words):
            open_engine(compute_section(scheduler="local", workers=2))


def test_workers_that_lack_a_package_are_told_to_have_it_installed(monkeypatch):
    def lacking():
        raise ImportError("needs cryptography")

    monkeypatch.setattr(distributed.Security, "temporary", lacking)
    with pytest.raises(ConfigError, match=r"do not start: needs cryptography\. Install what is missing, or set it to inline"):
        open_engine(compute_section(scheduler="local", workers=2))


def test_a_schedulers_file_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"compute.scheduler: there is no file .*/gone.json. Start the scheduler first"):
        open_engine(compute_section(scheduler=f"file:{tmp_path}/gone.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"address": 5}', '{"address": "x"}', "[" * 5000, "\udcff"])
def test_a_file_that_is_not_a_schedulers_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setattr(clusters, "WRITING", 0.0)
    (tmp_path / "scheduler.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"compute.scheduler: .*scheduler.json is not a scheduler's file: "):
        open_engine(compute_section(scheduler=f"file:{tmp_path}/scheduler.json"))


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_schedulers_file_that_is_still_being_written_is_waited_for(tmp_path, monkeypatch, cut):
    file, looks = tmp_path / "scheduler.json", []
    whole = json.dumps({"type": "Scheduler", "address": "tcp://127.0.0.1:8786"})
    file.write_text(whole[:cut])

    def go_on(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            file.write_text(whole)

    monkeypatch.setattr(time, "sleep", go_on)
    assert clusters.address_in_file(str(file)) == "tcp://127.0.0.1:8786"
    assert len(looks) == 2


def test_a_schedulers_file_that_is_a_pipe_or_a_socket_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match=r"pipe.json is a FIFO"):
        open_engine(compute_section(scheduler=f"file:{tmp_path}/pipe.json"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.json"))
        with pytest.raises(ConfigError, match=r"s.json is a socket"):
            open_engine(compute_section(scheduler=f"file:{tmp_path}/s.json"))


def test_a_file_of_a_scheduler_that_is_gone_names_the_address(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": address}))
    monkeypatch.setitem(distributed.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    with pytest.raises(ConfigError, match="no cluster answers at"):
        open_engine(compute_section(scheduler=f"file:{tmp_path}/scheduler.json"))
