"""Memory does not grow with the number of lines or pages; minutes long, so behind a marker."""

from __future__ import annotations

import base64
import json
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pypdfium2
import pytest

from tests.batch_lines import png_uri, request
from tests.conftest import SAMPLES
from tests.pdfs import write_pdf

pytestmark = pytest.mark.slow
RUN = [sys.executable, "-m", "idefics_cli", "run", "-o", "-", "--format", "jsonl", "--model", "tiny", "--quiet"]
GROWTH = 60e6  # bytes: what an allocator may still spread to


def memory_of(process: int) -> tuple[float, float]:
    """Return the bytes of a process and of the largest of its children, shared pages aside."""
    here = psutil.Process(process)
    sizes = [one.memory_info().rss - one.memory_info().shared for one in (here, *here.children(recursive=True))]
    return sizes[0], max(sizes[1:], default=0)


def watched(command: list[str], lines: list[str], count: int) -> list[tuple[float, float]]:
    """Run a command over lines of stdin; return its memory after a tenth of the rows, and near the end."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout

    def feed() -> None:
        assert process.stdin
        for line in lines:
            process.stdin.write(line + "\n")
        process.stdin.close()

    threading.Thread(target=feed, daemon=True).start()
    found = []
    rows = 0
    for row in process.stdout:
        assert json.loads(row)["status"] == "ok"
        rows += 1
        if rows in (count // 10, count * 98 // 100):
            found.append(memory_of(process.pid))
    assert process.wait(60) == 0
    assert rows == count
    return found


def check(found: list[tuple[float, float]], growth: float = GROWTH) -> None:
    (early, early_worker), (late, late_worker) = found
    print(f"parent {early / 1e6:.0f} -> {late / 1e6:.0f} MB")
    print(f"page process {early_worker / 1e6:.0f} -> {late_worker / 1e6:.0f} MB")
    assert late <= early + growth
    assert late_worker <= early_worker + GROWTH


def test_ten_thousand_lines_through_a_pipe() -> None:
    document = str(SAMPLES / "documents" / "notice.bmp")
    lines = [json.dumps({"question": f"What is item {n}?", "document": document, "id": n}) for n in range(10_000)]
    check(watched([*RUN, "-q", "-", "--max-new-tokens", "4"], lines, len(lines)))


def test_a_pdf_of_two_thousand_pages(tmp_path: Path) -> None:
    write_pdf(tmp_path / "one.pdf")
    one, many = pypdfium2.PdfDocument(tmp_path / "one.pdf"), pypdfium2.PdfDocument.new()
    for _ in range(2000):
        many.import_pages(one)
    many.save(tmp_path / "many.pdf")
    (tmp_path / "q.csv").write_text("question\nWhat is the date?\n")
    command = [*RUN, str(tmp_path / "many.pdf"), "-q", str(tmp_path / "q.csv")]
    check(watched([*command, "--split", "never", "--across", "each", "--max-new-tokens", "4"], [], 2000))


def test_a_folder_of_a_hundred_thousand_names(tmp_path: Path) -> None:
    letter = (SAMPLES / "documents" / "notice.bmp").read_bytes()
    for number in range(100_000):
        path = tmp_path / "inbox" / f"{number % 100:02}" / f"{number:06}.bmp"
        first = tmp_path / "inbox" / f"{number % 100:02}" / f"{number % 100:06}.bmp"
        if path == first:
            path.parent.mkdir(parents=True)
            path.write_bytes(letter)
        else:
            path.hardlink_to(first)
    (tmp_path / "q.csv").write_text("question\nWho?\n")
    peaks = []
    for documents in (tmp_path / "inbox" / "00", tmp_path / "inbox"):
        command = [*RUN, str(documents), "-q", str(tmp_path / "q.csv"), "--limit", "3"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == 0
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    print(f"1,000 names {peaks[0] / 1e6:.0f} MB, 100,000 names {peaks[1] / 1e6:.0f} MB")
    assert peaks[1] <= peaks[0] + 5 * GROWTH  # three kilobytes a name


def test_a_batch_file_of_five_hundred_megabytes(tmp_path: Path) -> None:
    page = base64.b64decode(png_uri(99).partition(",")[2])
    with (tmp_path / "b.jsonl").open("w") as stream:
        for number in range(1000):
            data = base64.b64encode(page + random.Random(number).randbytes(400_000)).decode()
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
            stream.write(json.dumps(request(str(number), image, "What is the total?", max_tokens=2)) + "\n")
    encodings = 1000 * 64 * 256 * 4  # which the engine keeps, up to a gigabyte
    check(watched([*RUN, "-q", str(tmp_path / "b.jsonl")], [], 1000), 3 * GROWTH + encodings)
