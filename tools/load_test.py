"""Loads `multitask serve` on this machine, and says what it holds.

    python tools/load_test.py --model=runs/first/export --pictures=FOLDER [--requests=10000]
    python tools/load_test.py … --requests=1000 --rounds=3 --idle=1000 --slow=64 --large=8

Starts a server, asks it from as many connections as --concurrency, and prints requests a second,
beside what the model alone and `multitask predict` do with the same pictures just before; latencies
(ms); the server's memory; and failures, of which there should be none. Linux.

With --idle or --slow each round is followed by one in which such connections stand beside those
that work: idle ones send nothing, or half a head; slow ones upload 50 bytes a second. Each connects
again about 5 seconds after the server has cut it off. The latencies of both are printed. With
--large, as many images of 100 megapixels are sent at once at the end, and the memory is printed.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from PIL import Image

from multitask.data.folders import ImageSearch

BATCH = 16  # as the server's
DISTINCT = 200  # pictures, asked about again and again
ROUNDS = 10  # that files are read and answered
OWN_S = 10.0  # that the model is timed alone
AGAIN_S = 5.0  # until a connection that was cut off is opened again
LARGE_PX = 10_000  # a side
SETTLE_S = 3.0  # until the memory is looked at, or all of the connections stand


def rates(model: Path, files: list[str]) -> tuple[float, float, float]:
    """Pictures a second of the model alone, and read and answered as `multitask predict` does; and
    the CPU time in s that the model alone takes for one."""
    from multitask.data.pipeline import readable_pictures
    from multitask.serving.predict import predict_files
    from multitask.serving.predictor import load_export

    predictor = load_export(model, batch=BATCH)
    size = {"size_px": predictor.size_px, "how": predictor.how, "batch_size": BATCH}
    images = next(iter(readable_pictures(files, **size)))[1].numpy()

    def rate(ask):
        ask()
        began, used, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < OWN_S:
            count += ask()
        return count / (time.perf_counter() - began), (time.process_time() - used) / count

    alone, cpu = rate(lambda: len(predictor.answer(images)[0]) and len(images))
    # Many at once: of 200 the start of the reading would be a sixth of the time.
    reading, _ = rate(lambda: len(list(predict_files(predictor, files * ROUNDS, batch_size=BATCH))))
    return alone, reading, cpu


def memory_mb(pid: int, field: str) -> float:
    """VmRSS, what is resident now, or VmHWM, its peak."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1e3


def cpu_s(pid: int | str) -> float:
    """That a process has taken, of all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def load(port: int, pid: int, bodies: list[bytes], *, requests: int, people: int, seconds: float):
    """Latencies in s, statuses, the server's memory in MB at each hundredth, and the time taken."""
    numbers, lock, until = itertools.count(), threading.Lock(), time.monotonic() + seconds
    latencies, statuses, memory = [], Counter(), []

    def person():
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
                    said = reply.status
                except (OSError, http.client.HTTPException) as error:
                    connection.close()
                    said = type(error).__name__
                with lock:
                    statuses[said] += 1
                    latencies.append(time.perf_counter() - began)
                    if len(latencies) % max(1, requests // 100) == 0:
                        memory.append(memory_mb(pid, "VmRSS"))

    began = time.perf_counter()
    with ThreadPoolExecutor(people) as pool:
        for one in [pool.submit(person) for _ in range(people)]:
            one.result()
    return latencies, statuses, memory, time.perf_counter() - began


# === Connections that do not work ===


async def hold(port: int, idle: int, slow: int, opened, standing) -> None:
    """Keeps connections open until cancelled, and counts: opened ever, standing now."""

    async def connection(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                opened.value += 1
                standing.value += 1
                try:
                    if number < slow:
                        await trickle(reader, writer)
                    else:
                        writer.write(b"GET / HTTP/1.1\r\nHo" if number % 2 else b"")
                        await reader.read()
                finally:
                    standing.value -= 1
                    writer.close()
            await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))  # not all at once

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


def hold_in_process(*args) -> None:
    asyncio.run(hold(*args))


