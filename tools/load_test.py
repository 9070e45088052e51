"""Loads `multitask serve` on this machine, and says what it holds.

    python tools/load_test.py --model=runs/first/export --pictures=FOLDER [--requests=10000]

Starts a server, asks it from as many connections as --concurrency, and prints requests a second,
beside what the model alone and `multitask predict` do with the same pictures just before; latencies
(ms); the server's memory; and failures, of which there should be none. Linux.
"""

import contextlib
import http.client
import itertools
import os
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

BATCH = 16  # as the server's
DISTINCT = 200  # pictures, asked about again and again
ROUNDS = 10  # that files are read and answered
OWN_S = 10.0  # that the model is timed alone


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


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1e3


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
                        memory.append(resident_mb(pid))

    began = time.perf_counter()
    with ThreadPoolExecutor(people) as pool:
        for one in [pool.submit(person) for _ in range(people)]:
            one.result()
    return latencies, statuses, memory, time.perf_counter() - began


def main(argv: list[str]) -> None:
    asked = flags.FLAGS
    files = sorted(map(str, Path(asked.pictures).rglob("*.jpg")))
    files = files[:: max(1, len(files) // DISTINCT)][:DISTINCT]
    if not files:
        raise app.UsageError(f"--pictures: {asked.pictures}: no .jpg in it")
    alone, reading, cpu = rates(Path(asked.model), files)
    command = [sys.executable, "-m", "multitask", "serve", "--port=0", f"--model={asked.model}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next((x for x in server.stdout if "Serving" in x), "")
            port = int(re.search(r":(\d+) \(", address)[1])
            before = cpu_s(server.pid), cpu_s("self")
            latencies, statuses, memory, seconds = load(
                port,
                server.pid,
                [Path(file).read_bytes() for file in files],
                requests=asked.requests,
                people=asked.concurrency,
                seconds=asked.seconds,
            )
            taken = cpu_s(server.pid) - before[0], cpu_s("self") - before[1]
        finally:
            server.terminate()
    rate = len(latencies) / seconds
    at = np.percentile(np.array(latencies) * 1000, [50, 90, 99, 100])
    first, middle, last = (memory[round(share * (len(memory) - 1))] for share in (0.05, 0.5, 1))
    failed = sum(count for status, count in statuses.items() if status != 200)
    print(
        f"{len(latencies):,} requests, {asked.concurrency} at once, in {seconds:.0f} s\n"
        f"failures: {failed} {dict(statuses)}\n"
        f"a second: {rate:.1f}; the model alone {alone:.1f} (ratio {rate / alone:.2f}), "
        f"`multitask predict` {reading:.1f} (ratio {rate / reading:.2f})\n"
        f"CPU a request, ms: server {1000 * taken[0] / len(latencies):.1f}, this client "
        f"{1000 * taken[1] / len(latencies):.1f}; the model alone a picture {1000 * cpu:.1f}\n"
        f"latency, ms: median {at[0]:.0f}, 90 % {at[1]:.0f}, 99 % {at[2]:.0f}, max {at[3]:.0f}\n"
        f"memory, MB: {first:.0f} after 5 %, {middle:.0f} after 50 %, {last:.0f} at the end, "
        f"{max(memory):.0f} at most"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "folder that `multitask export` wrote", required=True)
    flags.DEFINE_string("pictures", None, "folder that has JPEGs below it", required=True)
    flags.DEFINE_integer("requests", 10_000, "how many", lower_bound=1)
    flags.DEFINE_integer("concurrency", 32, "connections that ask at once", lower_bound=1)
    flags.DEFINE_float("seconds", 540, "stop asking after this time")
    app.run(main)
