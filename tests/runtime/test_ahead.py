import threading
from functools import partial

import pytest
import torch

from kdpl.errors import DataError
from kdpl.runtime.ahead import classify_ahead


def prepare(item):
    if item < 0:
        raise DataError(f"{item} is negative: give another")
    return torch.full((3, 2, 2), item, dtype=torch.uint8)


def network(images):
    return [("classes of", value) for value in images[:, 0, 0, 0].tolist()]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 3), (3, 1), (3, 3), (50, 3)])
@pytest.mark.parametrize("items", [[], [*range(23)], [3, -1, 5, -2, -3, -4, 7]])
def test_every_item_comes_once_in_order_with_its_own_classes_or_its_own_error(
    batch_size, workers, items
):
    classified = list(classify_ahead(iter(items), prepare, network, batch_size, workers))
    assert [item for item, _ in classified] == items
    for item, classes in classified:
        if item < 0:
            assert str(classes).startswith(f"{item} is negative")
        else:
            assert classes == ("classes of", item)


def test_an_error_of_the_program_is_not_taken_for_a_bad_image():
    def broken(item):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(classify_ahead([1, 2, 3], broken, network, 1, 2))


def test_items_are_read_no_further_ahead_than_the_threads_need():
    read = []

    def items():
        for i in range(1000):
            read.append(i)
            yield i

    classified = classify_ahead(items(), prepare, network, 4, 2)
    next(classified)
    assert len(read) <= (2 + 3) * 4
    classified.close()
    assert len(read) <= (2 + 3) * 4


def test_batches_are_worked_on_at_the_same_time_each_in_one_thread_of_torch(request):
    together, threads = threading.Barrier(2, timeout=30), set()
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(3)

    def meeting(images):
        together.wait()  # breaks unless two batches are here at once
        threads.add(torch.get_num_threads())
        return network(images)

    assert len(list(classify_ahead(range(8), prepare, meeting, 2, 2))) == 8
    assert threads == {1}
    assert torch.get_num_threads() == 3
