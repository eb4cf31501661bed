import html
import json
import math
import re

import pytest

from cgnl.compare.report import read_runs, verdict, write_report
from cgnl.compare.statistics import groups_of, paired, t_quantile
from cgnl.data.decoding import DataError

PLAIN = [50.0, 51.0, 52.0, 53.0]
BETTER, WORSE, SAME = [5.0, 6.0, 5.0, 6.0], [-3.0, -2.0, -3.0, -2.0], [1.0, -1.0, 1.0, -1.0]
PROTOCOL = {
    "command": "cgnl compare image --data.root words",
    "data": "words: 800 training and 200 test images of 4 classes",
    "frozen": True,
    "blocks": ["none", "residual", "cgnl"],
    "seeds": [0, 1, 2, 3],
    "epochs": 3,
    "tuned": {"factors": [0.1, 1, 4]},
}


def runs_of(block, top1s, length="fixed", first=0, **more):
    return [
        {
            "block": block,
            "seed": first + k,
            "length": length,
            "epochs": 3,
            "steps": 75,
            "rate": 0.4,
            "block_rate_factor": 1.0,
            "top1": top1,
            "test_loss": 1.2 + 0.02 * k,
            "train_loss": 0.4 + 0.02 * k,
            "parameters": 1234567,
            "multiplications": 45678901,
            "seconds": 12.3,
            "curve": [{"epoch": e, "train_loss": 2 / e, "test_loss": 2.5 / e, "top1": top1 - 3 + e} for e in (1, 2, 3)],
            "diagnosis": None,
        }
        | more
        for k, top1 in enumerate(top1s)
    ]


def plus(differences, base=PLAIN):
    return [one + difference for one, difference in zip(base, differences, strict=False)]


def write(folder, runs, protocol=PROTOCOL, end=""):
    (folder / "protocol.json").write_text(json.dumps(protocol))
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs) + end)
    return folder


def verdict_of(runs):
    return verdict(groups_of(runs, PROTOCOL["blocks"]))


def page_of(folder):
    return (folder / "report.html").read_text()


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]))


def test_the_quantile_is_that_of_tables():
    # Student's table, two-sided 95 %
    for degrees, expected in {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}.items():
        assert t_quantile(degrees) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("coverage", [0.5, 0.95, 0.999])
def test_the_quantile_is_scipys(coverage):
    stats = pytest.importorskip("scipy.stats")
    for degrees in range(1, 60):
        expected = stats.t.ppf((1 + coverage) / 2, degrees)
        assert t_quantile(degrees, coverage) == pytest.approx(expected, rel=1e-9), degrees


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10])
def test_the_interval_is_scipys(count):
    stats = pytest.importorskip("scipy.stats")
    values = [60 + 7 * math.sin(3 * k) for k in range(count)]
    plain = [58 + 5 * math.cos(2 * k) for k in range(count)]
    # the seeds come in another order, and each side has one that the other lacks
    difference = paired(
        {**{k: values[k] for k in reversed(range(count))}, 99: 0.0}, {-1: 0.0, **dict(enumerate(plain))}
    )
    expected = stats.ttest_rel(values, plain).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert difference.seeds == tuple(range(count))
    assert difference.unpaired == (99,)


@pytest.mark.parametrize(
    ("differences", "outcome", "text"),
    [
        (BETTER, "better", "+5.5 ± 0.9"),
        (WORSE, "worse", "-2.5 ± 0.9"),
        (SAME, "no difference shown", "+0.0 ± 1.8"),
        ([5.0, 7.0], "no difference shown", "+6.0 ± 12.7"),
        ([-5.0, -7.0], "no difference shown", "-6.0 ± 12.7"),
        ([-1.0, 0.96], "no difference shown", "+0.0 ± 12.5"),
        ([0.0, 0.0, 0.0], "no difference shown", "+0.0 ± 0.0"),
        ([5.0], "not enough seeds", "+5.0"),
        ([2.0, 2.0, 2.0], "not enough seeds", "+2.0"),
        ([math.nan, 2.0], "not enough seeds", "–"),
        ([], "not enough seeds", "–"),
        ([0.99, 1.0, 1.5, 1.3, 0.02], "better", "+1.0 ± 0.7"),
        ([0.7, -0.1, 0.0, -0.12], "no difference shown", "+0.1 ± 0.6"),
    ],
)
def test_the_outcome_of_a_difference(differences, outcome, text):
    difference = paired(dict(enumerate(plus(differences, [70.3] * 9))), dict.fromkeys(range(9), 70.3))
    assert (difference.outcome, str(difference)) == (outcome, text)


