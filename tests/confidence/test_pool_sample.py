"""The features of a sample of the pool beside a classifier."""

import torch
import world
from runs import refused

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.confidence import companions
from kdpl.confidence.pool_sample import PoolSample
from kdpl.data.readers.digits import open_digit, read_digits


def test_a_fit_keeps_what_the_classifier_finds_in_the_pool(classifier):
    loaded, data = Classifier.load(classifier), world.digits(batch_size=8)
    kept = PoolSample.load(classifier, loaded.fingerprint(), loaded.vectors.vectors.shape[1])
    images = [data.splits.open_image(record.source) for record in data.splits.train]
    assert len(kept.features) == len(images) == 700
    torch.testing.assert_close(kept.features.float(), loaded.embed(images), atol=1e-3, rtol=1e-3)


def test_without_training_images_or_steps_there_is_none(tmp_path, teacher_folder):
    (tmp_path / "images.csv").write_text("image,label,split\na.png,cat,test\nb.png,dog,test\n")
    data = world.DomainDataModule("table", root=str(tmp_path / "images.csv"))
    assert companions.pool_of(None, data, None) == []
    world.fit(world.make_student(teacher_folder), tmp_path, epochs=0, domain=world.digits(8))
    assert (tmp_path / "classifier/unknown.safetensors").exists()
    assert not (tmp_path / "classifier" / PoolSample.file).exists()


def test_a_classifier_takes_its_place_but_does_not_copy_it(folder, tmp_path):
    loaded = Classifier.load(folder)
    loaded.save(tmp_path / "copy")
    loaded.save(folder)
    for written in (folder, tmp_path / "copy"):
        assert (written / "model.safetensors").exists()
        assert not (written / PoolSample.file).exists()


def test_a_sample_of_another_classifier_is_refused(folder, tmp_path, capsys):
    PoolSample(torch.ones(3, 24).half()).save(folder, "ab")
    (tmp_path / "images/one").mkdir(parents=True)
    open_digit(read_digits().test[0].source).save(tmp_path / "images/one/0.png")
    code = main(["calibrate", str(folder), str(tmp_path / "images")])
    refused(capsys, code, "pool_sample.safetensors", "belongs to another")
