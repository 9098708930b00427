"""How a statement reaches a driver. Nothing here knows a table.

``statement`` builds and compiles, in the words of a ``dialect``; a ``driver`` runs it. ``postgres`` and ``sqlite`` hold
all that is one database's alone: its engine, dialect and driver. ``engines`` chooses between them. ``pinned`` and
``transactions`` are the two ways to a driver, and ``executor`` takes one of them for each statement.
"""
