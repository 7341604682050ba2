import json

import pytest
import torch

from ops_dcnv3 import backends, benchmark


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    """Triton's interpreter is of no interest to a benchmark."""
    monkeypatch.setattr(backends, '_TRITON_INTERPRETS', False)


@pytest.mark.parametrize('dtype', benchmark.TOLERANCES)
def test_times_every_backend(tmp_path, capsys, dtype):
    out = tmp_path / 'rows.json'
    arguments = ['--shapes', '1,6,7,2,8', '2,5,5,1,16', '--seconds', '0', '--dtype', dtype]
    benchmark.main([*arguments, '--json', str(out)])
    rows = json.loads(out.read_text())
    assert [row['backend'] for row in rows] == ['cpu', 'reference'] * 2
    assert all(row['forward_ms'] > 0 and row['error'] >= 0 for row in rows)
    text = capsys.readouterr().out
    assert 'geometric mean, cpu' in text and torch.__version__ in text


def test_refuses_to_time_wrong_results(monkeypatch):
    slow = backends.BACKENDS['reference']

    def wrong(*args):
        return slow.call(*args) * 1.01

    monkeypatch.setitem(backends.BACKENDS, 'cpu', slow._replace(call=wrong))
    with pytest.raises(RuntimeError, match=r"'cpu' is wrong on \(1, 6, 7, 2, 8\).*not timed"):
        benchmark.run([(1, 6, 7, 2, 8)], 'float32', 'cpu', 0)


def test_bad_shape(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['--shapes', '1,2,3'])
    assert 'N,H,W,groups,channels per group, got 1,2,3' in capsys.readouterr().err
