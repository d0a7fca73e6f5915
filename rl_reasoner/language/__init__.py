"""Does this text follow its instructions, in which language, how repetitive, with which thoughts?

Pure functions on text. A leaf: may import only the ground; torch-free.
"""