@contextlib.contextmanager
def held(port: int, idle: int, slow: int):
    """Counts (opened ever, standing now) of the connections that are held for as long."""
    # A process of its own: the threads that work must not wait for it.
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
    """What is printed of so many images of 100 megapixels at once."""
    data = io.BytesIO()
    Image.new("RGBA", (LARGE_PX, LARGE_PX), (200, 30, 30, 128)).save(data, "PNG")
    before = memory_mb(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    found = load(port, pid, [data.getvalue()], requests=count, people=count, seconds=600)
    time.sleep(SETTLE_S)
    peak, after = memory_mb(pid, "VmHWM"), memory_mb(pid, "VmRSS")
    return (
        f"{count} images of {LARGE_PX**2 / 1e6:.0f} megapixels at once: {dict(found[1])} in "
        f"{found[3]:.0f} s\nmemory, MB: {before:.0f} before, {peak:.0f} at most, {after:.0f} after"
    )


# === The test ===


def latencies_line(latencies: list[float]) -> str:
    at = np.percentile(np.array(latencies) * 1000, [50, 90, 99, 100])
    return f"latency, ms: median {at[0]:.0f}, 90 % {at[1]:.0f}, 99 % {at[2]:.0f}, max {at[3]:.0f}"


def main(argv: list[str]) -> None:
    asked = flags.FLAGS
    files = ImageSearch().find(asked.pictures)
    files = files[:: max(1, len(files) // DISTINCT)][:DISTINCT]
    if not files:
        raise app.UsageError(f"--pictures: {asked.pictures}: no image in it")
    alone, reading, cpu = rates(Path(asked.model), files)
    bodies = [Path(file).read_bytes() for file in files]
    command = [sys.executable, "-m", "multitask", "serve", "--port=0", f"--model={asked.model}"]
    latencies, statuses, memory, seconds, taken = [], Counter(), [], 0.0, np.zeros(2)
    ratios, beside_latencies, beside_statuses, large_line = [], [], Counter(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next((x for x in server.stdout if "Serving" in x), "")
            port = int(re.search(r":(\d+) \(", address)[1])
            how = {"requests": asked.requests, "people": asked.concurrency}
            how["seconds"] = asked.seconds / asked.rounds
            # The first batches of each size take seconds, and belong to no round.
            load(port, server.pid, bodies, **how | {"requests": 10 * asked.concurrency})
            for _ in range(asked.rounds):
                before = np.array([cpu_s(server.pid), cpu_s("self")])
                found = load(port, server.pid, bodies, **how)
                taken += np.array([cpu_s(server.pid), cpu_s("self")]) - before
                latencies += found[0]
                statuses += found[1]
                memory += found[2]
                seconds += found[3]
                if not asked.idle + asked.slow:
                    continue
                with held(port, asked.idle, asked.slow) as (opened, standing):
                    beside = load(port, server.pid, bodies, **how)
                    print(
                        f"beside {asked.idle} idle and {asked.slow} slow: {standing.value} stand, "
                        f"{opened.value} were opened; {latencies_line(beside[0])}; without them "
                        f"{latencies_line(found[0])}",
                        flush=True,
                    )
                beside_latencies += beside[0]
                beside_statuses += beside[1]
                ratios.append(np.percentile(beside[0], 99) / np.percentile(found[0], 99))
            if asked.large:
                large_line = large(port, server.pid, asked.large)
        finally:
            server.terminate()
    rate = len(latencies) / seconds
    first, middle, last = (memory[round(share * (len(memory) - 1))] for share in (0.05, 0.5, 1))
    failed = sum(count for status, count in statuses.items() if status != 200)
    print(
        f"{len(latencies):,} requests, {asked.concurrency} at once, in {seconds:.0f} s\n"
        f"failures: {failed} {dict(statuses)}\n"
        f"a second: {rate:.1f}; the model alone {alone:.1f} (ratio {rate / alone:.2f}), "
        f"`multitask predict` {reading:.1f} (ratio {rate / reading:.2f})\n"
        f"CPU a request, ms: server {1000 * taken[0] / len(latencies):.1f}, this client "
        f"{1000 * taken[1] / len(latencies):.1f}; the model alone a picture {1000 * cpu:.1f}\n"
        f"{latencies_line(latencies)}\n"
        f"memory, MB: {first:.0f} after 5 %, {middle:.0f} after 50 %, {last:.0f} at the end, "
        f"{max(memory):.0f} at most"
    )
    if ratios:
        beside_failed = sum(count for status, count in beside_statuses.items() if status != 200)
        failed += beside_failed
        together = np.percentile(beside_latencies, 99) / np.percentile(latencies, 99)
        print(
            f"beside {asked.idle} idle and {asked.slow} slow connections: failures: "
            f"{beside_failed} {dict(beside_statuses)}; {latencies_line(beside_latencies)}\n"
            f"99 % with them / without: {together:.2f} of all rounds together; by round "
            f"{', '.join(f'{x:.2f}' for x in ratios)}; median {np.median(ratios):.2f}"
        )
    if large_line:
        print(large_line)
    sys.exit(bool(failed))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", required=True)
    flags.DEFINE_string("pictures", None, "folder that has JPEGs below it", required=True)
    flags.DEFINE_integer("requests", 10_000, "how many, in a round", lower_bound=1)
    flags.DEFINE_integer("concurrency", 32, "connections that ask at once", lower_bound=1)
    flags.DEFINE_float("seconds", 540, "stop asking after this time, in all rounds")
    flags.DEFINE_integer("rounds", 1, "rounds, each with and without --idle and --slow", 1)
    flags.DEFINE_integer("idle", 0, "idle connections beside those that ask", lower_bound=0)
    flags.DEFINE_integer("slow", 0, "slow uploads beside those that ask", lower_bound=0)
    flags.DEFINE_integer("large", 0, "images of 100 megapixels at once, at the end", lower_bound=0)
    app.run(main)
