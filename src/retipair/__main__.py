"""`python -m retipair`."""

import sys

from retipair.cli import main

sys.exit(main())
