"""The concept-graph task: find a path in a star of chains of words.

Source: arXiv 2606.26091 sec. 4.1 and App. B.4; the generator's free choices
are ours and are said where they are made.
"""
