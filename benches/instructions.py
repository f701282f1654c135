#!/usr/bin/env python3
"""Counts the instructions that a request costs each release binary, and holds them to a committed file.

    benches/instructions.py BUILD=BINARY [BUILD=BINARY] [--update] [--case NAME,NAME]

BUILD is plain or profiled.

Each case runs the binary twice under callgrind, with one worker and the settings that are on by default, and asks for a
1 KiB response over one keep-alive connection: N times and five times as often. The difference over 4N is what one
request costs; the start, the warm-up and the stop cancel out. Instructions are those of the process alone, not of the
kernel. Unlike times they are the same on a busy machine, within two per cent: how often the log's thread is woken differs.
Another release of Rust may move them all.

A figure above the file's by more than TOLERANCE is a failure: the path has become slower. One as far below is told of: the
file no longer guards what was gained, and is to be written anew. Of the build by profile it also tells that the profile no
longer fits: by other dependencies, features or compilers all names change, and what it gains is lost without a word.
Needs valgrind, redis-server and rustc; Python 3 alone otherwise.
"""

import argparse
import concurrent.futures
import itertools
import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FIGURES = Path(__file__).with_name("instructions.json")
# Wider than the noise, for the C library and blake3 choose by what the CPU can do.
TOLERANCE = 0.08
# `make plain` and `make build`.
BUILDS = ("plain", "profiled")
# For whatever must happen within a run; a broken binary fails instead of waiting for ever.
PATIENCE = 60

BROWSER = """\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r
Accept: application/json, text/plain, */*\r
Accept-Encoding: gzip, deflate, br, zstd\r
Accept-Language: en-US,en;q=0.9,de;q=0.8\r
sec-ch-ua: "Chromium";v="142", "Not?A_Brand";v="24"\r
sec-ch-ua-mobile: ?0\r
sec-ch-ua-platform: "Linux"\r
Referer: https://shop.example.com/\r
Sec-Fetch-Mode: cors\r
Sec-Fetch-Site: same-site\r
Priority: u=1, i\r
"""

# What a case asks for: its N, its keys (0: each request has a key of its own), the client's further fields, the stores, the
# routes beside the one asked for, which differ from it by a number at the end of a segment. What the start takes for so many
# of them differs by some millions from run to run: hence the larger N.
CASES = {
    "hit": (1000, 1, "", "memory", 0),
    "hit-browser-head": (1000, 1, BROWSER, "memory", 0),
    "hit-500-keys": (1000, 500, "", "memory", 0),
    "hit-10000-routes": (5000, 1, "", "memory", 10_000),
    "hit-redis": (500, 1, "", "redis", 0),
    "miss-stored-in-both": (300, 0, "", "both", 0),
}

# Rows as an API would send them: what Redis holds is compressed.
BODY = "".join(f'{{"id":{at},"price":{at * 7919 % 9973}}},' for at in range(1, 100))[:1024]
ANSWER = b"""\
HTTP/1.1 200 OK\r
Date: %s\r
Content-Type: text/plain\r
Content-Length: 1024\r
Cache-Control: public, max-age=3600\r
ETag: "v1"\r
Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r
\r
""" + BODY.encode()


class Failure(Exception):
    """What went wrong, in words."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Origin:
    """Answers every request with the same response, as often as it is asked."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        answer = ANSWER % time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unread = b""
        while data := connection.recv(65536):
            unread += data
            while b"\r\n\r\n" in unread:
                _, _, unread = unread.partition(b"\r\n\r\n")
                connection.sendall(answer)

    def close(self):
        self.listener.close()


class Client:
    """One keep-alive connection."""

    def __init__(self, port, fields):
        self.fields = fields
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path):
        """Asks once; returns what Cache-Status says."""
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: api.example.com\r\n{self.fields}\r\n".encode())
        answer = b""
        while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + 1024:
            data = self.socket.recv(65536)
            if not data:
                raise Failure(f"the connection ended within an answer: {answer[:300]!r}")
            answer += data
        head = answer[:end].decode("latin-1")
        status = re.search(r"^cache-status: (.*)$", head, re.IGNORECASE | re.MULTILINE)
        if not head.startswith("HTTP/1.1 200 ") or status is None:
            raise Failure(f"unexpected answer: {head}")
        return status[1].strip()


def start(argv, port, log):
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.05)
    stop(process)
    raise Failure(f"{argv[0]} did not listen: {Path(log.name).read_text()[-500:]}")


def stop(process):
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def configuration(folder, port, origin, redis, stores, routes):
    text = f"""
[server]
listen = "127.0.0.1:{port}"
threads = 1

[log]
access = "{folder}/access.log"

[upstream.api]
url = "http://127.0.0.1:{origin}"

[[route]]
path = "/{{*rest}}"
"""
    for at in range(routes):
        text += f'[[route]]\npath = "/v1/products{at}/{{id}}"\n'
    if routes:
        text += '[[route]]\npath = "/v1/products/{id}"\n'
    if stores == "redis":
        text += '\n[memory]\nmax_size = "0"\n'
    if stores != "memory":
        # Under callgrind Redis' answers are read late.
        text += f'\n[redis]\nurl = "redis://127.0.0.1:{redis}"\ntimeout = "10s"\n'
    return text


