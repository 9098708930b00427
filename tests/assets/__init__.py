"""Databases that released versions made, the programs that made them, and the classes of the objects in them.

The tests of every later version upgrade and use copies of them. An asset is never made again: it stands for the
databases that applications have. A release that stores anything in a new way gets a program and assets of its own; the
classes of ``shop.py`` stay as they are.
"""
