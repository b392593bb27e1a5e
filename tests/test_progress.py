"""One value for progress, and bars made of it."""

from flowturbo.progress import Progress, bars


def test_progress_prints_as_a_line():
    assert str(Progress("train", 3, 10, loss=0.12345, plan="E8")) == (
        "train: 3 of 10, loss 0.1235, plan E8"
    )
    assert str(Progress("evaluations", 12, None)) == "evaluations: 12"
    assert repr(Progress("train", 3, 10, loss=0.5)) == "Progress('train', 3, 10, loss=0.5)"


def test_a_bar_for_each_stage(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with bars() as report:
        for done in (1, 2):
            report(Progress("solve", done, 2))
        report(Progress("fit", 1, 1, error=0.25))
    shown = capsys.readouterr().err
    assert "solve: 100%" in shown
    assert "2/2" in shown
    assert "error=0.25" in shown
