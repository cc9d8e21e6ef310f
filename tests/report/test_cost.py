import pytest
import torch
from report_pages import section
from torch import nn

from kdpl.report.cost import Encoder, measure, processor

CPU = torch.device("cpu")


class Machine:
    """Counts milliseconds of work, and stops for 300 of them after every 300 of work."""

    def __init__(self, monkeypatch):
        self.work, self.threads = 0, set()
        for clock in ("thread_time", "perf_counter"):
            monkeypatch.setattr(f"kdpl.report.cost.time.{clock}", self.now)

    def now(self):
        return (self.work + 300 * (self.work // 300)) / 1000

    def encoder(self, *milliseconds):
        """Encoder that works so long for each batch in turn, and then as for the last."""
        left = list(milliseconds)

        def encode(images):
            self.work += left.pop(0) if len(left) > 1 else left[0]
            self.threads.add(torch.get_num_threads())
            return images

        return Encoder(encode, [nn.Linear(1, 1)], 8)


def test_on_a_busy_machine_short_batches_are_not_faster_than_long_ones(monkeypatch):
    machine = Machine(monkeypatch)
    result = measure({"teacher": machine.encoder(1200), "student": machine.encoder(100)}, CPU)
    rates = {name: cost["images_per_s"] for name, cost in result.items()}
    assert rates["student"] / rates["teacher"] == pytest.approx(12, rel=0.15)


def test_the_speed_is_that_of_one_thread_and_others_have_theirs_again(monkeypatch):
    machine, before = Machine(monkeypatch), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure({"student": machine.encoder(300)}, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert machine.threads == {1}
    assert processor()


@pytest.mark.parametrize(("second", "words"), [(300, False), (600, True)])
def test_a_speed_that_no_second_turn_confirms_is_called_uncertain(second, words, monkeypatch):
    machine = Machine(monkeypatch)
    # the first batch is not counted
    encoders = {"teacher": machine.encoder(300, 300, second), "student": machine.encoder(300)}
    costs = {"costs": measure(encoders, CPU), "device": "a CPU", "gaps": {}, "files": {}}
    text = section("cost", costs)
    assert (text.count("not certain") == 1) == words
    assert ("turn took 100 % longer" in text) == words
