"""What may be written, and that it is complete or not there."""

import os

import pytest

from internimage_mm.output_file import folder_moved_when_complete, renamed_when_complete

BOTH = pytest.mark.parametrize('complete', [renamed_when_complete, folder_moved_when_complete])


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_only_regular_files_are_replaced(tmp_path, make):
    target = tmp_path / 'x'
    make(target)
    kind = os.lstat(target).st_mode
    with pytest.raises(OSError, match='not a regular file'), renamed_when_complete(target) as file:
        file.write_text('lost')
    assert os.lstat(target).st_mode == kind
    assert os.listdir(tmp_path) == ['x']


@BOTH
def test_symbolic_link_stays(tmp_path, complete):
    link, target = tmp_path / 'link', tmp_path / 'target'
    link.symlink_to(target)
    for text in ('new', 'replaced'):
        with complete(link) as file:
            file.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(os.listdir(tmp_path)) == ['link', 'target']


@BOTH
def test_old_one_stays_when_writing_fails(tmp_path, complete):
    target = tmp_path / 'x'
    target.write_text('old')
    with pytest.raises(OSError, match='full'), complete(target) as file:
        file.write_text('half')
        raise OSError('full')
    assert target.read_text() == 'old'
    assert os.listdir(tmp_path) == ['x']
