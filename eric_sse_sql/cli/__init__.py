"""The command ``eric-sse-sql``: a module for each group of its commands, which call the package and print."""
