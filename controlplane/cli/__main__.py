"""`python -m controlplane.cli` is `teragpt` where the command itself is not on the path."""

from __future__ import annotations

import sys

from controlplane.cli import main

sys.exit(main())
