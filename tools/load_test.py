"""Load test of `multitask serve` on this machine.

    python tools/load_test.py --model=runs/first/export --images=FOLDER [--requests=10000]
    python tools/load_test.py … --requests=1000 --rounds=3 --idle=1000 --slow=64 --large=8

Starts a server, sends requests over --concurrency connections, and prints: requests a second,
compared with the model alone and with `multitask predict` on the same images; latencies in ms; the
server's memory; and failures, of which none are expected. Linux only.

With --idle or --slow, each round is followed by one with such connections in addition to working
ones: idle ones send nothing or half a head; slow ones upload 50 bytes a second. Each reconnects
about 5 seconds after the server closes it. The latencies of both rounds are printed. With --large,
that many images of 100 megapixels are sent at once at the end, and the memory is printed.
"""

import asyncio
import contextlib
import http.client
import io
import itertools
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from PIL import Image

from multitask.data.folders import ImageSearch

BATCH = 16  # as the server's
DISTINCT = 200  # different images, sent repeatedly
ROUNDS = 10  # passes over the files for the rate of reading
MEASURE_S = 10.0  # duration of a rate's measurement
RECONNECT_S = 5.0  # until a closed connection is opened again
LARGE_PX = 10_000  # a side
SETTLE_S = 3.0  # until the memory is measured, or all connections are open


def rates(model: Path, files: list[str]) -> tuple[float, float, float]:
    """Measure the model alone and `multitask predict`.

    Returns:
        Images a second of the model alone; images a second with reading; and the model's CPU time
        in s for one image.
    """
    from multitask.data.pipeline import readable_images
    from multitask.serving.predict import predict_files
    from multitask.serving.predictor import load_export

    predictor = load_export(model, batch=BATCH)
    batches = readable_images(files, **predictor.resizing, batch_size=BATCH)
    images = next(iter(batches))[1].numpy()

    def rate(call: Callable[[], int]) -> tuple[float, float]:
        call()
        began, used, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < MEASURE_S:
            count += call()
        return count / (time.perf_counter() - began), (time.process_time() - used) / count

    alone, cpu = rate(lambda: len(predictor.answer(images)[0]) and len(images))
    # Repeated: for 200 images the start of the reading would take a sixth of the time.
    reading, _ = rate(lambda: len(list(predict_files(predictor, files * ROUNDS, batch_size=BATCH))))
    return alone, reading, cpu