def test_two_digits_where_one_would_hide_the_outcome():
    # 0.50 ± 0.46 and 0.45 ± 0.46
    for mean, outcome, text in ((0.50, "better", "+0.50 ± 0.46"), (0.45, "no difference shown", "+0.45 ± 0.46")):
        spread = 0.46 / t_quantile(3) * math.sqrt(3)  # the standard deviation of ±spread is spread sqrt(4 / 3)
        values = {k: mean + spread * (-1) ** k for k in range(4)}
        difference = paired(values, dict.fromkeys(values, 0.0))
        assert (difference.outcome, str(difference)) == (outcome, text)


def test_groups_stand_in_order_against_plain_of_their_length():
    runs = [
        *runs_of("cgnl", plus(BETTER), "own"),
        *runs_of("new", PLAIN),
        *runs_of("cgnl", plus(BETTER)),
        *runs_of("none", [40.0] * 4, "own"),
        *runs_of("none", plus([1, 1, 2, 1]), "twice"),
        *runs_of("none", PLAIN),
    ]
    groups = groups_of(runs, ["none", "residual", "cgnl"])
    assert [group.name for group in groups] == [
        *("plain", "cgnl", "new", "plain, twice as long", "plain, own length", "cgnl, own length")
    ]
    found = {group.name: group for group in groups}
    assert (found["plain"].plain, found["plain"].control) == (None, None)
    assert found["plain, twice as long"].plain.mean == pytest.approx(1.25)
    assert found["cgnl"].plain.mean == pytest.approx(5.5)
    assert found["cgnl"].control.mean == pytest.approx(4.25)
    assert found["cgnl, own length"].plain.mean == pytest.approx(17.0)
    assert found["cgnl, own length"].control.mean == pytest.approx(4.25)


def test_of_two_runs_alike_the_later_one_counts():
    (group,) = groups_of([*runs_of("none", [1.0]), *runs_of("none", [2.0])], [])
    assert group.mean("top1") == 2.0


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([], "No run has finished yet, so there is nothing to compare."),
        (runs_of("none", PLAIN), "Only the plain network has finished runs, so there is nothing to compare it with."),
        (runs_of("cgnl", PLAIN), "No run of the plain network has finished yet, so no block can be compared with it."),
        (
            runs_of("none", PLAIN) + runs_of("cgnl", plus(BETTER)),
            "Compared with the plain network (51.5 % top-1) over 4 paired seeds, in points with 95 % intervals: "
            "cgnl (+5.5 ± 0.9) is better.",
        ),
        (
            runs_of("none", PLAIN) + runs_of("cgnl", plus(WORSE)),
            "Compared with the plain network (51.5 % top-1) over 4 paired seeds, in points with 95 % intervals: "
            "cgnl (-2.5 ± 0.9) is worse.",
        ),
        (
            runs_of("none", PLAIN) + runs_of("cgnl", plus(SAME)) + runs_of("residual", plus(SAME)),
            "Compared with the plain network (51.5 % top-1) over 4 paired seeds, in points with 95 % intervals: "
            "no difference is shown for residual (+0.0 ± 1.8) and cgnl (+0.0 ± 1.8).",
        ),
        (
            runs_of("none", PLAIN[:1]) + runs_of("cgnl", plus(BETTER)[:1]),
            "Compared with the plain network (50.0 % top-1) over 1 paired seed, in points with 95 % intervals: "
            "there are not enough seeds to judge cgnl (+5.0).",
        ),
        (
            runs_of("none", PLAIN)
            + runs_of("cgnl", plus(BETTER))
            + runs_of("residual", plus(WORSE)[:3])
            + runs_of("se", [60.0], first=9),
            "Compared with the plain network (51.5 % top-1) over 0 to 4 paired seeds, in points with 95 % intervals: "
            "cgnl (+5.5 ± 0.9) is better; residual (-2.7 ± 1.4) is worse; there are not enough seeds to judge se "
            "(no paired seed).",
        ),
        (
            runs_of("none", PLAIN, "own") + runs_of("cgnl", plus(BETTER), "own"),
            "With each kind's own number of epochs, compared with the plain network (51.5 % top-1) over 4 paired "
            "seeds, in points with 95 % intervals: cgnl (+5.5 ± 0.9) is better.",
        ),
    ],
)
def test_the_verdict(runs, expected):
    assert verdict_of(runs) == expected


