"""What a page calls the columns of its table."""

from __future__ import annotations

import pytest

from riftcli.report.words import in_words, is_main


@pytest.mark.parametrize(
    ("column", "name", "main"),
    [
        ("acc", "accuracy", True),
        ("acc (isic2018)", "accuracy (isic2018)", True),
        ("cka_debiased", "similarity, debiased (CKA)", True),
        ("knn pets", "nearest neighbours, pets", True),
        ("cka demo_fashion", "similarity to the pretrained model (CKA), demo_fashion", True),
        ("train seconds", "seconds of training", False),
        ("something new", "something new", False),
    ],
)
def test_columns_have_names_that_a_person_reads(column, name, main):
    found, meaning = in_words(column)
    assert (found, is_main(column)) == (name, main)
    assert bool(meaning) == (column != "something new")


def test_the_page_shows_names_folds_the_rest_and_speaks_of_what_is_there(rift, trained, tmp_path):
    code, _, err = rift("report", trained / "full", trained / "lora", "--out", tmp_path / "many.html")
    assert code == 0, err
    many = (tmp_path / "many.html").read_text()
    assert '<abbr title="Share of the test images whose likeliest class is the right one.">accuracy</abbr>' in many
    assert "more measures</summary>" in many
    assert many.index(">accuracy</abbr>") < many.index("more measures</summary>") < many.index("seconds of training")
    assert "Mean and standard deviation over seeds or folds." in many and "The best of a line is bold." in many
    assert "Before and after, on validation" not in many
    one = (trained / "lora" / "report.html").read_text()
    assert "Mean and standard deviation" not in one and "is bold" not in one
    assert "95 % interval of the accuracy, from 60 images: " in one and "(Wilson)" in one
    assert "Before and after, on validation" in one and "before the first step" in one
