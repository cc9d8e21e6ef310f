"""A fit of several processes that was cut within an epoch."""

import fits
import pytest
import world


class Cut(fits.Notes):
    """Leaves the checkpoint of a fit that is cut after so many steps."""

    def on_train_batch_end(self, trainer, *args):
        super().on_train_batch_end(trainer, *args)
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.folder / "cut.ckpt")


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_it_logs_the_means_over_all_images_of_the_epoch(stage, tmp_path):
    world.write_teacher(tmp_path, class_names=fits.DIGITS, num_base=None)

    def fit(name, processes, **options):
        module = fits.teacher() if stage == "teacher" else fits.student(tmp_path)
        data = fits.digits(12 // processes)
        return fits.fit(module, data, tmp_path / name, processes, epochs=1, steps=10, **options)

    def losses(seen):
        return {name: value for name, value in seen["metrics"].items() if name.startswith("train/")}

    whole = fit("whole", 2, notes=Cut)
    assert losses(whole[0])
    file = tmp_path / "whole/cut.ckpt"
    again = fit("again", 2, ckpt_path=file)
    for process, before in zip(again, whole, strict=True):
        assert len(process["steps"]) == 6
        assert losses(process) == losses(before)
    (alone,) = fit("alone", 1, ckpt_path=file)
    assert len(alone["steps"]) == 6
    assert losses(alone) == pytest.approx(losses(whole[0]), rel=1e-5)
