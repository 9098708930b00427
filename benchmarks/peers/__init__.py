"""Similar packages that the suites compare eric_sse_sql with, where they are installed."""
