# SPDX-License-Identifier: Apache-2.0
"""``python -m fastlm``."""

import sys

from fastlm.cli import main

sys.exit(main())
