"""Recipes: steps that are commands of this program, in every cell of a grid, run as one job.

marks, reading:           YAML with places; includes, the quick form, --set
recipe, grid, references: its parts; what `${…}` names
program, judging:         the commands' own options, asked of the real ones
graph:                    the grid unfolded into instances of steps
keys, store:              what a result depends on; what is kept, and taken again
nursery, launching:       steps as processes
running, overview:        each step when its turn has come, and what people see of it
planning, tables:         a dry run; the receipts side by side
command:                  the public function
"""
