"""Data sets as people look at them: which there are, their pictures and captions, edits and drafts of captions."""
