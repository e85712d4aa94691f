"""The claims page, from the committed figures.

    python docs/claims/page.py            print it
    python docs/claims/page.py --write    put it into docs/claims.md

No figure on the page is typed: intervals and verdicts follow from the files below benchmarks/ and
examples/, by the rule that the page states.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import other_claims
import prune_claims
import train_claims
from claim_figures import NOT_SEEN, PENDING, SEEN, UNTESTABLE, Claim, Files, Section

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "claims.md"
VERDICTS = (SEEN, NOT_SEEN, UNTESTABLE, PENDING)

HEAD = """---
hide:
  - toc
---

# What the papers claim, and what is seen here

**These are tiny models.** Most have 0.3 to 4 million parameters and train for minutes on a CPU;
the papers' have up to 16 billion. A claim that isn't seen here may well hold there, and one that is
seen here needn't. The page says what this suite's own runs show, losses as plainly as wins.

The rule of the verdicts, the same for every row:

- A row's figure is split into parts, one a line. A difference is the arm named first minus the
  other, paired by seed (same start, same data); its interval is the 95 % t interval over seeds,
  unless it says otherwise. Of losses and errors less is better.
- A part holds when its interval lies wholly on the claimed side of 0, or of the bound that a remark
  names. An interval that includes 0 doesn't hold, and neither does one on the other side. Counts,
  sizes and quartiles of times are held against the bound itself.
- **{seen}**: all parts of the row hold.
- **{not_seen}**: one part at least doesn't, so a claim about several models isn't seen when it
  fails on one. With two or three seeds intervals are wide: this also means "too noisy to tell".
- **{pending}**: a part has fewer than two seeds, or no run yet, and none fails.
- **{untestable}**: runs of this size say nothing either way; the row names what it
  would need.
- Rows are judged one by one, and nothing is corrected for their number: of forty true zeros one
  would be called seen.

Every number is read from the files below `benchmarks/` and `examples/results/` by
`python docs/claims/page.py --write`, and a test compares.
"""


def sections(files: Files) -> list[Section]:
    """Every method, in the order of the list of claims."""
    meap, depth, spam, mix = train_claims.sections(files)
    alpha, calibration, experts = prune_claims.sections(files)
    side, speech, channels = other_claims.sections(files)
    return [meap, depth, spam, mix, side, experts, alpha, speech, calibration, channels]


def cell(text: str) -> str:
    """Text that can't end a cell."""
    return text.replace("|", "\\|") or "–"


def row(claim: Claim) -> str:
    """A claim as a row of the table."""
    figure = cell("; ".join(part.text for part in claim.parts)).replace("; ", "<br>")
    verdict = f"**{claim.verdict}**"
    if claim.needs:
        verdict += f"; needs {claim.needs}"
    cells = (claim.name, cell(claim.says), f"{claim.how}<br>{cell(claim.scale)}", figure or "–",
             cell(claim.beside).replace("; ", "<br>"), verdict)  # fmt: skip
    return f"| {' | '.join(cells)} |"


def section(content: Section) -> str:
    """A method: its table and remarks."""
    lines = [f"## {content.title}", ""]
    if content.intro:
        lines += [content.intro, ""]
    lines += [
        "| | claim | how tested, at what size | figure (95 % interval) | beside it | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        *(row(claim) for claim in content.claims),
    ]
    remarks = [f"- {claim.name}: {claim.remark}" for claim in content.claims if claim.remark]
    return "\n".join([*lines, *([""] if remarks else []), *remarks])


def summary(found: list[Section]) -> str:
    """How many of each verdict, and which."""
    claims = [claim for content in found for claim in content.claims]
    count = Counter(claim.verdict for claim in claims)
    lines = ["| verdict | claims | which |", "| --- | --- | --- |"]
    for verdict in VERDICTS:
        names = " ".join(claim.name for claim in claims if claim.verdict == verdict)
        lines.append(f"| {verdict} | {count[verdict]} of {len(claims)} | {names or '–'} |")
    return "\n".join(lines)


def page(root: Path = ROOT) -> str:
    """The whole page from the figures below a root."""
    found = sections(Files(root))
    head = HEAD.format(seen=SEEN, not_seen=NOT_SEEN, pending=PENDING, untestable=UNTESTABLE)
    return "\n\n".join([head.rstrip(), summary(found), *map(section, found)]) + "\n"


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
        return
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
