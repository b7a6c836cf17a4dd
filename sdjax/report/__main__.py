"""`python -m sdjax.report RUN ... --out=FOLDER`."""

import sys

from sdjax.report.build import main

if __name__ == '__main__':
  sys.exit(main())
