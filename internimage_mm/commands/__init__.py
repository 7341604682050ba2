"""What the command-line tools share: reading configs, checking data, reporting mistakes."""

from ..errors import UserError
from ..output_file import check_folder, check_output
from .configs import ConfigOptions, load_config
from .data import check_data, dataset_meta
from .reporting import check_launcher, reports_user_errors

__all__ = [
    'ConfigOptions',
    'UserError',
    'check_data',
    'check_folder',
    'check_launcher',
    'check_output',
    'dataset_meta',
    'load_config',
    'reports_user_errors',
]
