"""Iterators that prefetch: threads compute the next items while the caller works on one."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, prefetch: int
) -> Iterator[Result]:
    """Map items on all cores, in order.

    Args:
        function: it should spend its time outside Python, or the threads wait for one another.
        items: read from the caller's thread.
        prefetch: how many results may wait for the caller.

    Yields:
        The result of each item. An exception of the function is raised at the item's turn.
    """
    pool = ThreadPoolExecutor(os.cpu_count(), "reader")
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > prefetch:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """Iterate over items; a thread takes the next one while the caller works on the one before."""
    pool = ThreadPoolExecutor(1, "prefetch")
    end: Any = object()
    try:
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
