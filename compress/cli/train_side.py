"""The door of `compress train-side`."""

from __future__ import annotations

from typing import Any

import click

from compress.cli import options as opt
from compress.cli.options import option
from compress.cli.session import session
from compress.errors import RequestError

DATA = opt.options(
    option(
        "--series",
        type=click.Path(),
        metavar="FILE",
        heading="Data",
        help="weekly severity: a US Drought Monitor file, or region, date and dsci, severity or "
        "None, D0 … D4",
    ),
    option(
        "--texts",
        type=click.Path(),
        metavar="FILE",
        heading="Data",
        help="JSONL or CSV: region, published_at, text, source",
    ),
    option(
        "--impact",
        type=click.Path(),
        metavar="FILE",
        heading="Data",
        help="CSV: region, date, category, value",
    ),
    option(
        "--regions",
        multiple=True,
        callback=opt.comma_list,
        metavar="A,B",
        heading="Data",
        help="places to keep  [default: all]",
    ),
    option(
        "--fill",
        metavar="NAME",
        heading="Data",
        help="forward: carry up to two missing weeks, marked  [default: refuse gaps]",
    ),
    option(
        "--mask-label-terms/--no-mask-label-terms",
        default=None,
        heading="Data",
        help="take D0 … D4, DSCI and the monitor's own figures out of texts  [default: with a "
        "nowcast]",
    ),
    option(
        "--simulate",
        type=click.Path(),
        metavar="DIR",
        heading="Data",
        help="write a made-up data set there, say so in it, and stop",
    ),
)
TASK = opt.options(
    option(
        "--target",
        default="dsci",
        show_default=True,
        metavar="NAME",
        heading="What to estimate",
        help="dsci, or worst-category: the worst class with half of the area",
    ),
    option(
        "--horizons",
        multiple=True,
        callback=opt.number_list(int),
        metavar="W,…",
        heading="What to estimate",
        help="weeks ahead; 0 is the nowcast  [default: 0,1,4,8,13]",
    ),
    option(
        "--split",
        multiple=True,
        callback=opt.number_list(float),
        metavar="A,B,C",
        heading="What to estimate",
        help="shares of the weeks to train, validate, test on  [default: 0.7,0.15,0.15]",
    ),
    option(
        "--val-from", metavar="DATE", heading="What to estimate", help="first day of validation"
    ),
    option("--test-from", metavar="DATE", heading="What to estimate", help="first day of the test"),
    option(
        "--transfer-to",
        multiple=True,
        callback=opt.comma_list,
        metavar="A,B",
        heading="What to estimate",
        help="places that are tested on only, the others being trained on only",
    ),
    option(
        "--embargo",
        type=int,
        default=0,
        show_default=True,
        metavar="W",
        heading="What to estimate",
        help="weeks after a border that no sample starts from",
    ),
    option(
        "--unsafe-random-split",
        is_flag=True,
        heading="What to estimate",
        help="deal weeks out at random: figures that mean nothing, to show that",
    ),
)
MODEL = opt.options(
    option(
        "--encoder",
        default="auto",
        show_default=True,
        metavar="DIR",
        heading="Model",
        help="a Hugging Face encoder, compressed or not; tfidf: hashed n-grams; auto: a small "
        "encoder from the Hub or its cache, else tfidf",
    ),
    option("--context", type=int, default=26, show_default=True, metavar="W", heading="Model",
           help="weeks that a window looks back over"),
    option("--hidden", type=int, default=64, show_default=True, metavar="N", heading="Model",
           help="size of both recurrent nets"),
    option("--dropout", type=float, default=0.1, show_default=True, metavar="P", heading="Model",
           help="share of text inputs and states dropped in training"),
    option("--impact-loss", default="bce", show_default=True, metavar="NAME", heading="Model",
           help="bce: whether there is an impact; poisson: how many"),
    option("--task-weight", default="learned", show_default=True, metavar="X", heading="Model",
           help="factor of the impact loss: learned, or a number"),
    option("--no-text", is_flag=True, heading="Model", help="ablation: no texts"),
    option("--no-physical", is_flag=True, heading="Model", help="ablation: no series as input"),
    option("--no-cross", is_flag=True, heading="Model",
           help="ablation: nothing passes between the two nets"),
    option("--single-task", is_flag=False, flag_value="severity", metavar="[NAME]",
           heading="Model", help="ablation: train severity alone, or impact"),
    option("--shuffle-texts", is_flag=True, heading="Model",
           help="null control: texts dealt out to other weeks"),
)  # fmt: skip
TRAINING = opt.options(
    option("--seeds", type=int, default=1, show_default=True, metavar="N", heading="Training",
           help="train N models from --seed on; errors are averaged, validation keeps one"),
    option("--optimizer", default="adamw", show_default=True, metavar="NAME", heading="Training",
           help="any optimizer of train-spam"),
    option("--lr", type=float, default=1e-3, show_default=True, metavar="X", heading="Training",
           help="learning rate"),
    option("--weight-decay", type=float, default=1e-2, show_default=True, metavar="X",
           heading="Training", help="of matrices"),
    option("--epochs", type=int, default=100, show_default=True, metavar="N", heading="Training",
           help="at most"),
    option("--patience", type=int, default=10, show_default=True, metavar="N",
           heading="Training", help="epochs without a better validation loss before it ends"),
    option("--batch-size", type=int, default=64, show_default=True, metavar="N",
           heading="Training", help="windows in a step"),
    option("--baselines", default="all", show_default=True, metavar="NAME", heading="Training",
           help="all, or none: persistence and climatology alone"),
)  # fmt: skip


