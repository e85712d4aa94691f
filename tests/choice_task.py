"""A text, and a task of lm-eval with two choices, written where tests of evaluation read them."""

import json

TEXT = "Once there was a small red boat. It sailed far over the sea. " * 12
_TASK = """
task: my_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: items.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["{first}", "blue"]
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write_text_and_task(path, first, numbers):
    """Write boat.txt and tasks/, whose items ask about numbers; right is `first`, then blue."""
    (path / "boat.txt").write_text(TEXT)
    (path / "tasks").mkdir()
    (path / "tasks" / "choice.yaml").write_text(_TASK.format(first=first))
    rows = [
        json.dumps({"q": f"number {number} is", "gold": i % 2}) + "\n"
        for i, number in enumerate(numbers)
    ]
    (path / "tasks" / "items.jsonl").write_text("".join(rows))
