"""The statements, one module for each group of tables. What executes them is in ``execution``."""
