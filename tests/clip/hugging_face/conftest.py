import pytest


@pytest.fixture(scope="package")
def written(tmp_path_factory):
    """Folders of models of transformers by kind, each written once; no test changes one."""
    from hf_folders import write  # where transformers is installed

    root, folders = tmp_path_factory.mktemp("models"), {}

    def get(kind):
        if kind not in folders:
            folders[kind] = write(root / kind, kind)
        return folders[kind]

    return get


@pytest.fixture(scope="package")
def cached():
    """Lay a folder into a cache of the hub, as the repository someone/siglip."""

    def lay(cache, folder):
        repository, commit = cache / "models--someone--siglip", "a" * 40
        (repository / "snapshots").mkdir(parents=True)
        (repository / "snapshots" / commit).symlink_to(folder)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)

    return lay
