import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Our configs are read from any folder."""
    monkeypatch.chdir(tmp_path)
