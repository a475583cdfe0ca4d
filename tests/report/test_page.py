"""A page holds all that it shows, and no text of a run is taken for HTML."""

import base64

from raykb.report.page import folded, page, pictures, results_page, table, told
from raykb.report.tables import markdown

EVIL = "<script>alert('&')</script>"


def test_all_texts_are_escaped():
    whole = results_page(
        EVIL,
        texts=[f"| {EVIL} | sd |\n| --- | --: |\n| a | 1 |\n\n{EVIL}"],
        files={EVIL: b"png", "large" + EVIL: b"x" * 2**24},
        labels=[EVIL],
        differing={EVIL: {EVIL: EVIL}},
        alike={EVIL: EVIL},
    )
    assert "<script" not in whole
    assert whole.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)") == 12
    assert "&lt;script" in folded(EVIL, "") + table([EVIL], [])


def test_a_bar_in_a_name_opens_no_cell():
    html = told(markdown(["method", "top-1 %"], [["a|b<i>", "1"]]))
    assert "<td>a|b&lt;i&gt;</td><td>1</td>" in html


def test_a_page_is_light_and_dark():
    whole = page("x", {})
    assert "color-scheme: light dark" in whole
    assert "@media (prefers-color-scheme: dark)" in whole


def test_tables_and_paragraphs_of_a_report_are_those_of_the_page():
    html = told("| method | top-1 % |\n| ------ | ------: |\n| a      |   50.00 |\n\nA rule.\n")
    assert "<tr><th>method</th><th>top-1 %</th></tr>" in html
    assert "<tr><td>a</td><td>50.00</td></tr>" in html
    assert html.count("<tr>") == 2
    assert html.endswith("<p>A rule.</p>")


def test_pictures_are_part_of_the_page_up_to_its_budget_and_the_others_are_named():
    files = {"a.png": b"a" * 60, "b.png": b"b" * 60, "c.png": b"c" * 40}
    first, second, left_out = pictures(files, budget=100)
    assert f"data:image/png;base64,{base64.b64encode(files['a.png']).decode()}" in first
    assert "c.png" in second
    assert left_out.endswith("too large for this page: b.png</p>")
    assert len(pictures(files, budget=160)) == 3


def test_a_section_without_anything_is_left_out_and_nothing_may_be_fetched():
    whole = page("x", {"full": ["<p>1</p>"], "empty": []})
    assert "<h2>full</h2>\n<p>1</p>" in whole
    assert "empty" not in whole
    assert "default-src 'none'; img-src data:;" in whole
