"""Single questions, asked by many at once, answered in batches by one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs a function of many for those who come one at a time.

    A batch is whatever came while the one before was run; where nothing did, the first waits a
    moment for others.

    Args:
        run: items -> as many results, in order; always called by the same thread.
        most: items of a batch.
        wait_s: for others, where there is room.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], *, most: int, wait_s=0.0):
        self._run, self._most, self._wait_s = run, most, wait_s
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")

    async def __call__(self, item: Item) -> Result:
        """The item's own result; what `run` raised, where it did."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, future))
        return await future

    async def work(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                await self._answer(await self._batch())
        finally:
            self._thread.shutdown()

    async def _batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch = [await self._waiting.get()]
        if self._waiting.qsize() + 1 < self._most:
            await asyncio.sleep(self._wait_s)
        while len(batch) < self._most and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return batch

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(
                self._thread, self._run, [item for item, _ in batch]
            )
        except Exception as error:  # theirs who asked, and no reason to stop for the others
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # it is, where nobody waits any more
                future.set_result(result)
