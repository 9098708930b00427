"""Everything that is SQLite's alone, through the standard library's driver."""
