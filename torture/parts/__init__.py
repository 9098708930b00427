"""The parts of the run: each module has one kind of fault."""
