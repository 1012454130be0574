"""``python -m kfac_ref`` is the command ``kfac-ref``."""

import sys

from .cli import main

sys.exit(main())