def memory_mb(pid: int, field: str) -> float:
    """Return a process's resident memory (VmRSS) or its peak (VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1e3


def cpu_s(pid: int | str) -> float:
    """Return the CPU time of a process, over all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def load(
    port: int, pid: int, bodies: list[bytes], *, requests: int, clients: int, seconds: float
) -> tuple[list[float], Counter, list[float], float]:
    """Send requests.

    Returns:
        Latencies in s; statuses; the server's memory in MB, about 100 times; and the duration.
    """
    numbers, lock, until = itertools.count(), threading.Lock(), time.monotonic() + seconds
    latencies: list[float] = []
    statuses: Counter = Counter()
    memory: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        with contextlib.closing(connection):
            while (number := next(numbers)) < requests and time.monotonic() < until:
                began = time.perf_counter()
                try:
                    connection.request(
                        "POST",
                        "/predict",
                        bodies[number % len(bodies)],
                        {"Content-Type": "image/jpeg"},
                    )
                    reply = connection.getresponse()
                    reply.read()
                    status = reply.status
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    status = type(error).__name__
                with lock:
                    statuses[status] += 1
                    latencies.append(time.perf_counter() - began)
                    if len(latencies) % max(1, requests // 100) == 0:
                        memory.append(memory_mb(pid, "VmRSS"))

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    return latencies, statuses, memory, time.perf_counter() - began


# === Idle and slow connections ===


async def hold(port: int, idle: int, slow: int, opened: Any, open_now: Any) -> None:
    """Keep connections open until cancelled; count those opened ever and those open now."""

    async def connection(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                opened.value += 1
                open_now.value += 1
                try:
                    if number < slow:
                        await trickle(reader, writer)
                    else:
                        writer.write(b"GET / HTTP/1.1\r\nHo" if number % 2 else b"")
                        await reader.read()
                finally:
                    open_now.value -= 1
                    writer.close()
            await asyncio.sleep(RECONNECT_S * random.uniform(0.5, 1.5))  # not all at once

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 1000000\r\n\r\n\xff\xd8\xff"
        )
        answered = asyncio.create_task(reader.read(1))
        while not (await asyncio.wait([answered], timeout=1))[0]:
            writer.write(bytes(50))
        await answered

    await asyncio.gather(*(connection(number) for number in range(idle + slow)))


def hold_in_process(*args: Any) -> None:
    asyncio.run(hold(*args))


@contextlib.contextmanager
def held(port: int, idle: int, slow: int) -> Iterator[tuple[Any, Any]]:
    """Hold connections within the context; yields the counts (opened ever, open now)."""
    # A separate process does not slow down the working threads.
    processes = multiprocessing.get_context("spawn")
    counts = processes.Value("i", lock=False), processes.Value("i", lock=False)
    process = processes.Process(
        target=hold_in_process, args=(port, idle, slow, *counts), daemon=True
    )
    process.start()
    try:
        while counts[0].value < idle + slow:
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        yield counts
    finally:
        process.terminate()
        process.join()


# === Large images ===


def large(port: int, pid: int, count: int) -> str:
    """Send images of 100 megapixels at once, and describe the result."""
    data = io.BytesIO()
    Image.new("RGBA", (LARGE_PX, LARGE_PX), (200, 30, 30, 128)).save(data, "PNG")
    before = memory_mb(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak
    _, statuses, _, seconds = load(
        port, pid, [data.getvalue()], requests=count, clients=count, seconds=600
    )
    time.sleep(SETTLE_S)
    peak, after = memory_mb(pid, "VmHWM"), memory_mb(pid, "VmRSS")
    return (
        f"{count} images of {LARGE_PX**2 / 1e6:.0f} megapixels at once: {dict(statuses)} in "
        f"{seconds:.0f} s\nmemory, MB: {before:.0f} before, {peak:.0f} at most, {after:.0f} after"
    )


# === The test ===


def latencies_line(latencies: list[float]) -> str:
    at = np.percentile(np.array(latencies) * 1000, [50, 90, 99, 100])
    return f"latency, ms: median {at[0]:.0f}, 90 % {at[1]:.0f}, 99 % {at[2]:.0f}, max {at[3]:.0f}"


@dataclass
class Rounds:
    """The requests of several rounds of one kind.

    Attributes:
        latencies: seconds of each request.
        statuses: HTTP status -> requests.
        memory: MB of the server, as sampled.
        seconds: duration of all rounds.
        cpu: seconds of CPU, of the server and of this client.
        percentiles: the 99th percentile of the latencies of each round, in seconds.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: np.ndarray = field(default_factory=lambda: np.zeros(2))
    percentiles: list[float] = field(default_factory=list)

    def add(self, port: int, pid: int, bodies: list[bytes], **how: Any) -> str:
        """Make one round; return its latencies as text."""
        before = np.array([cpu_s(pid), cpu_s("self")])
        latencies, statuses, memory, seconds = load(port, pid, bodies, **how)
        self.cpu += np.array([cpu_s(pid), cpu_s("self")]) - before
        self.latencies += latencies
        self.statuses += statuses
        self.memory += memory
        self.seconds += seconds
        self.percentiles.append(float(np.percentile(latencies, 99)))
        return latencies_line(latencies)

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)


def measure(port: int, pid: int, bodies: list[bytes]) -> tuple[Rounds, Rounds]:
    """The rounds without idle and slow connections, and those with them, in turn."""
    options, alone, busy = flags.FLAGS, Rounds(), Rounds()
    how = {"requests": options.requests, "clients": options.concurrency}
    how["seconds"] = options.seconds / options.rounds
    # Warm-up: the first batches of each size take seconds.
    load(port, pid, bodies, **how | {"requests": 10 * options.concurrency})
    for _ in range(options.rounds):
        without = alone.add(port, pid, bodies, **how)
        if options.idle + options.slow:
            with held(port, options.idle, options.slow) as (opened, open_now):
                line = busy.add(port, pid, bodies, **how)
                print(
                    f"with {options.idle} idle and {options.slow} slow: {open_now.value} open "
                    f"now, {opened.value} opened in total; {line}; without them {without}",
                    flush=True,
                )
    return alone, busy


def print_rounds(alone: Rounds, busy: Rounds, rates: tuple[float, float, float]) -> None:
    """Print what was measured.

    Args:
        alone: the rounds without idle and slow connections.
        busy: those with them; perhaps none.
        rates: as `rates` gives them.
    """
    options, count = flags.FLAGS, len(alone.latencies)
    rate, (model, reading, cpu) = count / alone.seconds, rates
    server_ms, client_ms = 1000 * alone.cpu / count
    first, middle, last = (
        alone.memory[round(share * (len(alone.memory) - 1))] for share in (0.05, 0.5, 1)
    )
    print(
        f"{count:,} requests, {options.concurrency} at once, in {alone.seconds:.0f} s\n"
        f"failures: {alone.failed} {dict(alone.statuses)}\n"
        f"a second: {rate:.1f}; the model alone {model:.1f} (ratio {rate / model:.2f}), "
        f"`multitask predict` {reading:.1f} (ratio {rate / reading:.2f})\n"
        f"CPU a request, ms: server {server_ms:.1f}, this client {client_ms:.1f}; the model "
        f"alone an image {1000 * cpu:.1f}\n"
        f"{latencies_line(alone.latencies)}\n"
        f"memory, MB: {first:.0f} after 5 %, {middle:.0f} after 50 %, {last:.0f} at the end, "
        f"{max(alone.memory):.0f} at most"
    )
    if busy.latencies:
        together = np.percentile(busy.latencies, 99) / np.percentile(alone.latencies, 99)
        ratios = np.divide(busy.percentiles, alone.percentiles)
        print(
            f"with {options.idle} idle and {options.slow} slow connections: failures: "
            f"{busy.failed} {dict(busy.statuses)}; {latencies_line(busy.latencies)}\n"
            f"99 % with them / without: {together:.2f} of all rounds together; by round "
            f"{', '.join(f'{x:.2f}' for x in ratios)}; median {np.median(ratios):.2f}"
        )


def main(argv: list[str]) -> None:
    options = flags.FLAGS
    files = ImageSearch().find(options.images)
    files = files[:: max(1, len(files) // DISTINCT)][:DISTINCT]
    if not files:
        raise app.UsageError(f"--images: {options.images}: no image in it")
    rates_alone = rates(Path(options.model), files)
    bodies = [Path(file).read_bytes() for file in files]
    command = [sys.executable, "-m", "multitask", "serve", "--port=0", f"--model={options.model}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next((x for x in server.stdout if "Serving" in x), "")
            port = int(re.search(r":(\d+) \(", address)[1])
            alone, busy = measure(port, server.pid, bodies)
            large_line = large(port, server.pid, options.large) if options.large else ""
        finally:
            server.terminate()
    print_rounds(alone, busy, rates_alone)
    if large_line:
        print(large_line)
    sys.exit(bool(alone.failed + busy.failed))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", required=True)
    flags.DEFINE_string("images", None, "folder with JPEGs, also in subfolders", required=True)
    flags.DEFINE_integer("requests", 10_000, "requests in a round", lower_bound=1)
    flags.DEFINE_integer("concurrency", 32, "concurrent connections", lower_bound=1)
    flags.DEFINE_float("seconds", 540, "stop after this time, in all rounds")
    flags.DEFINE_integer("rounds", 1, "rounds, each with and without --idle and --slow", 1)
    flags.DEFINE_integer("idle", 0, "additional idle connections", lower_bound=0)
    flags.DEFINE_integer("slow", 0, "additional slow uploads", lower_bound=0)
    flags.DEFINE_integer("large", 0, "images of 100 megapixels at once, at the end", lower_bound=0)
    app.run(main)