@pytest.mark.parametrize(
    ("twice", "expected"),
    [
        (plus([5, 7, 5, 7]), "reaches 57.5 %, which closes the gap to cgnl (-0.5 ± 0.9)."),
        (plus([1, 2, 2, 1]), "reaches 53.0 %, which does not close the gap to cgnl (+4.0 ± 1.3)."),
        (PLAIN[:1], ""),
    ],
)
def test_whether_plain_closes_the_gap_in_twice_the_epochs(twice, expected):
    runs = [*runs_of("none", PLAIN), *runs_of("cgnl", plus(BETTER)), *runs_of("residual", plus(SAME))]
    words = verdict_of([*runs, *runs_of("none", twice, "twice")])
    assert words.startswith("Compared with the plain network (51.5 % top-1) over 4 paired seeds")
    assert words.partition("The plain network, trained for twice the epochs, ")[2] == expected


def with_losses(runs, train, test):
    return [run | {"train_loss": train + 0.004 * k, "test_loss": test + 0.04 * k} for k, run in enumerate(runs)]


@pytest.mark.parametrize(
    ("train", "test", "memorises"), [(0.02, 1.9, True), (0.3, 1.9, False), (0.02, 1.0, False), (0.02, 1.19, False)]
)
def test_a_kind_that_memorises_is_named(train, test, memorises):
    words = verdict_of([*runs_of("none", PLAIN), *with_losses(runs_of("cgnl", plus(SAME)), train, test)])
    assert ("memorises" in words) == memorises
    if memorises:
        assert words.endswith(
            "cgnl memorises the training samples: its training loss is far lower than that of the plain network (0.03 "
            "against 0.43), but its test loss is higher (1.96 against 1.23)."
        )


def test_a_low_training_loss_of_most_seeds_is_not_enough_to_memorise():
    runs = with_losses(runs_of("cgnl", plus(SAME)), 0.0, 1.9)
    runs[3]["train_loss"] = 0.8
    assert "memorise" not in verdict_of([*runs_of("none", PLAIN), *runs])


def test_seeds_that_plain_lacks_are_named_and_not_paired(tmp_path):
    more = [99.0, 99.0]
    runs = [*runs_of("none", PLAIN), *runs_of("none", more, "twice", 4), *runs_of("cgnl", [*plus(BETTER), *more])]
    words = write_report(write(tmp_path, runs))
    assert "cgnl (+5.5 ± 0.9) is better" in words
    assert (
        "Not paired, because the plain network has no run of the seed: 4, 5 (cgnl; plain, twice as long)."
        in text_of(page_of(tmp_path))
    )


