from raykb.report.tables import cells, markdown


def test_a_table_may_have_no_rows():
    assert markdown(["a", "name"], []) == "| a   | name |\n| --- | ---: |"


def test_what_would_break_a_table_or_move_a_cursor_is_shown_and_not_done():
    table = markdown(["a", "b|c"], [["x\ny\x1b[2J", "1"]])
    assert len(table.splitlines()) == 3
    assert "\x1b" not in table
    assert cells(table.splitlines()[0]) == ["a", "b|c"]
    assert cells(table.splitlines()[2]) == ["x�y�[2J", "1"]
