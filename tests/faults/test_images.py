import pytest
from runs import STUDENT, configs, files_of, folder_fit, image_folder

from kdpl.__main__ import main
from kdpl.callbacks.throughput import Throughput


def fit(root, out, *more):
    return main([*folder_fit(root, out), *more])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_resumes_with_equal_results_once_a_missing_image_is_back(workers, tmp_path, capsys, monkeypatch):
    root = image_folder(tmp_path / "dätä")
    image, away = root / "train/dog/2.png", tmp_path / "away.png"
    original = Throughput.on_train_batch_end
    number = f"--data.init_args.num_workers={workers}"

    def vanish(self, trainer, *args):
        if trainer.global_step == 2:
            image.rename(away)
        return original(self, trainer, *args)

    assert fit(root, tmp_path / "whole", number) == 0
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", vanish)
        assert fit(root, out, number) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: image {image} does not exist: "), line
    assert "(after " in line
    assert f"{out}/checkpoints/last.ckpt is kept)" in line
    away.rename(image)
    assert fit(root, out, number) == 0
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_is_written_into_a_read_only_dataset(tmp_path, read_only, classifier):
    data = image_folder(tmp_path / "data")
    before = files_of(data)
    root = read_only(data)
    assert fit(root, tmp_path / "out") == 0
    place = [f"--model.init_args.teacher={tmp_path}/out", f"--data.init_args.teacher_cache={tmp_path}/cache"]
    student = [*configs("data/folder.yaml", "trainer/cpu.yaml"), *STUDENT, f"--data.init_args.root={root}", *place]
    assert main(["cache", *student, "--views=1"]) == 0
    assert main(["init", str(root), f"--out={tmp_path}/init"]) == 0
    assert main(["predict", str(classifier), str(root), f"--out={tmp_path}/answers.csv"]) == 0
    assert files_of(data) == before


def test_a_read_only_place_for_results_is_one_sentence(tmp_path, read_only, classifier, capsys):
    (tmp_path / "place").mkdir()
    place = read_only(tmp_path / "place")
    root = image_folder(tmp_path / "data")
    for command in (
        lambda: fit(root, place / "out"),
        lambda: main(["predict", str(classifier), str(root), f"--out={place}/answers.csv"]),
        lambda: main(["init", str(root), f"--out={place}/init"]),
    ):
        capsys.readouterr()
        assert command() == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {place}"), line
        assert "Read-only file system: check path, permissions and disk" in line


def test_paths_with_spaces_umlauts_and_great_length_are_paths(tmp_path):
    folder = tmp_path / "mit Leerzeichen & Ümläuten" / ("lang" * 50) / ("länger" * 30)
    root = image_folder(folder / "Bilder neu", classes=("Bär", "Hund, groß"))
    assert fit(root, folder / "ein Lauf", "--data.init_args.num_workers=1") == 0
    assert (folder / "ein Lauf" / "class_vectors.safetensors").is_file()