def test_a_cut_last_line_is_skipped_and_reported(tmp_path):
    runs = [*runs_of("none", PLAIN), *runs_of("cgnl", plus(BETTER))]
    whole = write_report(write(tmp_path, runs))
    assert "could not be read" not in page_of(tmp_path)
    line = json.dumps(runs_of("residual", [70.0])[0])
    assert write_report(write(tmp_path, runs, end=line[: len(line) // 2])) == whole
    assert "Skipped 1 line of runs.jsonl that could not be read" in text_of(page_of(tmp_path))
    # a last line without its line end is whole
    for cut, found in ((1, (8, 1)), (len(line) - 1, (8, 1)), (len(line), (9, 0))):
        read, unreadable = read_runs(write(tmp_path, runs, end=line[:cut]) / "runs.jsonl")
        assert (len(read), unreadable) == found


def test_a_letter_cut_in_two_is_a_cut_line(tmp_path):
    write(tmp_path, runs_of("none", [50.0]))
    with (tmp_path / "runs.jsonl").open("ab") as file:
        file.write('{"block": "é'.encode()[:-1])
    runs, unreadable = read_runs(tmp_path / "runs.jsonl")
    assert (len(runs), unreadable) == (1, 1)


def test_a_run_that_lacks_a_number_is_named(tmp_path):
    run = runs_of("none", [50.0])[0]
    del run["top1"]
    write(tmp_path, [*runs_of("none", [50.0]), run])
    with pytest.raises(DataError, match=r"runs\.jsonl, line 2, lacks top1\.$"):
        write_report(tmp_path)


def test_a_folder_that_is_no_comparison_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"must be the folder of a comparison, but it has no protocol\.json\.$"):
        write_report(tmp_path)
    for content in ("{", "[]", "5"):
        (tmp_path / "protocol.json").write_text(content)
        with pytest.raises(DataError, match=r"protocol\.json must be a JSON object\.$"):
            write_report(tmp_path)


DIAGNOSIS = {"removed": 41, "mean_s": 43, "shuffled_s": 35, "s_cv": 0.31, "s_positive": 0.97, "branch_over_x": 0.12}
WITHOUT_SUMS = DIAGNOSIS | dict.fromkeys(("mean_s", "shuffled_s", "s_cv", "s_positive"))


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    runs = [
        *runs_of("none", PLAIN),
        *runs_of("none", PLAIN, "twice"),
        *runs_of("cgnl <g=1>", plus(BETTER), diagnosis=DIAGNOSIS),
        *runs_of("residual", plus(SAME), diagnosis=WITHOUT_SUMS, block_rate_factor=0.1),
        *runs_of("none", PLAIN, "own", epochs=6, curve=[]),
        *runs_of("residual", plus(SAME), "own", epochs=9, curve=[]),
    ]
    words = write_report(write(tmp_path, runs, PROTOCOL | {"blocks": ["none", "cgnl <g=1>", "residual", "nl"]}))
    page = page_of(tmp_path)
    assert all(html.escape(line) in page for line in words.splitlines())
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|<script|<link", page)
    # accuracy at equal and own epochs, curves and sums at equal epochs
    assert page.count("<img") == 4
    assert "<g=1>" not in page
    text = text_of(page)
    assert "Of the runs with equal epochs, 12 of 16 have finished." in text
    assert "cgnl &lt;g=1&gt; 57.0 % +5.5 ± 0.9 (4) better +5.5 ± 0.9 (4) 1.23 0.43 " in text
    assert "residual 1.235 M 45.7 M 12.3 0.4 0.1 3 " in text
    assert "residual, own length 51.5 % +0.0 ± 1.8 (4) no difference shown +0.0 ± 1.8 (4)" in text
    assert "cgnl &lt;g=1&gt; 57.0 % 43.0 % 35.0 % 41.0 % 0.31 97 % 0.12" in text
    assert "residual 51.5 % – – 41.0 % – – 0.12" in text
    assert "at least one of the 3 intervals against it would leave out 0 with a probability of up to 15 %" in text
    assert "command cgnl compare image --data.root words" in text
    assert "tuned factors: 0.1, 1, 4" in text
    assert "frozen yes" in text


def test_an_empty_comparison_has_a_page(tmp_path):
    expected = "No run has finished yet, so there is nothing to compare."
    assert write_report(write(tmp_path, [])) == expected
    (tmp_path / "runs.jsonl").unlink()
    assert write_report(tmp_path) == expected
    assert "Of the runs with equal epochs, 0 of 12 have finished." in page_of(tmp_path)
    assert "<img" not in page_of(tmp_path)


def test_losses_that_are_not_finite_leave_the_rest_of_the_report(tmp_path):
    runs = [
        *runs_of("none", PLAIN),
        *runs_of("cgnl", plus(BETTER), train_loss=None, test_loss=math.nan, curve=[{"epoch": 1, "top1": 3.0}]),
    ]
    assert "cgnl (+5.5 ± 0.9) is better" in write_report(write(tmp_path, runs))
    assert "(4) better – – – " in text_of(page_of(tmp_path))


def test_without_a_diagnosis_there_is_no_section_on_sums(tmp_path):
    write_report(write(tmp_path, [*runs_of("none", PLAIN), *runs_of("cgnl", plus(BETTER))]))
    assert "sums" not in page_of(tmp_path)


def test_the_tries_of_a_tuning_are_no_results(tmp_path):
    runs = [*runs_of("none", PLAIN), *runs_of("cgnl", plus(BETTER))]
    write_report(write(tmp_path, runs))
    before = page_of(tmp_path)
    tries = [*runs_of("none", [10.0, 12.0], "tuning", 1000), *runs_of("cgnl", [90.0, 20.0], "tuning", 1000)]
    write_report(write(tmp_path, [*tries, *runs]))
    assert text_of(page_of(tmp_path)) == text_of(before)
