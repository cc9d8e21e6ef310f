import pytest
import torch
from kdpl.training_means import ImageMean, TrainingMeans

# means over batches of so many images
BATCHES = [(1.5, 4), (0.25, 3), (-2.0, 1), (7.0, 2)]
BY_HAND = (1.5 * 4 + 0.25 * 3 - 2.0 * 1 + 7.0 * 2) / 10


def counted(batches):
    means = TrainingMeans()
    for value, images in batches:
        means.count("train/loss", torch.tensor(value), images)
    return means


def of_several(*processes):
    """What a checkpoint keeps of these processes."""
    parts = [means.parts(lambda own: own)["train/loss"] for means in processes]
    return {"train/loss": torch.cat(parts)}


def test_each_image_counts_once_however_large_its_batch():
    assert counted(BATCHES)["train/loss"].compute().item() == pytest.approx(BY_HAND)


def test_in_half_precision_the_sums_are_not():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        means = counted([(1.0, 1)] * 1000)
    finally:
        torch.set_default_dtype(before)
    assert means["train/loss"].total.dtype == torch.float32
    assert means["train/loss"].images == 1000


def test_it_is_no_part_of_the_weights():
    means = counted(BATCHES)
    assert not means.state_dict()
    assert not list(means.parameters())
    assert not list(means.buffers())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_cut_changes_nothing(cut):
    parts = of_several(counted(BATCHES[:cut]))
    assert parts["train/loss"].shape == (1, 2)
    means = TrainingMeans()
    means.go_on(parts, 0, 1, torch.device("cpu"))
    for value, images in BATCHES[cut:]:
        means.count("train/loss", torch.tensor(value), images)
    assert means["train/loss"].compute().equal(counted(BATCHES)["train/loss"].compute())


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_another_number_of_processes_has_the_same_sum(processes):
    parts = of_several(counted(BATCHES[:2]), counted(BATCHES[2:]))
    after = [TrainingMeans() for _ in range(processes)]
    for rank, means in enumerate(after):
        means.go_on(parts, rank, processes, torch.device("cpu"))
    total = sum(float(means["train/loss"].total) for means in after)
    images = sum(float(means["train/loss"].images) for means in after)
    assert (total / images, images) == (pytest.approx(BY_HAND), 10)


def test_what_was_not_counted_yet_or_was_reset_is_not_kept():
    means = counted(BATCHES)
    means["train/other"] = ImageMean()
    means["train/loss"].reset()
    assert means.parts(lambda own: own) == {}
