"""Fits that are resumed, and tests on several processes, give what one that runs through gives."""

import pytest
import world
from pages import OF_PAGES, make_teacher, pages
from runs import rows_of

from kdpl.callbacks.results import SaveTestResults
from kdpl.runtime.predictions import read_results


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_resumed_fit_of_either_stage_ends_with_the_same_weights(stage, table, tmp_path):
    world.write_teacher(tmp_path, **OF_PAGES)

    def fit(name, **options):
        module = make_teacher() if stage == "teacher" else world.make_student(tmp_path)
        data = pages(table, batch_size=4)
        world.fit(module, tmp_path / name, 2, domain=data, limit_train_batches=3, **options)
        return module.state_dict()

    whole = fit("whole", save=True)
    resumed = fit("resumed", ckpt_path=tmp_path / "whole" / "epoch=0.ckpt")
    assert whole.keys() == resumed.keys()
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert whole["scores.center"].any()


@pytest.mark.slow
def test_a_test_on_two_processes_has_the_same_numbers_and_tables(table, tmp_path):
    world.write_teacher(tmp_path, **OF_PAGES)
    folders = [tmp_path / "1", tmp_path / "2"]
    for processes, folder in enumerate(folders, start=1):
        options = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
        options |= {"callbacks": [SaveTestResults()], "use_distributed_sampler": False}
        module = world.make_student(tmp_path)
        trainer = world.quiet_trainer(folder, **options)
        trainer.test(module, datamodule=pages(table), verbose=False)
    assert read_results(folders[1]) == pytest.approx(read_results(folders[0]), abs=1e-6)
    # batches of other sizes round differently
    for name in ("test_predictions.csv", "per_class.csv"):
        texts, numbers = cells_of(folders[0] / name)
        other_texts, other_numbers = cells_of(folders[1] / name)
        assert other_texts == texts
        assert other_numbers == pytest.approx(numbers, abs=2e-6)


def cells_of(file):
    """Return the cells of a table that are not numbers, and the numbers, by row and column."""
    texts, numbers = {}, {}
    for i, row in enumerate(rows_of(file)):
        for column, cell in row.items():
            for j, part in enumerate(cell.split(";")):
                try:
                    numbers[i, column, j] = float(part)
                except ValueError:
                    texts[i, column, j] = part
    return texts, numbers
