"""`compress export`: a checkpoint in another form, with the receipt that every output has."""

from __future__ import annotations

from pathlib import Path

from compress.checkpoints.export import Exported
from compress.checkpoints.export import export as write_form
from compress.checkpoints.plan import PLAN_FILE, Plan
from compress.checkpoints.source import open_source
from compress.progress import Progress, silent
from compress.reports.receipt import Receipt


def export(
    model: str | Path,
    output: str | Path,
    to: str = "stock",
    *,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a checkpoint in another form, with its plan and receipt.

    Args:
        model: a local directory or a Hub id.
        output: the directory to make.
        to: the form: "stock" needs no `import compress`; "bitmask" stores no zeros;
            "remote-code" has its edits made by a Python file beside the weights; "onnx" is
            `model.onnx` of an image classifier.
        overwrite: replace a non-empty output, at the end.
        revision, token, trust_remote_code: of a Hub model.
        progress: told of each module.

    Raises:
        RequestError: an unknown form or model, an output that can't be used, edits that the form
            can't hold (the modules in its way are named), or nothing to pack.
        RunError: the disk is full.
    """

    def finish(place: Path, done: Exported) -> None:
        digest = open_source(
            model, revision=revision, token=token, trust_remote_code=trust_remote_code
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

    return write_form(
        model,
        output,
        to,
        overwrite=overwrite,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        finish=finish,
        progress=progress,
    )
