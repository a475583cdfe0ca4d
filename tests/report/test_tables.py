from raykb.report.tables import markdown


def test_a_table_may_have_no_rows():
    assert markdown(["a", "name"], []) == "| a   | name |\n| --- | ---: |"
