"""Batches: each request gets its own answer, and none waits without need."""

import asyncio
import threading

import pytest

from multitask.annexes.serve.batching import Batcher


def requested(run, items, *, most=4, wait_s=0.0):
    """What each item got, a result or an exception; all are asked at once."""

    async def main():
        batcher = Batcher(run, most=most, wait_s=wait_s)
        working = asyncio.create_task(batcher.work())
        result = await asyncio.gather(*map(batcher, items), return_exceptions=True)
        working.cancel()
        return result

    return asyncio.run(main())


def test_each_gets_its_own_result_in_batches_of_one_thread():
    batches, threads = [], set()

    def squares(items):
        batches.append(items)
        threads.add(threading.get_ident())
        return [item**2 for item in items]

    assert requested(squares, range(10)) == [item**2 for item in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_batch_is_what_came_while_the_one_before_was_run():
    batches, running, go_on = [], threading.Event(), threading.Event()

    def run(items):
        batches.append(items)
        running.set()
        assert go_on.wait(10)
        return items

    async def main():
        batcher = Batcher(run, most=16)
        working = asyncio.create_task(batcher.work())
        first = asyncio.create_task(batcher("first"))
        await asyncio.to_thread(running.wait, 10)
        others = [asyncio.create_task(batcher(i)) for i in range(5)]
        await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(first, *others) == ["first", 0, 1, 2, 3, 4]
        working.cancel()

    asyncio.run(main())
    assert batches == [["first"], [0, 1, 2, 3, 4]]


def test_a_failure_is_of_its_batch_alone():
    def run(items):
        if 2 in items:
            raise ValueError("two")
        return items

    result = requested(run, range(6), most=2)
    assert result[:2] + result[4:] == [0, 1, 4, 5]
    assert all(isinstance(error, ValueError) for error in result[2:4])


def test_who_waits_no_more_stops_nobody():
    async def main():
        batcher = Batcher(lambda items: items, most=4, wait_s=0.05)
        working = asyncio.create_task(batcher.work())
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert await stays == 2
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await batcher(3) == 3
        working.cancel()

    asyncio.run(main())
