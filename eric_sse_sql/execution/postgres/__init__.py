"""Everything that is Postgres' alone, through psycopg 3."""
