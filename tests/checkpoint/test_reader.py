"""Reading: what loads, and the message for every kind of bad file."""

import functools
import http.server
import pickle
import re
import sys
import threading
import types

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from internimage_mm.checkpoint import CheckpointError, CheckpointNotFoundError, read_checkpoint


@pytest.fixture
def good_file(tmp_path):
    path = tmp_path / 'good.pth'
    torch.save({'state_dict': {'w': torch.arange(1000.0)}}, path)
    return path


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r'no_such\.pth does not exist') as error:
        read_checkpoint(tmp_path / 'no_such.pth')
    assert isinstance(error.value, FileNotFoundError)


def test_directory(tmp_path):
    with pytest.raises(CheckpointError, match='is a directory'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.99])
def test_truncated_file(good_file, share):
    content = good_file.read_bytes()
    good_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r'good\.pth is truncated or not a PyTorch'):
        read_checkpoint(good_file)


def test_file_of_pytorch_before_1_6(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save({'model': {'w': torch.ones(3)}}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path)['model']['w'], torch.ones(3))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match='is truncated'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'<!DOCTYPE html>\n<html><body>404</body></html>', "it begins with b'<!DOCTYPE html>"),
        (b'# Settings', "it begins with b'# Settings', as a web page or a text does"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, what):
    path = tmp_path / 'page.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'page\.pth is not a checkpoint.*{what}'):
        read_checkpoint(path)


class RunsCode:
    ran = False

    def __setstate__(self, state):
        RunsCode.ran = True


def test_code_is_refused_and_named(tmp_path):
    thing = RunsCode()
    thing.x = 1
    for new_format in (True, False):
        path = tmp_path / 'evil.pth'
        torch.save({'thing': thing}, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(CheckpointError, match=r'evil\.pth holds Python objects.*RunsCode'):
            read_checkpoint(path)
    assert not RunsCode.ran


class GetsAnything:
    def __reduce__(self):
        return getattr, (torch.Tensor, 'apply_')


def test_getattr_is_not_allowed_in_general(tmp_path):
    # A pickled HistoryBuffer needs getattr for its four statistics; nothing else gets it.
    torch.save({'thing': GetsAnything()}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match=r"evil\.pth holds .*getattr.*'apply_'"):
        read_checkpoint(tmp_path / 'evil.pth')


def test_yacs_config_loads_without_yacs(tmp_path, monkeypatch):
    # The class as yacs defines it: a dict with attributes, pickled by its module and name.
    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    module = types.ModuleType('yacs.config')
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    config = CfgNode({'MODEL': CfgNode({'TYPE': 'intern_image', 'DROP_PATH_RATE': 0.1})})
    config.__dict__['__immutable__'] = True
    torch.save({'model': {'w': torch.ones(2)}, 'config': config}, tmp_path / 'cls.pth')
    monkeypatch.delitem(sys.modules, 'yacs.config')
    monkeypatch.delitem(sys.modules, 'yacs')

    checkpoint = read_checkpoint(tmp_path / 'cls.pth')
    assert checkpoint['config']['MODEL']['TYPE'] == 'intern_image'
    assert torch.equal(checkpoint['model']['w'], torch.ones(2))
    # The stand-in is allowed while we read, nowhere else.
    with pytest.raises(pickle.UnpicklingError, match='CfgNode'):
        torch.load(tmp_path / 'cls.pth', weights_only=True)


def test_everything_in_an_mmengine_checkpoint_loads(tmp_path):
    history = HistoryBuffer([1.5, 2.5], [1, 1])
    runtime = {
        'best_score': np.float64(0.5),
        'iter': np.int64(7),
        'half': np.float16(0.25),
        'names': np.array(['a', 'bc']),
        'flags': np.array([True, False]),
        **{t: np.arange(3, dtype=t) for t in ('uint8', 'int16', 'uint32', 'int64', 'float32')},
    }
    hub = {'log_scalars': {'train/loss': history}, 'runtime_info': runtime, 'resumed_keys': {}}
    torch.save({'meta': {'iter': 7}, 'message_hub': hub}, tmp_path / 'iter_7.pth')
    # mmengine's own loading, as when its runner resumes, and ours.
    for load in (read_checkpoint, CheckpointLoader.load_checkpoint):
        hub = load(str(tmp_path / 'iter_7.pth'))['message_hub']
        assert hub['log_scalars']['train/loss'].mean() == 2.0
        for key, value in runtime.items():
            assert np.array_equal(hub['runtime_info'][key], value), key


@pytest.mark.parametrize('package', [b'numpy.core', b'numpy._core'])
def test_arrays_of_numpy_1_and_2(tmp_path, package):
    """Both major versions of NumPy name the module of the same function differently."""
    path = tmp_path / 'a.pth'
    torch.save({'value': np.float64(1.5)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b'core.multiarray\nscalar\n') == 1
    path.write_bytes(re.sub(rb'numpy\._?core\.multi', package + b'.multi', content))
    assert read_checkpoint(path)['value'] == 1.5


def test_safetensors_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    (tmp_path / 'm.safetensors').write_bytes(b'\0' * 100)
    with pytest.raises(CheckpointError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'm.safetensors')


def test_other_mmengine_file_backend(good_file):
    from mmengine.fileio import LocalBackend, register_backend

    class MemoryBackend(LocalBackend):
        def get_local_path(self, filepath):
            return super().get_local_path(filepath.replace('copy://', '/'))

    register_backend('copy', MemoryBackend, prefixes='copy', force=True)
    checkpoint = read_checkpoint(f'copy://{str(good_file)[1:]}')
    assert torch.equal(checkpoint['state_dict']['w'], torch.arange(1000.0))


@pytest.fixture
def server(good_file, monkeypatch, tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=good_file.parent)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
        monkeypatch.setattr(torch.hub, '_hub_dir', None)
        for variable in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
            monkeypatch.delenv(variable, raising=False)
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()
        thread.join()


def test_address(server, good_file):
    expected = torch.arange(1000.0)
    assert torch.equal(read_checkpoint(f'{server}/good.pth')['state_dict']['w'], expected)
    good_file.unlink()  # the second time it comes from the cache
    assert torch.equal(read_checkpoint(f'{server}/good.pth')['state_dict']['w'], expected)


def test_address_that_does_not_exist(server):
    with pytest.raises(CheckpointError, match=r'http://.*/none\.pth cannot be downloaded.*404'):
        read_checkpoint(f'{server}/none.pth')
