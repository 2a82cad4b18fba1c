"""Tests that share one running server for each demo checkpoint: a start takes half a minute.

A package, because a fixture can last as long as one does; pytest puts the tests of one checkpoint together.
"""
