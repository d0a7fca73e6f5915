"""Hostile and awkward programs that the sandbox is judged by.

`escapes` try to get out of the jail or to exhaust the machine, `forgeries` try to pass tests they
do not solve, `honest` ones solve their tests in ways that sandboxes tend to break.
"""
