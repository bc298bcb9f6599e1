"""What the console's page says of an answer, what it draws, and that words stay words."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from l2r2.errors import ImageError, InputError, MetadataError
from l2r2.types import Candidate, Caution, Explanation, Prediction, PredictionSet, Region, Stage
from l2r2_serving.answer import Answer
from l2r2_serving.calling import Card
from l2r2_serving.console.figures import class_bars, evidence_bars, log_odds, share, step_bars
from l2r2_serving.console.overlay import DIM, draw
from l2r2_serving.console.page import failed_html, page_html
from l2r2_serving.console.question import read_question
from l2r2_serving.console.result import answer_html, error_html
from l2r2_serving.report import CAUTIONS
from tests.serving.tables import Tables
from tests.tiny import encode

EVIL = "<script>alert('x')</script>&\"'"

CARD = Card(
    name="tiny",
    version="0123456789ab",
    class_names=("red", "green", "blue"),
    hazardous=("green",),
    vocabularies={"habitat": ("forest", "meadow"), "month": ("1", "2"), "soil": ("chalk",)},
    gate_threshold=0.8,
    localizer_threshold=0.5,
    coverage=0.9,
    fusion="R",
    localizer="u2netp",
    deployment="onnxruntime/fp32",
    max_bytes=1_000_000,
    max_pixels=64_000_000,
    min_side_px=16,
)

ESCALATED = Prediction(
    candidates=(Candidate(0, "red", 0.7), Candidate(1, "green", 0.2), Candidate(2, "blue", 0.1)),
    region=Region((10.4, 20.0, 30.0, 40.0), 0.93),
    size_px=(160, 120),
    stages=(Stage.FG, Stage.FULL),
    stage_confidence={Stage.FG: 0.55, Stage.FULL: 0.7},
    stage_candidates={
        Stage.FG: (Candidate(1, "green", 0.55), Candidate(0, "red", 0.4)),
        Stage.FULL: (Candidate(0, "red", 0.7), Candidate(1, "green", 0.2), Candidate(2, "blue", 0.1)),
    },
    explanation=Explanation("green", 1.25, {"FG": -0.5, "FULL": 1.0, "habitat": 0.75, "month": 0.0}),
    cautions=(Caution.FLIPPED_BY_PRIOR,),
    unrecognized=(),
    prediction_set=PredictionSet((Candidate(0, "red", 0.7), Candidate(1, "green", 0.2)), 2, 0.9),
    latency_ms={"decode": 1.0, "locate": 3.0},
)


def test_shares_are_not_rounded_to_certainty() -> None:
    assert [share(p) for p in (1.0, 0.9999, 0.931, 0.0001, 0.0)] == [
        "100.0 %",
        "> 99.9 %",
        "93.1 %",
        "< 0.1 %",
        "0.0 %",
    ]


def test_log_odds_have_their_sign() -> None:
    assert [log_odds(x) for x in (0.4, -0.4, 0.0, -0.001)] == ["+0.40", "−0.40", "0.00", "0.00"]


def test_each_class_has_a_bar_of_fg_full_and_answer() -> None:
    table = Tables(class_bars(ESCALATED, 0.8, frozenset({"green"})))
    assert table.rows == [
        ["class", "FG", "FULL", "answer"],
        ["red", "40.0 %", "70.0 %", "70.0 %"],
        ["green hazardous", "55.0 %", "20.0 %", "20.0 %"],
        ["blue", "not in its first 2", "10.0 %", "10.0 %"],
    ]
    fills = [shape["width"] for shape in table.shapes[1] if shape["class"] == "fill"]
    assert fills == ["40.00", "70.00", "70.00"]


def test_the_gate_is_a_line_in_fg_alone() -> None:
    table = Tables(class_bars(ESCALATED, 0.8))
    gates = [[shape["x1"] for shape in row if shape["class"] == "gate"] for row in table.shapes]
    assert gates == [[], ["80.00"], ["80.00"], []]  # blue is not told by FG, so it has no bar there
    assert "80.0 %" in table.text


def test_a_stage_that_did_not_run_says_so() -> None:
    alone = replace(ESCALATED, stages=(Stage.FG,))
    assert [row[2] for row in Tables(class_bars(alone, 0.8)).rows[1:]] == ["did not run"] * 3
    assert ["FULL did not run", "", "+1.00"] in Tables(evidence_bars(alone, {})).rows


def test_evidence_diverges_and_sums_to_the_total() -> None:
    table = Tables(evidence_bars(ESCALATED, {"habitat": "forest", "month": "2"}))
    assert table.rows[1:] == [
        ["FG", "", "−0.50"],
        ["FULL", "", "+1.00"],
        ["habitat forest", "", "+0.75"],
        ["month February", "", "0.00"],
        ["total", "", "+1.25"],
    ]
    # The longest, the total of 1.25, is half of the width; FG's 0.5 is 20 of 100, left of the middle.
    sides = [(s["class"], s["x"], s["width"]) for row in table.shapes for s in row if s["class"] in {"for", "against"}]
    assert sides[0] == ("against", "30.00", "20.00")
    assert sides[-1] == ("for", "50.00", "50.00")
    signed = [float(width) * (1 if side == "for" else -1) for side, _, width in sides]
    assert sum(signed[:-1]) == pytest.approx(signed[-1])


def test_what_was_not_said_or_is_not_known_is_told() -> None:
    told = replace(ESCALATED, unrecognized=("habitat",))
    rows = Tables(evidence_bars(told, {"habitat": "moon"})).rows
    assert [row[0] for row in rows[3:5]] == ["habitat moon (not in the bundle)", "month not known"]


def test_no_explanation_no_table() -> None:
    assert evidence_bars(replace(ESCALATED, explanation=None), {}) == ""


def test_steps_have_their_time_and_sum() -> None:
    rows = Tables(step_bars({"decode": 1.0, "locate": 3.0})).rows
    assert rows[1:] == [["decode", "", "1.0 ms"], ["locate", "", "3.0 ms"], ["total", "", "4.0 ms"]]


def test_an_answer_is_told_whole() -> None:
    answer = Answer(ESCALATED, "tiny", "0123456789ab", {"soil": "ash"})
    said = Tables(answer_html(answer, b"jpeg", {}, CARD)).text
    for words in (
        "red, 70.0 %",
        CAUTIONS[Caution.FLIPPED_BY_PRIOR],
        "soil “ash” is not known to the bundle",
        "(10, 20) to (30, 40) of 160 × 120 pixels, score 0.93",
        "hold the right class for 90 %",
        "FG (55.0 %) → FULL (70.0 %)",
        "bundle tiny, version 0123456789ab (onnxruntime/fp32)",
        "4.0 ms",
    ):
        assert words in said
    assert "Degraded" not in said
    assert "Withheld" not in said


def test_every_caution_has_its_words() -> None:
    told = replace(ESCALATED, cautions=tuple(Caution))
    said = answer_html(Answer(told, "tiny", "0" * 12), b"", {}, CARD)
    assert all(words in said for words in CAUTIONS.values())


def test_a_withheld_answer_is_no_headline() -> None:
    withheld = replace(ESCALATED, withheld=True, cautions=(Caution.HAZARD,))
    html = answer_html(Answer(withheld, "tiny", "0" * 12), b"", {}, CARD)
    assert re.search(r"<h2[^>]*>([^<]*)</h2>", html)[1] == "Withheld: no answer is given"  # type: ignore[index]
    assert "Likeliest would be red, 70.0 %. Do not take it as an answer." in html


def test_a_degraded_answer_says_so() -> None:
    html = answer_html(Answer(replace(ESCALATED, degraded=True), "tiny", "0" * 12), b"", {}, CARD)
    assert "<b>Degraded.</b> FULL was wanted" in html


def test_other_foregrounds_follow_by_number() -> None:
    other = replace(ESCALATED, candidates=(Candidate(2, "blue", 0.6),))
    answer = Answer(ESCALATED, "tiny", "0" * 12, detections=(ESCALATED, other), thumbnails=(b"one", b"two"))
    html = answer_html(answer, b"jpeg", {}, CARD)
    assert ">1: red, 70.0 %</h2>" in html
    assert "<summary>2: blue, 60.0 %</summary>" in html
    assert html.count("The region, cut out.") == 2
    assert "2 foregrounds are framed and numbered" in html


def test_every_picture_has_a_text_and_every_bar_is_left_to_its_number() -> None:
    html = answer_html(Answer(ESCALATED, "tiny", "0" * 12, thumbnails=(b"one",)), b"jpeg", {}, CARD)
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", html))
    assert all('aria-hidden="true"' in tag for tag in re.findall(r"<svg[^>]*>", html))


def test_names_are_text_wherever_they_stand() -> None:
    evil = replace(
        ESCALATED,
        candidates=(Candidate(0, EVIL, 0.7), Candidate(1, EVIL, 0.2)),
        explanation=Explanation(EVIL, 1.0, {EVIL: 1.0}),
        prediction_set=PredictionSet((Candidate(0, EVIL, 0.7),), 1, 0.9),
        latency_ms={EVIL: 1.0},
        unrecognized=(EVIL,),
    )
    words = (EVIL,)
    card = replace(
        CARD, name=EVIL, version=EVIL, hazardous=words, vocabularies={EVIL: words}, fusion=EVIL, localizer=EVIL
    )
    answer = Answer(evil, EVIL, EVIL, {EVIL: EVIL}, detections=(evil, evil))
    shown = [
        answer_html(answer, b"", {EVIL: EVIL}, card),
        error_html(EVIL),
        failed_html(EVIL),
        page_html(card, ["tiny", EVIL], EVIL),
    ]
    plain = page_html(CARD, ["tiny", "other"], "here").count("<script")
    for html in shown:
        assert "alert(" in Tables(html).text
        assert html.count("<script") <= plain
        assert "alert('x')" not in html


def test_the_form_is_made_of_the_vocabularies() -> None:
    html = page_html(CARD, ["tiny"], "127.0.0.1:1")
    choices = {
        name: re.findall(r'<option value="([^"]*)"', inside)
        for name, inside in re.findall(r'<select data-source="(\w+)">(.*?)</select>', html)
    }
    assert list(choices) == ["habitat", "month", "soil"]
    assert choices["habitat"] == ["", "forest", "meadow", "__other__"]
    assert choices["month"] == ["", *map(str, range(1, 13))]
    assert "March (not in the bundle)" in html
    assert "February</option>" in html
    assert 'data-default="0.50"' in html


def test_a_bundle_without_metadata_asks_for_none() -> None:
    assert "uses no metadata" in page_html(replace(CARD, vocabularies={}), ["tiny"], "here")


def test_an_error_is_one_line() -> None:
    assert Tables(error_html("one\ntwo")).text == "No answer: one two"


def test_frames_lie_around_their_boxes_and_masks_stay_bright() -> None:
    photo = np.full((120, 160, 3), 200, np.uint8)
    mask = np.zeros((60, 80), bool)  # half of the photograph's size, as a server sends it
    mask[20:40, 20:40] = True
    drawn = _pixels(draw(encode(photo), [Region((40.0, 40.0, 80.0, 80.0), 0.9, mask)]))
    assert drawn.shape == photo.shape
    assert drawn[60, 60].mean() == pytest.approx(200, abs=4)
    assert drawn[100, 140].mean() == pytest.approx(200 * DIM, abs=4)
    assert drawn[60, 37:40].max() > 220  # white, left of the box
    assert drawn[60, 33:38].min() < 60  # within black


def test_nothing_found_is_drawn_as_it_is() -> None:
    photo = np.full((40, 60, 3), 90, np.uint8)
    assert np.abs(_pixels(draw(encode(photo), [])).astype(int) - 90).max() <= 2


def test_several_frames_have_numbers() -> None:
    photo = encode(np.full((120, 160, 3), 200, np.uint8))
    first, second = Region((10.0, 10.0, 60.0, 60.0), 0.9), Region((90.0, 50.0, 150.0, 110.0), 0.8)
    assert _pixels(draw(photo, [first]))[11:20, 11:18].min() > 150
    assert _pixels(draw(photo, [first, second]))[11:20, 11:18].min() < 60


def test_a_large_photo_is_drawn_small_and_without_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where my house is"
    exif[0x0112] = 6  # on its side
    data = encode(np.full((1000, 3000, 3), 90, np.uint8), "JPEG", exif=exif)
    drawn = draw(data, [Region((0.0, 0.0, 1000.0, 3000.0), 1.0)])
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.size == (341, 1024)
        assert not picture.getexif()
    assert b"my house" not in drawn


def test_what_is_no_photo_is_not_drawn() -> None:
    with pytest.raises(ImageError):
        draw(b"text", [])


def test_a_question_is_read() -> None:
    line = {"metadata": {"habitat": " forest ", "month": "5"}, "top_k": 3, "thumbnail": True, "max_detections": 2}
    question, photograph = read_question(json.dumps(line).encode() + b"\nphoto\nof two lines")
    assert photograph == b"photo\nof two lines"
    assert question.known() == {"habitat": "forest", "month": "5"}
    options = question.options()
    assert (options.max_detections, options.mask, options.thumbnail_px) == (2, True, 160)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"secret", "Invalid JSON"),
        (b'{"top_k": 0}', "top_k: "),
        (b'{"localizer_threshold": 2}', "localizer_threshold: "),
        (b'{"path": "/etc/secret"}', "path: Extra inputs"),
        (b'{"metadata": {"habitat": "' + b"secret" * 100 + b'"}}', "metadata.habitat: "),
    ],
)
def test_a_broken_question_is_refused_without_its_values(line: bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_question(line + b"\nphoto")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_question_without_a_photo_or_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="no photograph"):
        read_question(b"{}\n")
    with pytest.raises(InputError, match="no line of JSON"):
        read_question(b"{" + b" " * 100_000)


def test_a_month_that_is_none_is_refused() -> None:
    question, _ = read_question(b'{"metadata": {"month": "13"}}\nphoto')
    with pytest.raises(MetadataError):
        question.known()


def _pixels(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("RGB"))
