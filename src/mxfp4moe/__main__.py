"""``python -m mxfp4moe``."""

import sys

from mxfp4moe.cli import main

if __name__ == "__main__":
    sys.exit(main())
