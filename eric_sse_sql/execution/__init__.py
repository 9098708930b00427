"""How a statement reaches a driver. Nothing here knows a table.

``statement`` builds and compiles, ``dialect`` says in what the databases differ, ``postgres`` and ``sqlite`` hold
everything that is one database's alone, ``transactions`` and ``pinned`` are the two ways to a driver, and ``executor``
chooses between them.
"""
