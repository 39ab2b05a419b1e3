"""`python -m labo` is `labo`."""

import sys

from labo.cli import main

sys.exit(main())
