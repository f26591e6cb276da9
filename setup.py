"Packaging. The metadata lives in settings.ini, which nbdev reads too; edit it there."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, suffix = cfg['lib_path'], '_requirements'

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text('utf-8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl'], 'Changes': cfg['git_url']+'/blob/main/CHANGELOG.md'},
    classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed'],
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE'],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={'': ['*.html', '*.css', '*.js'],
                  lib: ['py.typed', 'pictures/packs/*.zip', 'bases/tiny/**', 'judging/weights/**', 'workshop/*.txt']},
    install_requires=shlex.split(cfg['requirements']),
    extras_require={k.removesuffix(suffix): shlex.split(v) for k,v in cfg.items() if k.endswith(suffix)},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
