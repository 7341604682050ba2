"""Pages of the site that stand elsewhere in the repository, and the table of all models.

Run by mkdocs-gen-files. README and the READMEs of ``configs/`` keep their links, which are
changed to where the pages lie in the site; a file that they link to is put into the site too.
"""

import re
from pathlib import Path

import mkdocs_gen_files
import yaml

ROOT = Path(__file__).parents[2]
TOP = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
}


def write(name: str, text: str, source: str | None = None) -> None:
    with mkdocs_gen_files.open(name, 'w') as file:
        file.write(text)
    if source is not None:
        mkdocs_gen_files.set_edit_path(name, source)


def copy_linked(path: Path) -> None:
    """A config, list or source file that a page links to, to be read as it is."""
    with mkdocs_gen_files.open(str(path.relative_to(ROOT)), 'wb') as file:
        file.write(path.read_bytes())


def title(link: re.Match) -> str:
    """A link that shows a file of docs/ shows its title in the site."""
    return f'[{(ROOT / link[1]).read_text().splitlines()[0][2:]}]({link[1]}'


for source, target in TOP.items():
    text = re.sub(r'\[(docs/\w+\.md)\]\(\1', title, (ROOT / source).read_text())
    text = text.replace('](docs/', '](')
    for other, page in TOP.items():
        text = text.replace(f']({other})', f']({page})')
    write(target, text.replace('](LICENSE)', '](LICENSE.txt)'), source)

write('LICENSE.txt', (ROOT / 'LICENSE').read_text())
copy_linked(ROOT / 'tests/configs/explained_differences.yml')

rows = []
for folder in sorted((ROOT / 'configs').iterdir()):
    readme = folder / 'README.md'
    if not readme.exists():
        continue
    write(str(readme.relative_to(ROOT)), readme.read_text().replace('](../../docs/', '](../../'))
    for config in sorted(folder.glob('*.py')):
        copy_linked(config)
    metafile = folder / 'metafile.yml'
    for model in yaml.safe_load(metafile.read_text())['Models'] if metafile.exists() else ():
        results = [
            f'{name} {value}'
            for result in model.get('Results', ())
            for name, value in result['Metrics'].items()
        ]
        weights = f'[model]({model["Weights"]})' if model.get('Weights') else ''
        parameters = model['Metadata']['Parameters'] / 1e6
        rows.append(
            f'| [`{model["Name"]}`]({model["Config"]}) | {parameters:,.0f} M | '
            f'{", ".join(results) or "none published"} | {weights} | '
            f'[{folder.name}](configs/{folder.name}/README.md) |'
        )

write(
    'zoo.md',
    f"""# All models

{len(rows)} configs of the official release. The results are **published by it, not measured again
here**. Weights are the released files, which load as they are. The page of a data set says how to
prepare it, and has the commands to train and test.

| config | parameters | results | weights | data set |
| --- | --- | --- | --- | --- |
"""
    + '\n'.join(rows)
    + '\n',
)
