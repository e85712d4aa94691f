"""Perplexity, lm-eval tasks, speed and memory; paired comparison of two models.

perplexity: the literature's protocol, with a standard error
tasks:      lm-evaluation-harness on a model in memory; own task directories
long_context: needle in a haystack, several documents, chains; where attention goes
speed:      reading, writing, peak memory
compare:    is a difference larger than its noise?
evaluate:   all of these for one model or several; the function of `compress eval`
"""
