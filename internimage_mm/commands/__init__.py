"""What the command-line tools share: arguments, configs, checks of data, reports of mistakes."""

from ..errors import UserError
from ..output_file import check_folder, check_output
from .arguments import add_config_options, add_launcher, check_launcher
from .configs import load_config
from .data import check_data, dataset_meta
from .reporting import reports_user_errors

__all__ = [
    'UserError',
    'add_config_options',
    'add_launcher',
    'check_data',
    'check_folder',
    'check_launcher',
    'check_output',
    'dataset_meta',
    'load_config',
    'reports_user_errors',
]
