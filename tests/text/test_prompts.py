"""Names as prompts: cleaned, with their article, and in all forms of a class."""

import json

import pytest

from ovd.text.names import class_forms, clean_name, fill_template
from ovd.text.prompts import FULL_TEMPLATES


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("aerosol_can", "aerosol can"),
        ("bow_(weapon)", "bow (weapon)"),
        ("Cabinet/shelf", "Cabinet or shelf"),
        ("  two   spaces ", "two spaces"),
    ],
)
def test_names_are_cleaned(raw, clean):
    assert clean_name(raw) == clean


def test_every_lvis_name_cleans_to_plain_words(shared_data):
    names = [row["name"] for row in json.loads((shared_data / "lvis_v1_train_cat_info.json").read_text())]
    assert len(names) == 1203
    cleaned = [clean_name(name) for name in names]
    assert not {character for name in cleaned for character in name} & set("_/")
    assert len(set(cleaned)) == len(names)  # no rare class merges with a base class of a similar name


def test_articles_follow_the_name():
    assert fill_template("a photo of {article} {}", "umbrella") == "a photo of an umbrella"
    assert fill_template("a photo of {article} {}", "bow") == "a photo of a bow"
    assert fill_template("a photo of {article} {}", "horse") == "a photo of a horse"
    assert fill_template("a photo of {article} {}", "Easter egg") == "a photo of an Easter egg"


def test_full_templates_are_openais_eighty():
    assert len(FULL_TEMPLATES) == 80
    assert all("{}" in template for template in FULL_TEMPLATES)


def test_forms_of_a_name_that_are_read_alike_are_one_and_blank_ones_none():
    assert class_forms("Dog", ["dog", "", "_", "hound", "cur"], 2) == ["Dog", "hound", "cur"]
    assert class_forms("Dog", ["DOG"], 1) == ["Dog", "Dog"]


def test_a_class_with_few_names_repeats_them_evenly():
    assert class_forms("a", ["b"], 3) == ["a", "b", "a", "b"]


def test_a_bracket_is_a_word_of_its_own():
    assert clean_name("bow(weapon)") == "bow (weapon)"


def test_a_blank_name_has_blank_forms():
    assert class_forms("_", ["", "&nbsp;"], 1) == ["", ""]
