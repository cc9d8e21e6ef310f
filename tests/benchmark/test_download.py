import shutil
import zipfile

import pytest
from benchmark_tree import make_tree
from runs import error_line

import kdpl.benchmark.download
from kdpl.__main__ import main
from kdpl.benchmark.download import REPOSITORY
from kdpl.data.readers.benchmark import BENCHMARKS

DTD_SPLIT = "split_zhou_DescribableTextures.json"


class Hub:
    """A repository of local files; what it was asked for is in ``asked``."""

    def __init__(self, folder):
        self.folder, self.asked, self.broken = folder, [], None

    def list_repo_files(self, repo_id):
        assert repo_id == REPOSITORY
        return [str(path) for path in sorted(files_of(self.folder))]

    def hf_hub_download(self, repo_id, filename, local_dir):
        assert repo_id == REPOSITORY
        self.asked.append(filename)
        target = local_dir / filename
        if target.exists():  # as the real one, which compares with the server
            return str(target)
        if filename == self.broken:
            raise ConnectionError("Connection reset by peer. Retry later.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / filename, target)
        return str(target)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(kdpl.benchmark.download, "HfApi", lambda: fake)
    monkeypatch.setattr(kdpl.benchmark.download, "hf_hub_download", fake.hf_hub_download)
    return fake


def pack(hub, name, archive, inside="", apart=()):
    """Put a miniature into an archive of the hub, in the folder ``inside``, and files ``apart`` from it."""
    folder = make_tree(name, hub.folder.parent / "made")
    (hub.folder / archive).parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(hub.folder / archive, "w") as packed:
        for path in files_of(folder):
            if str(path) in apart:
                shutil.copy(folder / path, hub.folder)
            else:
                packed.write(folder / path, inside / path)
    return folder


def fetch(name, root):
    return main(["data", "download", name, f"--root={root}"])


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "archive", "inside"),
    [
        ("food101", "food-101.zip", "food101"),
        ("caltech101", "data/caltech-101.zip", ""),
        ("imagenet_a", "imagenet-adversarial.zip", "imagenet-adversarial"),
    ],
)
def test_archive_is_unpacked_into_the_layout_and_nothing_else_stays(
    tmp_path, hub, name, archive, inside
):
    made = pack(hub, name, archive, inside)
    for other in ("README.md", "classnames.txt", "dtd.zip", "imagenet-annotations.zip"):
        (hub.folder / other).touch()
    assert fetch(name, tmp_path / "root") == 0
    assert hub.asked == [archive]
    folder = tmp_path / "root" / BENCHMARKS[name].folder
    assert files_of(folder) == files_of(made)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [folder.name]


def test_an_interrupted_download_is_resumed_and_a_complete_one_does_nothing(tmp_path, hub, capsys):
    made = pack(hub, "dtd", "dtd.zip", "dtd", apart=[DTD_SPLIT])
    hub.broken = DTD_SPLIT
    assert fetch("dtd", tmp_path / "root") == 1
    error_line(capsys, f"dataset dtd cannot be downloaded from {REPOSITORY} (Connection reset")
    assert not (tmp_path / "root/dtd").exists()
    (hub.folder / "dtd.zip").write_bytes(b"not asked for again")
    hub.broken = None
    assert fetch("dtd", tmp_path / "root") == 0
    assert files_of(tmp_path / "root/dtd") == files_of(made)
    assert fetch("dtd", tmp_path / "root") == 0
    assert hub.asked == ["dtd.zip", DTD_SPLIT] * 2
    assert capsys.readouterr().out.splitlines()[-1].endswith("is there already: nothing to do")


def test_hostile_archive_of_an_unknown_form_leaves_no_dataset(tmp_path, hub, capsys):
    with zipfile.ZipFile(hub.folder / "dtd.zip", "w") as archive:
        archive.writestr("dtd/images/1.jpg", b"1")
        archive.writestr("../../outside", b"2")
    assert fetch("dtd", tmp_path / "root") == 1
    error_line(capsys, "holds dtd in an unknown form")
    assert not list(tmp_path.rglob("outside"))
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".dtd.download"]


def test_an_incomplete_folder_is_left_alone(tmp_path, hub, capsys):
    folder = make_tree("dtd", tmp_path / "root")
    (folder / DTD_SPLIT).unlink()
    before = files_of(folder)
    assert fetch("dtd", tmp_path / "root") == 1
    error_line(capsys, f"folder {folder} exists but is incomplete (")
    assert (files_of(folder), hub.asked) == (before, [])


def test_imagenet_gets_instructions(tmp_path, hub, capsys):
    assert fetch("imagenet", tmp_path / "root") == 1
    assert f"{tmp_path / 'root/imagenet/images'}/val/n01440764/" in capsys.readouterr().out
    assert (hub.asked, (tmp_path / "root").exists()) == ([], False)
