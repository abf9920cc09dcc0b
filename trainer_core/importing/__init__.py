"""Jobs out of the configuration files of other trainers: a table for each format, and one way of reading them all.

A table says for every setting of a format which of ours it is, or why there is none. What is not in the table is told
as unknown, so that nothing is left out in silence.
"""
