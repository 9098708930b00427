"""Pickles as bytes: a scan of their opcodes, and blobs assembled without the pickle module.

This layer knows neither the policy of what a blob may contain nor SQL.
"""
