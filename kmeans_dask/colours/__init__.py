"""Colour tables, palettes, remapping and dithering; every image of a folder in K colours."""
