"""Hosts made of network namespaces, each with a name and an address of its own, joined by a switch that can cut one off or part them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NET = "10.213.7"


def why_not():
    """Why no hosts can be made here; empty where they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    try:
        name = f"ts{os.getpid()}"
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "br0", "type", "bridge")
        finally:
            _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces cannot be made: {error}"
    return ""


def _ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Hosts:
    """Hosts by name, numbered from 1; the switch is a namespace of its own, so that nothing is left in the machine's."""

    def __init__(self, names):
        self.tag, self.names, self.started = f"ts{os.getpid():x}{os.urandom(2).hex()}", list(names), []

    def __enter__(self):
        try:
            _ip("netns", "add", self.space("switch"))
            for bridge in ("br0", "br1"):
                _ip("-n", self.space("switch"), "link", "add", bridge, "type", "bridge")
                _ip("-n", self.space("switch"), "link", "set", bridge, "up")
            for name in self.names:
                space, port = self.space(name), self.port(name)
                _ip("netns", "add", space)
                _ip("-n", self.space("switch"), "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("-n", self.space("switch"), "link", "set", port, "master", "br0", "up")
                _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    _ip("-n", space, "link", "set", device, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End all processes and take the hosts away, as far as there are any."""
        for name in self.names:
            self.kill(name)
        for name in [*self.names, "switch"]:
            subprocess.run(["ip", "netns", "del", self.space(name)], check=False, capture_output=True)

    def space(self, name):
        return f"{self.tag}-{name}"

    def port(self, name):
        return f"p{self.names.index(name)}"

    def address(self, name):
        return f"{NET}.{self.names.index(name) + 1}"

    def start(self, name, command, **options):
        """A process on a host."""
        inner = ["unshare", "--uts", "--", "sh", "-c", 'hostname "$0" && exec "$@"', name, *command]
        process = subprocess.Popen(["ip", "netns", "exec", self.space(name), *inner], **options)
        self.started.append((name, process))
        return process

    def ask(self, name, command):
        """What a short command on a host prints."""
        done = subprocess.run(["ip", "netns", "exec", self.space(name), *command], check=True, capture_output=True, text=True)
        return done.stdout

    def pids(self, name):
        return [
            int(pid)
            for pid in subprocess.run(["ip", "netns", "pids", self.space(name)], check=False, capture_output=True, text=True).stdout.split()
        ]

    def signal(self, name, number):
        """Send a signal to every process of a host."""
        for pid in self.pids(name):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self, name):
        """End what runs on a host."""
        self.signal(name, signal.SIGKILL)
        for host, process in self.started:
            if host == name:
                process.wait(20)
                if process.stdout is not None:
                    process.stdout.close()

    def cut_off(self, name):
        """Take a host off the switch; who talks with it hears nothing more, and no end either."""
        _ip("-n", self.space("switch"), "link", "set", self.port(name), "down")

    def join(self, name):
        """Put a host back, on the side where most are."""
        _ip("-n", self.space("switch"), "link", "set", self.port(name), "master", "br0", "up")

    def part(self, *names):
        """Hosts that reach each other and none of the rest."""
        for name in names:
            _ip("-n", self.space("switch"), "link", "set", self.port(name), "master", "br1")

    def switch_off(self, name):
        """A host that loses power: nobody hears that its connections end."""
        self.cut_off(name)
        self.kill(name)


def until(found, what, seconds=120.0, every=0.1):
    """Wait for something to be so."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every)
    return value


ROOT = Path(__file__).parents[2]
