"""Readers and writers of annotations and results, and the frames they live in.

Conversion between the frames `bounds` (what QuPath shows) and `slide` (level-0 px, all we store) happens here only.
"""
