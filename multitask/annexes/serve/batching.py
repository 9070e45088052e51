"""Collects single items of concurrent requests into batches for one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs a function of batches on items that arrive one at a time.

    A batch holds the items that arrived while the previous batch was running. If it is not full,
    it waits `wait_s` for further items.

    Args:
        run: items -> one result per item, in order; always called by the same thread.
        most: the largest number of items in a batch.
        wait_s: time to wait for further items.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        most: int,
        wait_s: float = 0.0,
    ):
        self._run, self._most, self._wait_s = run, most, wait_s
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")

    async def __call__(self, item: Item) -> Result:
        """Return the result of one item, or raise the error of `run` for its batch."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, future))
        return await future

    async def work(self) -> None:
        """Run batches until cancelled."""
        try:
            while True:
                await self._run_batch(await self._next_batch())
        finally:
            self._thread.shutdown()

    async def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch = [await self._waiting.get()]
        if self._waiting.qsize() + 1 < self._most:
            await asyncio.sleep(self._wait_s)
        while len(batch) < self._most and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return batch

    async def _run_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(
                self._thread, self._run, [item for item, _ in batch]
            )
        except Exception as error:  # only the requests of this batch fail
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # a request that was cancelled is done
                future.set_result(result)
