"""Drives a server of the OpenAI chat form with many clients at once, over generated pages.

    python tools/load_server.py load URL [--clients 64] [--pages 100] [--questions 10] [--together] [--stream]
    python tools/load_server.py abuse URL --pid PID [--requests 10000] [--connections 1000]

URL is that of the API, http://127.0.0.1:8000/v1. `load` prints questions a second, latencies and, with --stream, the
time to the first token; any server of the form will do. Each client takes a page and asks its questions one after
another, as someone does who wants to know several things of a document; with --together, clients that are free take
the next question, so that most of them ask about the same few pages at the same time.

Pages have numbers, and a number is always the same page: a server that was asked of it before has encoded it already.
To measure once more, begin where the last call ended: after --pages 100, with --first 100. `abuse` is for
`idefics-cli serve` started with IDEFICS_CLI_API_KEY=load: clients that leave, broken and huge bodies, wrong keys, and
good requests among them; it fails unless every code is right, and memory and sequences return to where they were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import pypdfium2

from idefics_cli.diagnostics.synthetic_pages import write_letters
from idefics_cli.documents.whole_page import data_uri

_QUESTION = b"@QUESTION@"
_KEY = "load"
_SCALE = 1960 / 792  # of 72 dots an inch: 1515 by 1960 pixels, whose quarters are as large as Idefics2 takes them
_SECONDS = 600.0
_GROWTH = 1.10  # of memory between the middle of the abuse and its end


def page_images(count: int, first: int = 0) -> list[str]:
    """Return generated letter pages as data URIs, no two alike: those numbered from `first` on."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor() as pool:
        return list(pool.map(page_image, write_letters(Path(folder), count, first=first)))


def page_image(path: Path) -> str:
    """Render a PDF's page; return it as a data URI."""
    image = pypdfium2.PdfDocument(path)[0].render(scale=_SCALE).to_pil()
    return data_uri(np.asarray(image.convert("RGB")))


def body_of(image: str, options: argparse.Namespace) -> bytes:
    """Return the body of a request about a page, with a mark where its question stands."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": _QUESTION.decode()}]
    body = {"model": options.model, "messages": [{"role": "user", "content": parts}], "max_tokens": options.max_tokens}
    return json.dumps(body | ({"stream": True} if options.stream else {})).encode()


# --- load ---


@dataclass
class Sample:
    """One request."""

    status: int
    began: float
    seconds: float
    first: float | None = None


async def clients(options: argparse.Namespace, bodies: list[bytes], count: int, part: int) -> list[Sample]:
    """Ask every question of the pages of this process, so many at a time."""
    samples: list[Sample] = []
    questions = [f"What is word {number} of line {part}?".encode() for number in range(options.questions)]
    taken: Iterator[tuple[bytes, list[bytes]]] = (  # by one client: a page and what it asks of it
        (body, some) for body in bodies for some in ([[one] for one in questions] if options.together else [questions])
    )
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=_SECONDS, limits=limits, trust_env=False, headers=headers()) as client:

        async def one_client() -> None:
            for body, some in taken:
                for question in some:
                    sample = await one_request(client, options, body.replace(_QUESTION, question))
                    samples.append(sample)

        await asyncio.gather(*(one_client() for _ in range(count)))
    return samples


async def one_request(client: httpx2.AsyncClient, options: argparse.Namespace, content: bytes) -> Sample:
    """Send one request, again after a 429."""
    started = time.perf_counter()
    while True:
        async with client.stream("POST", f"{options.url}/chat/completions", content=content) as reply:
            first = None
            async for line in reply.aiter_lines():
                if options.stream and first is None and has_text(line):
                    first = time.perf_counter() - started
            if reply.status_code != 429:
                seconds = time.perf_counter() - started
                return Sample(reply.status_code, started, seconds, first if options.stream else None)
        await asyncio.sleep(float(reply.headers.get("retry-after", "1")))


def has_text(line: str) -> bool:
    """Whether a line of a stream holds a piece of the answer."""
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
    return bool((choices[0].get("delta") or {}).get("content"))


def headers() -> dict[str, str]:
    """Return those that every request has."""
    return {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}


def run_clients(options: argparse.Namespace, bodies: list[bytes], count: int, part: int) -> list[Sample]:
    """Run the clients of one process."""
    return asyncio.run(clients(options, bodies, count, part))


def load(options: argparse.Namespace) -> None:
    """Measure."""
    bodies = [body_of(image, options) for image in page_images(options.pages, options.first)]
    processes = min(options.processes, options.clients, len(bodies))
    shares = [options.clients // processes + (at < options.clients % processes) for at in range(processes)]
    with ProcessPoolExecutor(processes) as pool:
        parts = [pool.submit(run_clients, options, bodies[at::processes], share, at) for at, share in enumerate(shares)]
        samples = [sample for part in parts for sample in part.result()]
    # Not from the start of the processes, which share a clock.
    seconds = max(one.began + one.seconds for one in samples) - min(one.began for one in samples)
    answered = [sample for sample in samples if sample.status == 200]
    print(f"{options.clients} clients, {options.questions} questions a page, {options.pages} pages: codes", end=" ")
    print(dict(Counter(sample.status for sample in samples)))
    print(f"{len(answered) / seconds:.2f} questions/s over {seconds:.1f} s")
    for name, values in (
        ("latency", [sample.seconds for sample in answered]),
        ("first token", [sample.first for sample in answered if sample.first is not None]),
    ):
        if len(values) > 1:
            cuts = statistics.quantiles(values, n=100, method="inclusive")
            print(f"{name}: p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s, most {max(values):.3f} s")


# --- abuse ---


@dataclass
class Abuse:
    """What came of each kind of request."""

    codes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: list[str] = field(default_factory=list)


RIGHT = {
    "good": {"200", "429"},
    "stream": {"200", "429"},
    "broken": {"400", "429"},
    "huge": {"413", "429"},
    "wrong key": {"401"},
    "leaves": {"left"},
}


async def abuse_once(kind: str, address: tuple[str, int], content: bytes, random_: random.Random) -> str:
    """Send one request of a kind over a connection of its own; returns the code."""
    key = "wrong" if kind == "wrong key" else _KEY
    length = 100_000_000 if kind == "huge" else len(content)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
    whole = head + content
    reader, writer = await asyncio.open_connection(*address)
    try:
        if kind == "leaves":
            writer.write(whole[: random_.choice((0, 20, len(whole) // 2, len(whole)))])
            await writer.drain()
            await asyncio.sleep(random_.random() * 0.3)
            return "left"
        writer.write(whole)
        await writer.drain()
        status = await asyncio.wait_for(reader.readline(), _SECONDS)
        while kind != "huge" and await asyncio.wait_for(reader.read(1 << 16), _SECONDS):
            pass
        return status.split()[1].decode() if status else "closed"
    finally:
        writer.close()


async def abuse_all(options: argparse.Namespace, bodies: list[bytes], count: int, found: Abuse) -> None:
    """Send so many requests, so many connections at a time."""
    url = httpx2.URL(options.url)
    address = url.host, url.port or 80
    room = asyncio.Semaphore(options.connections)
    kinds = list(RIGHT)

    async def one(number: int) -> None:
        random_ = random.Random(number)
        kind = kinds[number % len(kinds)]
        content = random_.choice(bodies).replace(_QUESTION, f"What is word {number % 50}?".encode())
        if kind == "stream":
            content = content[:-1] + b', "stream": true}'
        if kind == "broken":
            damaged = content.replace(b"png;base64,", b"png;base64,!")
            content = random_.choice((b"{", content[: len(content) // 2], b"[]", damaged))
        async with room:
            try:
                code = await abuse_once(kind, address, content, random_)
            except (OSError, TimeoutError) as error:
                code = type(error).__name__
        found.codes[kind][code] += 1
        if code not in RIGHT[kind]:
            found.wrong.append(f"{kind}: {code}")

    await asyncio.gather(*(one(number) for number in range(count)))


def processes(pid: int) -> list[Path]:
    """Return what the system says of a server and of its engine's process."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    started = [Path("/proc", child) for one in children for child in one.read_text().split()]
    return [Path(f"/proc/{pid}"), *(one for one in started if b"engine_process" in (one / "cmdline").read_bytes())]


