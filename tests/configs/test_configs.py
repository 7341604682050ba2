"""Every config parses and builds; metafiles, READMEs and configs name the same models."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from release import ours

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
CONFIG_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts and path.stem not in ('boxes', 'labels')  # parts of the recipes
)
METAFILES = sorted(path.relative_to(ROOT).as_posix() for path in CONFIGS.rglob('metafile.yml'))

SHORT_NUMBERS = {'K': 1e3, 'M': 1e6, 'G': 1e9, 'B': 1e9, 'T': 1e12}


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def table_rows(readme):
    """README table rows with a config link: config file -> (cells by column name, weights URL)."""
    rows, columns = {}, []
    for line in readme.splitlines():
        if not line.startswith('|'):
            columns = []
            continue
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        columns = columns or cells
        config = re.search(r'\[config\]\((?:\./)?([^)]+)\)', line)
        if config:
            weights = re.search(r'\[model\]\(([^)]+)\)', line)
            assert config[1] not in rows, f'two rows for {config[1]}'
            rows[config[1]] = dict(zip(columns, cells, strict=True)), weights and weights[1]
    return rows


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_config_parses_and_survives_a_dump(name, tmp_path):
    cfg = ours.parse(name)
    assert cfg.default_scope in ('mmdet', 'mmseg', 'mmpretrain')
    assert 'internimage_mm' in cfg.custom_imports['imports']
    assert cfg.model and cfg.optim_wrapper and cfg.test_evaluator
    # What a Runner writes to the work directory, without the slow formatting, and reads there.
    Config(cfg.to_dict(), format_python_code=False).dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.to_dict() == cfg.to_dict()


def test_bases_are_inside_the_repository():
    # `mmseg::` bases do not resolve on every supported stack.
    assert [path for path in CONFIGS.rglob('*.py') if '::' in path.read_text()] == []


@pytest.mark.parametrize('metafile', METAFILES)
def test_metafile_readme_and_configs_agree(metafile):
    folder = (ROOT / metafile).parent
    meta = read_yaml(metafile)
    collections = {entry['Name'] for entry in meta['Collections']}
    models = {model['Name']: model for model in meta['Models']}
    assert len(models) == len(meta['Models'])
    assert set(models) == {path.stem for path in folder.glob('*.py')}

    rows = table_rows((folder / 'README.md').read_text())
    assert set(rows) == {f'{name}.py' for name in models}
    for name, model in models.items():
        assert model['In Collection'] in collections
        assert model['Config'] == f'configs/{folder.name}/{name}.py'
        cells, weights = rows[f'{name}.py']
        # A few official models have no published weights, metrics or FLOPs.
        assert weights == model.get('Weights')
        results = model.get('Results', [])
        metrics = {k: v for result in results for k, v in result['Metrics'].items()}
        for metric, value in metrics.items():
            column = {'mIoU': 'mIoU (ss)', 'mIoU(ms+flip)': 'mIoU (ms)'}.get(metric, metric)
            assert float(cells[column]) == value
        for column, field in (('params', 'Parameters'), ('FLOPs', 'FLOPs')):
            if field == 'FLOPs' and field not in model['Metadata']:
                assert cells[column] == '-'
                continue
            number, unit = cells[column][:-1], cells[column][-1]
            digits = len(number.partition('.')[2])
            assert round(model['Metadata'][field] / SHORT_NUMBERS[unit], digits) == float(number)


def test_readmes_say_whose_numbers_they_are():
    for metafile in METAFILES:
        readme = ' '.join((ROOT / metafile).with_name('README.md').read_text().split())
        assert 'published by the official release, not re-measured here' in readme


def test_model_index_imports_every_metafile():
    assert sorted(read_yaml('model-index.yml')['Import']) == METAFILES
    collections = [entry['Name'] for path in METAFILES for entry in read_yaml(path)['Collections']]
    assert len(set(collections)) == len(collections)


def test_commands_for_the_published_numbers():
    """docs/published.md: each row's config, weights and numbers are those of the metafiles."""
    models = {m['Config']: m for file in METAFILES for m in read_yaml(file)['Models']}
    commands = re.findall(
        r'^\| ([^|]*) \| `python tools/test.py (\S+) \$W/([\w.-]+)',
        (ROOT / 'docs' / 'published.md').read_text(),
        re.MULTILINE,
    )
    assert len(commands) > 20
    for claim, config, weights in commands:
        model = models[config]
        assert model['Weights'].endswith(f'/{weights}')
        for result in model['Results']:
            assert all(str(value) in claim for value in result['Metrics'].values()), claim
