"""``python -m eric_sse_sql``: the command ``eric-sse-sql``."""

import sys

from eric_sse_sql.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
