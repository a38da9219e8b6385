"""Runs read back, and shown: in figures, words, tables, curves and pages. Nothing here needs torch."""
