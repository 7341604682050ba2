"""How a tool ends after a user's mistake."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from ..checkpoint import CheckpointError
from ..errors import UserError


def reports_user_errors(main: Callable) -> Callable:
    """Make a tool end with one line ``error: ...`` and exit code 1 after a user's mistake.

    All other errors keep their traceback; with the environment variable
    ``INTERNIMAGE_MM_TRACEBACK=1`` these do as well.
    """

    @functools.wraps(main)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except (UserError, CheckpointError) as error:
            if os.environ.get('INTERNIMAGE_MM_TRACEBACK', '0') != '0':
                raise
            sys.exit(f'error: {error}')

    return wrapper
