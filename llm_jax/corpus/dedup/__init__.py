"""Duplicates: whole documents, nearly equal documents, repeated lines, repeated passages.

Each is an exchange, made from its options by `make`.
"""
