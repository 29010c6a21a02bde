"""`python -m clipfsar`, and `accelerate launch -m clipfsar train ...`."""

import sys

from clipfsar.cli import main

if __name__ == "__main__":
    sys.exit(main())