def memory(pid: int) -> float:
    """Return the resident memory of the server in MB, without what is shared with page processes."""
    texts = [(process / "status").read_text() for process in processes(pid)]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("RssAnon")]
    return sum(int(line.split()[1]) for line in lines) / 1e3


def open_files(pid: int) -> int:
    """Return how many files and connections the server has open."""
    return sum(1 for process in processes(pid) for _ in (process / "fd").iterdir())


def idle(options: argparse.Namespace) -> dict[str, float]:
    """Wait until nothing is held, and return the server's gauges."""
    url = options.url.removesuffix("/v1")
    names = ('sequences{state="running"}', 'sequences{state="waiting"}', "requests_held", "requests_queued")
    for _ in range(600):
        text = httpx2.get(f"{url}/metrics", headers=headers(), trust_env=False).text
        values = {name: float(text.split(f"\nidefics_cli_{name} ")[1].split()[0]) for name in names}
        if not any(values.values()):
            return values
        time.sleep(0.1)
    return values


def abuse(options: argparse.Namespace) -> int:
    """Abuse a server; returns the exit code."""
    bodies = [body_of(image, options) for image in page_images(options.pages)]
    found = Abuse()
    half = options.requests // 2
    asyncio.run(abuse_all(options, bodies, half, found))
    first = idle(options)
    before, descriptors = memory(options.pid), open_files(options.pid)
    started = time.perf_counter()
    asyncio.run(abuse_all(options, bodies, options.requests - half, found))
    seconds = time.perf_counter() - started
    last = idle(options)
    after, then = memory(options.pid), open_files(options.pid)
    for kind, codes in found.codes.items():
        print(f"{kind}: {dict(codes)}")
    print(f"{options.requests} requests, {(options.requests - half) / seconds:.0f}/s; left held: {first} and {last}")
    print(f"memory {before:.0f} MB -> {after:.0f} MB; open files {descriptors} -> {then}")
    is_leaking = after > before * _GROWTH or then > descriptors + 8 or any(last.values())
    for line, count in Counter(found.wrong).items():
        print(f"wrong: {line} x {count}", file=sys.stderr)
    return int(bool(found.wrong) or is_leaking)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("load", "abuse"):
        command = commands.add_parser(name)
        command.add_argument("url")
        command.add_argument("--model", default="tiny")
        command.add_argument("--pages", type=int, default=100 if name == "load" else 10)
        command.add_argument("--max-tokens", type=int, default=16)
        command.add_argument("--stream", action="store_true")
        if name == "load":
            command.add_argument("--clients", type=int, default=64)
            command.add_argument("--questions", type=int, default=10)
            command.add_argument("--processes", type=int, default=4)
            command.add_argument("--first", type=int, default=0, help="number of the first page")
            command.add_argument("--together", action="store_true", help="all clients ask about the same pages")
        else:
            command.add_argument("--pid", type=int, required=True)
            command.add_argument("--requests", type=int, default=10_000)
            command.add_argument("--connections", type=int, default=1000)
    options = parser.parse_args()
    options.url = options.url.rstrip("/")
    if options.command == "abuse":
        sys.exit(abuse(options))
    load(options)


if __name__ == "__main__":
    main()
