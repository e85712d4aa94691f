"""The tables of allocations: what is a difference, what isn't, and what is left out."""

from compress.reports.allocation import allocation_text, names_in_order, score_rows

FOUND = {
    "own": "alpha",
    "blocks": ["model.layers.0", "model.layers.1"],
    "shares": {"alpha": [0.5, 0.7], "uniform": [0.6, 0.6], "atp": [0.55, 0.65]},
    "search": {
        "searched": True, "beta": 0.1, "held_out_windows": 4, "candidates": [{}, {}],
    },
    "scores": {
        "alpha": {"perplexity": {"/a/wiki.txt": {"value": 13.0, "stderr": 0.1}},
                  "tasks": {"boolq": {"acc": 0.64, "stderr": 0.02}}},
        "uniform": {"perplexity": {"/a/wiki.txt": {"value": 14.1, "stderr": 0.1}},
                    "tasks": {"boolq": {"acc": 0.62, "stderr": 0.02}}},
        "atp": {"perplexity": {"/a/wiki.txt": {"value": 12.9, "stderr": 0.1}}},
    },
    "comparison": {
        "uniform": {
            "perplexity": {"/a/wiki.txt": {
                "difference": -1.1, "ci95": [-1.3, -0.9], "p": 0.001, "p_holm": 0.002}},
            "tasks": {"boolq": {"difference": 0.02, "ci95": [-0.01, 0.05], "p": 0.2}},
        },
        "atp": {"perplexity": {"/a/wiki.txt": {
            "difference": 0.1, "ci95": [0.01, 0.2], "p": 0.04, "p_holm": 0.08}}},
    },
}  # fmt: skip


def test_a_difference_goes_by_the_corrected_p():
    tables = dict(score_rows(FOUND))
    assert tables["perplexity wiki.txt"] == [
        ["alpha", "13.00 ± 0.10", ""],
        ["uniform", "14.10 ± 0.10", "−1.10 (95 %: −1.30 … −0.90)"],
        ["atp", "12.90 ± 0.10", "not distinguishable (p 0.08)"],
    ]
    assert tables["accuracy boolq"] == [
        ["alpha", "0.640 ± 0.020", ""],
        ["uniform", "0.620 ± 0.020", "not distinguishable (p 0.20)"],
    ]


def test_the_runs_own_comes_first_whatever_a_file_made_of_the_order():
    found = {**FOUND, "own": "uniform"}
    assert names_in_order(found) == ["uniform", "atp", "alpha"]
    assert "uniform minus it" in allocation_text(found, width=80, terminal=False)


def test_the_shares_stand_beside_and_say_what_they_rest_on():
    text = " ".join(allocation_text(FOUND, width=80, terminal=False).split())
    assert "model.layers.1 0.700 0.600 0.650" in text
    assert "atp: shares rise by 0.1000, the best of 2 slopes on 4 held-out windows" in text
    assert "line:" not in text


def test_nothing_is_shown_of_nothing_and_no_scores_without_a_comparison():
    assert allocation_text({}) == allocation_text(None) == ""
    plain = {key: FOUND[key] for key in ("own", "blocks", "shares")}
    plain["line"] = {"beta": 0.05, "searched": False}
    text = " ".join(allocation_text(plain, width=80, terminal=False).split())
    assert "minus it" not in text
    assert "atp: shares rise by 0.0500" in text
    assert "not searched: `--compare-allocations` does" in text


def test_long_block_names_fold_and_leave_no_room_for_bars():
    found = {**FOUND, "blocks": ["model.vision_encoder.very.long.name.of.a.stage.layers.0"] * 2}
    text = allocation_text(found, width=80, terminal=True)
    assert "█" not in text
    assert max(map(len, text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())) <= 80