@click.command("train-side", cls=opt.Command)
@opt.OUTPUT
@DATA
@TASK
@MODEL
@TRAINING
@option("--out", type=click.Path(), metavar="OUT", hidden=True, help="the same as -o")
@option("--predict", type=click.Path(), metavar="DIR",
        help="estimate the newest weeks of --series with a trained model")  # fmt: skip
@option("--dry-run", is_flag=True, help="stop after reading; print schema, split, coverage")
@opt.RESUME
@opt.SEED
@opt.DEVICE
@opt.CONFIG
@opt.SAY
def command(as_json: bool, quiet: bool, **given: Any) -> None:
    """Estimate drought severity, and its reported impact, from a weekly series and
    texts about it; says plainly where that is no better than last week's value.

    Example: compress train-side --series usdm.csv --texts t.jsonl -o ./side

    The text encoder in OUT/encoder is a checkpoint that alpha-prune and the others
    take; train again with --encoder to see what compressing it costs.
    Weeks are split in time; a text is seen only after it was published.
    """
    simulate, model = given.pop("simulate"), given.pop("predict")
    alias = given.pop("out")
    given["output"] = given["output"] or alias
    for name in ("horizons", "split"):
        if not given[name]:
            del given[name]
    with session(as_json, quiet) as out:
        if simulate is not None:
            from compress.drought.simulated import simulate as make

            paths = make(seed=given["seed"]).write(simulate)
            told = {"schema": 1, "simulated": True, "files": [str(path) for path in paths]}
            listed = "\n".join(map(str, paths))
            out.result(told, f"{listed}\nSIMULATED: no place, report or figure in them is real")
            return
        if given["series"] is None:
            raise RequestError("no series", "add `--series FILE`, weekly severity by place")
        if model is not None:
            from compress.drought.predicting import predict_side

            same = ("series", "texts", "impact", "regions", "fill", "device")
            other = None if given["encoder"] == "auto" else given["encoder"]
            found = predict_side(
                model, progress=out.progress, encoder=other, **{k: given[k] for k in same}
            )
            out.result(found.as_dict(), found.render())
            return
        if given["output"] is None and not given["dry_run"]:
            raise RequestError("no output directory", "add `-o OUT`, or `--dry-run` to look first")
        from compress.drought.command import train_side

        result = train_side(progress=out.progress, say=out.say, **given)
        out.result(result.as_dict(), result.render())
