import pytest


@pytest.fixture(scope="package")
def written(tmp_path_factory):
    """Folders of models of transformers by kind, each written once; no test changes one."""
    from hf_folders import write  # where transformers is installed

    root, found = tmp_path_factory.mktemp("models"), {}

    def get(kind):
        if kind not in found:
            found[kind] = write(root / kind, kind)
        return found[kind]

    return get