def load(port, count, keys, fields):
    """Warms the keys, then asks so often."""
    client = Client(port, fields)
    hit, miss = "aside; hit", "aside; fwd=uri-miss; fwd-status=200; stored"
    path = lambda at: f"/v1/products/{at:07}?page=3"
    for key in range(keys):
        client.get(path(key))
    for key in range(keys):
        ask_until(client, itertools.repeat(path(key)), lambda status: status.startswith(hit))
    if not keys:
        # As long as Redis is still being connected to, a miss is another one.
        ask_until(client, (f"/warm/{at}" for at in itertools.count()), lambda status: status == miss)
    for at in range(count):
        status = client.get(path(at % keys if keys else at))
        if not (status.startswith(hit) if keys else status == miss):
            raise Failure(f"expected {hit if keys else miss!r}, found {status!r}")


def ask_until(client, paths, is_wanted):
    """Asks until the answer is as wanted: what Redis is to hold is on its way when the client has its answer already."""
    end = time.monotonic() + PATIENCE
    while not is_wanted(status := client.get(next(paths))):
        if time.monotonic() > end:
            raise Failure(f"never as it should be: {status!r}")
        time.sleep(0.05)


def collected(binary, count, keys, fields, stores, routes):
    """The instructions of one run, start and stop included."""
    with tempfile.TemporaryDirectory(prefix="aside-instructions-") as folder:
        origin, port, redis_port = Origin(), free_port(), free_port()
        config, log = Path(folder, "aside.toml"), Path(folder, "log")
        config.write_text(configuration(folder, port, origin.port, redis_port, stores, routes))
        processes = []
        try:
            with open(log, "ab") as out:
                if stores != "memory":
                    argv = ["redis-server", "--port", redis_port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
                    processes.append(start([*map(str, argv)], redis_port, out))
                argv = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, "serve", "--config", config]
                processes.append(start([*map(str, argv)], port, out))
            load(port, count, keys, fields)
        finally:
            for process in reversed(processes):
                stop(process)
            origin.close()
        found = re.search(r"Collected : (\d+)", log.read_text())
        if found is None:
            raise Failure(f"callgrind tells no count: {log.read_text()[-500:]}")
        return int(found[1])


def measured(binary, name):
    count, *rest = CASES[name]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        few, many = pool.map(lambda times: collected(binary, times * count, *rest), (1, 5))
    return round((many - few) / (4 * count))


def judged(name, was, now):
    """What is wrong with a figure; nothing where it is not above its bound."""
    if was is None:
        return f"{name}: {now} instructions a request, and no figure to hold it to"
    change = now / was - 1
    if change < -TOLERANCE:
        print(f"{name}: {-change:.1%} below the file, which no longer guards it: `make instructions UPDATE=1`", flush=True)
    if change <= TOLERANCE:
        return None
    return f"{name}: slower: {was} instructions a request before, {now} now ({change:+.1%}, allowed +{TOLERANCE:.0%})"


def build(argument):
    name, _, binary = argument.partition("=")
    if name not in BUILDS or not binary:
        raise argparse.ArgumentTypeError(f"expected plain=BINARY or profiled=BINARY, found {argument!r}")
    return name, binary


def main():
    parser = argparse.ArgumentParser(description="Holds the instructions of a request to benches/instructions.json.")
    parser.add_argument("builds", nargs="+", type=build, metavar="BUILD=BINARY")
    parser.add_argument("--update", action="store_true", help="write what is measured to the file")
    parser.add_argument("--case", default=",".join(CASES), help="some of them: %(default)s")
    options = parser.parse_args()
    cases = options.case.split(",")
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"argument --case: expected some of {', '.join(CASES)}, found {', '.join(unknown)}")
    for program in ("valgrind", "redis-server", "rustc"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed")
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    machine = f"{platform.machine()}, {subprocess.run(['rustc', '--version'], capture_output=True, text=True).stdout.strip()}"
    made_on = figures.get("machine", machine)
    figures["machine"] = machine
    wrong = []
    for name, binary in options.builds:
        held = figures.setdefault(name, {})
        for case in cases:
            now, was, called = measured(binary, case), held.get(case), f"{name}, {case}"
            print(f"{called}: {now}" + (f" (the file: {was}, {now / was - 1:+.1%})" if was else ""), flush=True)
            wrong += filter(None, [judged(called, was, now)])
            held[case] = now
    if options.update:
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    elif wrong and machine != made_on:
        print("\n".join(wrong))
        print(f"The file was made on {made_on}, this is {machine}: told, not held against the change. By another compiler the "
              "profile fits no longer: `make profile` before `make instructions UPDATE=1`.")
    elif wrong:
        sys.exit("\n".join([
            "",
            *wrong,
            "Where it is the profiled build alone, the profile no longer fits: `make profile` takes it anew. Where that is meant, or "
            "another Rust release is why: `make instructions UPDATE=1`, and commit benches/instructions.json with the reason. "
            "Otherwise look for the cause with callgrind (docs/performance.md).",
        ]))


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(str(failure))
