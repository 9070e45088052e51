"""Read every image below a folder, and count what the formats and the color profiles change.

    python tools/measure_formats.py FOLDER

FOLDER holds image files of any kind, such as the test images of an image library. Files of the
same content count once. For docs/performance.md, the images of Pillow, sharp, libvips and image-rs
were read.
"""

import collections
import hashlib
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SAME = 2  # of 255 levels
FULL_PX = 10**6  # no image is reduced


def main(folder: Path) -> None:
    import numpy as np

    from multitask.data.conversion import as_readable, must_convert
    from multitask.data.decode_arrays import decode_array
    from multitask.data.image_kinds import CONVERTED, DIRECT, converted_kind, direct_kind
    from multitask.errors import InputError

    def decoded(data: bytes, *, convert_profiles: bool) -> "np.ndarray | str":
        try:
            return decode_array(data, target_px=FULL_PX, convert_profiles=convert_profiles)
        except InputError as error:
            return str(error)

    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    seconds: dict[str, float] = collections.defaultdict(float)
    deciding: list[float] = []
    seen = set()
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        kind = converted_kind(data) or direct_kind(data)
        digest = hashlib.sha256(data).digest()
        if kind is None or digest in seen:
            continue
        seen.add(digest)
        name = CONVERTED[kind] if converted_kind(data) else kind
        start = time.perf_counter()
        if must_convert(data) is None:
            deciding.append(time.perf_counter() - start)
        start = time.perf_counter()
        now = decoded(data, convert_profiles=True)
        seconds[name] += time.perf_counter() - start
        counts[name, "files"] += 1
        if isinstance(now, str):
            counts[name, "refused"] += 1
            reasons[f"{name}: {now}"] += 1
            continue
        counts[name, "read"] += 1
        plain = decoded(data, convert_profiles=False)
        if isinstance(plain, str) or np.array_equal(now, plain):
            continue
        counts[name, "changed by a profile"] += 1
        if int(np.abs(now.astype(int) - plain).max()) > SAME:
            counts[name, f"by more than {SAME} levels"] += 1
        if name in DIRECT:
            assert must_convert(data)
            assert as_readable(data) != data
    columns = ("files", "read", "refused", "changed by a profile", f"by more than {SAME} levels")
    print("| format | " + " | ".join(columns) + " | s |")
    print("|---" * (len(columns) + 2) + "|")
    for name in sorted(seconds):
        values = [str(counts[name, column]) for column in columns]
        print(f"| {name} | " + " | ".join(values) + f" | {seconds[name]:.1f} |")
    totals = [str(sum(counts[name, column] for name in seconds)) for column in columns]
    print("| all | " + " | ".join(totals) + f" | {sum(seconds.values()):.1f} |")
    print(f"Deciding that a file is not converted: {1e6 * np.median(deciding):.0f} µs (median)")
    for reason, count in reasons.most_common():
        print(f"{count:4} {reason}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
