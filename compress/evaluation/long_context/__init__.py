"""Long context: needle in a haystack, question answering over documents, chains of statements.

settings:   what is asked, and its checks
writing:    text to tokens, to the token
haystack:   the text that everything is hidden in
needle, multidoc, longreason: one file a task, from counters to prompts
items:      a prompt with its answers; all prompts of a task
scoring:    likelihood of the answers, and what greedy decoding would write
attention:  where the model looks while it answers
results:    accuracy by cell, outcomes by item
page:       tables, heat maps, PNG
"""

NAMES = ("needle", "multidoc", "longreason")
