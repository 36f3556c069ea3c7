import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlhf_bench.cli import show


def test_a_password_is_left_out_of_what_is_shown() -> None:
    assert show.redact("postgresql+psycopg://me:p@ss/word@host:5432/db") == "postgresql+psycopg://***@host:5432/db"
    assert (
        show.redact("postgresql://host/db?password=secret&sslmode=require")
        == "postgresql://host/db?password=***&sslmode=require"
    )
    assert show.redact("sqlite:////home/me/store.db") == "sqlite:////home/me/store.db"


def test_a_complaint_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show.complain("error: no\n suite\x1b[31m [bold]x[/bold] at postgresql://a:b@c/d")
    assert capsys.readouterr().err == "error: no suite\\x1b[31m [bold]x[/bold] at postgresql://***@c/d\n"


def test_markup_and_escapes_in_a_cell_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    show.table("t", ("a", "b"), [("[red]x[/red]", "\x1b]0;title\x07")])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "\\x1b]0;title\\x07" in out
    assert "\x1b" not in out


def test_markup_in_a_line_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    show.say("[link=x]y[/link] :smile:")
    assert capsys.readouterr().out == "[link=x]y[/link] :smile:\n"


def test_a_pipe_in_a_markdown_cell_stays_in_its_cell(capsys: pytest.CaptureFixture[str]) -> None:
    show.markdown(("a",), [("x|y",)])
    assert capsys.readouterr().out.splitlines() == ["| a |", "| --- |", "| x\\|y |"]


bounds = st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted)


@given(bounds, st.floats(0.01, 1), st.integers(5, 60))
def test_a_whisker_has_its_cells_and_its_ends_in_order(values: list[float], reach: float, cells: int) -> None:
    drawn = show.whisker(values[0], values[1], values[2], reach, margin=0.02, cells=cells)
    assert len(drawn) == cells
    assert drawn.count("●") == 1
    places = [drawn.find(sign) for sign in "├●┤"]
    shown = [place for place in places if place >= 0]
    assert shown == sorted(shown)


def test_a_whisker_shows_zero_and_the_margin() -> None:
    assert show.whisker(0.2, 0.4, 0.6, 1.0, margin=0.5, cells=21) == "     ┊    │ ├─●─┤    "
    assert show.whisker(-0.4, 0.0, 0.4, 1.0, cells=21) == "      ├───●───┤      "


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (185, "3m05s"), (3599.6, "1h00m"), (7800, "2h10m")]
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_progress_in_a_log_is_at_most_a_line_a_tenth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "LOG_EVERY_S", 0.0)
    with show.bars()("answers", 1000) as advance:
        for _ in range(1000):
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "answers: 0/1000"
    assert len(lines) == 11
    assert re.fullmatch(r"answers: 500/1000, [\d.]+/s, \d+s left", lines[5])
    assert re.fullmatch(r"answers: 1000/1000, [\d.]+/s, took \d+s", lines[-1])


def test_a_short_job_has_two_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with show.bars()("answers", 50) as advance:
        for _ in range(50):
            advance(1)
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["answers: 0/50", "answers: 50/50"]


def test_what_a_server_said_cannot_drive_the_terminal_from_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    label = "waiting (\x9b2J\x1b[2J http://me:verysecret@host)"
    with show.bars()(label, 1) as advance:
        advance(1)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    with show._live(terminal)(label, 1):
        pass
    for said in (capsys.readouterr().err, terminal.file.getvalue()):  # type: ignore[attr-defined]
        assert "waiting (\\x9b2J\\x1b[2J http://***@host)" in said and "\x9b" not in said and "\x1b[2J" not in said


def test_progress_of_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show.bars()("answers", 0) as advance:
        advance(0)
    assert capsys.readouterr().err == ""


def test_live_progress_has_rate_count_and_rest_and_may_nest() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    track = show._live(terminal)
    with track("answers [b]", 4) as outer, track("judge", 2) as inner:
        outer(4)
        inner(1)
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "answers [b]" in drawn
    assert "4/4" in drawn
    assert "1/2" in drawn


def test_live_progress_keeps_to_one_line_on_a_narrow_terminal() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    with show._live(terminal, lambda: "whole run: more than 1h40m left")(
        "iteration 2 of 3: measure: answers", 1000
    ) as a:
        a(1000)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())  # type: ignore[attr-defined]
    lines = [line for line in re.split(r"[\r\n]+", drawn) if line.strip()]
    assert lines and all(line.startswith("iteration 2 of 3: measure: answers") for line in lines)


def test_json_is_the_codecs(capsys: pytest.CaptureFixture[str]) -> None:
    show.as_json({"a": ("ä", None)})
    assert capsys.readouterr().out == '{\n  "a": [\n    "ä",\n    null\n  ]\n}\n'
    assert "rich" in sys.modules
