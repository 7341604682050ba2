import pytest

from internimage_mm.checkpoint import loading


@pytest.fixture
def logged(monkeypatch):
    """What loading writes to the log."""
    messages = []
    monkeypatch.setattr(loading, 'print_log', lambda message, **kwargs: messages.append(message))
    return messages
