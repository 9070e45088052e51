"""Prefetched items keep their order, their exceptions, and their limit."""

import itertools
import threading

import pytest

from multitask.prefetch import parallel_map, prefetched

WAIT_S = 10


def test_results_keep_the_order_of_their_items():
    later = threading.Event()

    def square(number):
        if number == 0:  # the first one is finished last
            later.wait(WAIT_S)
        elif number == 1:
            later.set()
        return number**2

    assert list(parallel_map(square, range(50), prefetch=4)) == [n**2 for n in range(50)]
    assert list(parallel_map(square, [], prefetch=4)) == []


def test_no_more_than_the_limit_is_prefetched():
    begun = []
    results = parallel_map(begun.append, itertools.count(), prefetch=5)
    for taken in range(1, 4):
        next(results)
        assert len(begun) <= taken + 5
    results.close()
    assert len(begun) <= 3 + 5


def test_an_exception_comes_at_the_turn_of_its_item():
    results = parallel_map(lambda number: 1 // (2 - number), range(5), prefetch=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_one_item_is_taken_while_the_caller_works():
    taken = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(taken):
            event.set()
            yield number

    following = prefetched(items())
    assert next(following) == 0
    assert taken[1].wait(WAIT_S)  # although nobody asked for it
    assert not taken[2].is_set()
    assert list(following) == [1, 2]


def test_an_exception_of_the_items_comes_after_those_before_it():
    def items():
        yield 0
        yield 1
        raise OSError("gone")

    following = prefetched(items())
    assert [next(following), next(following)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(following)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_no_thread_stays_if_the_caller_stops(taken):
    before = threading.active_count()
    for results in (parallel_map(str, range(100), prefetch=8), prefetched(iter(range(100)))):
        for _ in range(taken):
            next(results)
        results.close()
    assert threading.active_count() == before
