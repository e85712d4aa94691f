"""`compress export`: a checkpoint in another form, with the receipt that every output has."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.checkpoints import export as forms
from compress.checkpoints.plan import PLAN_FILE, Plan
from compress.checkpoints.save import placed
from compress.checkpoints.source import open_source
from compress.progress import Progress, silent
from compress.reports.notebook import Displayable
from compress.reports.receipt import Receipt


@dataclass(frozen=True)
class Exported(forms.Exported, Displayable):
    """What `export` did; a notebook shows it too."""


def export(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    to: str = "stock",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a checkpoint in another form, with its plan and receipt.

    Args:
        model: a local directory, a Hub id, or a model in memory.
        output: the directory to make.
        to: the form: "stock" needs no `import compress`; "bitmask" stores no zeros;
            "remote-code" has its edits made by a Python file beside the weights; "onnx" is
            `model.onnx` of an image classifier.
        tokenizer: of a model in memory.
        overwrite: replace a non-empty output, at the end.
        revision, token, trust_remote_code: of a Hub model.
        progress: told of each module.

    Raises:
        RequestError: an unknown form or model, an output that can't be used, edits that the form
            can't hold (the modules in its way are named), or nothing to pack.
        RunError: the disk is full.
    """

    with ExitStack() as stack:
        path = placed(model, tokenizer, stack)

        def finish(place: Path, done: forms.Exported) -> None:
            digest = open_source(
                path, revision=revision, token=token, trust_remote_code=trust_remote_code
            ).digest()
            plan = Plan("export", digest, [{"module": name, "kind": to} for name in done.modules])
            plan.write(place / PLAN_FILE)
            said = done.as_dict()
            Receipt.build(
                "export",
                seed=0,
                model={"source": done.source, "digest": digest},
                plan={"file": PLAN_FILE, "digest": plan.digest(), "rows": len(plan.rows)},
                before=said["before"],
                after=said["after"],
                notes=said["notes"],
                to=to,
            ).write(place)

        found = forms.export(
            path,
            output,
            to,
            overwrite=overwrite,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
            finish=finish,
            progress=progress,
        )
    return Exported(**{f.name: getattr(found, f.name) for f in fields(found)})
