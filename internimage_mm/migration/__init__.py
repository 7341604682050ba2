"""Configs of the official repository (mmcv 1.x, mmdet 2.x, mmseg 0.x) for today's stack.

``tools/migrate_config.py`` is the command; docs/migration.md has the table of what becomes what.
"""

from .config import Migration, migrate_config
from .config_file import read_old_config
from .settings import Report

__all__ = ['Migration', 'Report', 'migrate_config', 'read_old_config']
