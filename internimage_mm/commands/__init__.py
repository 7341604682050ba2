"""What the command-line tools share: arguments, configs, checks of data, reports of mistakes."""

from ..errors import UserError
from ..output_file import check_folder, check_output
from .arguments import (
    add_config_options,
    add_device,
    add_launcher,
    check_figure,
    check_launcher,
    chosen_device,
)
from .configs import load_config
from .data import check_data, dataset_meta
from .reporting import reports_user_errors

__all__ = [
    'UserError',
    'add_config_options',
    'add_device',
    'add_launcher',
    'check_data',
    'check_figure',
    'check_folder',
    'check_launcher',
    'check_output',
    'chosen_device',
    'dataset_meta',
    'load_config',
    'reports_user_errors',
]
