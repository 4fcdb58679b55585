"""Queries from captions: the whole caption, its n-grams, and its nouns."""

import json
import re
from itertools import islice, pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd.choices import QuerySource
from ovd.config.labeling import LabelOptions
from ovd.data.world.build import pair_scene
from ovd.data.world.glyphs import load_glyphs
from ovd.data.world.settings import Settings
from ovd.selftrain.pair_queries import MAX_CAPTION_CHARACTERS, PairQueries
from ovd.selftrain.queries import QUERY_SOURCES, caption_queries, ngram_queries, noun_queries
from ovd.selftrain.words import normalize_text, split_words, strip_sense

# Words that the rules treat specially, mixed with arbitrary ones.
KNOWN_WORDS = (
    "a an the of with and in two six 3 one red dark light old photo pair man women boxes glasses bus lens playing is "
    "running dressed building it's isn't dogs' orange , . - & top x"
)
words = st.sampled_from(KNOWN_WORDS.split()) | st.text(max_size=6)
captions = st.text(max_size=60) | st.lists(words, max_size=14).map(" ".join)


@pytest.mark.parametrize("caption", ["", " \n\t ", "...", "—", "🎉 !", "' - '", "\u2764\ufe0f", "\u20e3"])
def test_a_caption_without_words_asks_for_nothing(caption):
    assert caption_queries(caption) == ngram_queries(caption) == noun_queries(caption) == ()
    assert normalize_text(caption) == ""


def test_a_caption_longer_than_the_limit_asks_for_nothing_and_says_why():
    longest = "cat " * (MAX_CAPTION_CHARACTERS // 4 - 1) + "cats"
    found = PairQueries.from_captions([longest, f"{longest}!"], LabelOptions(queries="caption"))
    assert found.queries == ((longest,), ())
    kept, skipped = found.reasons
    assert kept is None
    assert skipped is not None
    assert (skipped.code, str(skipped).count("1001 characters, more than 1000")) == ("F30", 1)


def test_the_whole_caption_keeps_its_spelling():
    assert caption_queries("  A Photo,\n of   Zürich! ") == ("A Photo, of Zürich!",)


def test_ngrams_are_all_runs_of_words_but_for_function_words_at_their_ends():
    assert ngram_queries("A photo of an umbrella, with rain.") == (
        "photo",
        "umbrella",
        "rain",
        "umbrella with rain",
        "photo of an umbrella",
        "photo of an umbrella with rain",
    )
    assert ngram_queries("of the and with a") == ()
    assert ngram_queries("dog dog") == ("dog", "dog dog")


def test_the_number_and_the_length_of_ngrams_are_limited():
    words = [f"word{number}" for number in range(1000)]
    everything = ngram_queries(" ".join(words[:30]))
    assert len(everything) == sum(30 - length + 1 for length in range(1, 11))
    assert max(len(query.split()) for query in everything) == 10
    pairs_of_words = (f"{one} {other}" for one, other in pairwise(words[:160]))
    assert ngram_queries(" ".join(words[:160])) == (*words[:160], *islice(pairs_of_words, 140))
    assert len(noun_queries(", ".join(words))) == 300


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # Opening phrases are dropped.
        ("a photo of an umbrella", ["umbrella"]),
        ("An image with a kite.", ["kite"]),
        ("this is a clock", ["clock"]),
        ("there is a horse and we see a cart", ["horse", "cart"]),
        ("Stock photo: close-up view of a tall building", ["tall building"]),
        ("black and white photograph of an old woman", ["woman"]),
        # Counts and adjectives are dropped unless they are part of a name.
        ("two big red umbrellas", ["umbrella"]),
        ("3 wolves, 12 mice & one goose", ["wolf", "mouse", "goose"]),
        ("a light blue shirt and a light bulb", ["shirt", "light bulb"]),
        ("a six pointed star", ["six pointed star"]),
        ("two six pointed stars", ["six pointed star"]),
        ("two glasses", ["glasses"]),
        ("three sheep", ["sheep"]),
        ("filled stars and an outlined sun", ["filled star", "outlined sun"]),
        ("an orange on an orange chair", ["orange", "chair"]),
        ("two fresh green beans and red wine", ["fresh green bean", "red wine"]),
        ("a green bean bag, small red pandas", ["bean bag", "red panda"]),
        ("two of them in black", []),
        # Phrases joined by "of" and "with".
        ("two cups of coffee", ["cup of coffee"]),
        ("umbrella with rain", ["umbrella with rain", "umbrella", "rain"]),
        ("a face with tears of joy", ["face with tears of joy", "face", "tear of joy"]),
        ("a man with a red hat", ["man with a red hat", "man", "hat"]),
        ("a pair of scissors on top of a box", ["scissors", "box"]),
        ("a couple on a bench", ["couple", "bench"]),
        ("a bow and arrow", ["bow", "arrow"]),
        # Verbs separate phrases.
        ("a man riding a horse", ["man", "horse"]),
        ("man riding horse", ["man", "horse"]),
        ("a dog running", ["dog"]),
        ("she is playing guitar", ["guitar"]),
        ("two playing cards", ["playing card"]),
        ("a wedding ring, a brick building", ["wedding ring", "brick building"]),
        ("apples isolated on white background", ["apple"]),
        ("It's a boy's bicycle, isn't it?", ["boy's bicycle"]),
        # Odd spellings and punctuation.
        ("A T-Shirt, salt-and-pepper hair - a ‘new’ “kite”", ["t-shirt", "salt-and-pepper hair", "kite"]),
        ("fleur-de-lis", ["fleur-de-lis"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ cafe\u0301", ["full width café"]),
        ("A cat &amp; a dog&#39;s bowl<br/>a <a href='x'>kite</a>, 3 < 4", ["cat", "dog's bowl", "kite"]),
        ("um\u00adbrella http://example.com/a,b kite", ["umbrella", "kite"]),
        ("हिन्दी शब्द", ["हिन्दी शब्द"]),
        ("my_holiday_pictures", ["holiday"]),
        ("I love my dogs \u2764\ufe0f", ["love", "dog"]),
        ("\u2764\ufe0f", []),
        ("a trash can on the street, beer can", ["trash can", "street", "beer can"]),
        ("a stand mixer and a can opener", ["stand mixer", "can opener"]),
        ("take a look at a dog", ["dog"]),
        ("a dog can run; you can see a cat; men stand in a field", ["dog", "run", "cat", "man", "field"]),
    ],
)
def test_noun_phrases(caption, expected):
    assert list(noun_queries(caption)) == expected


@pytest.mark.parametrize(
    ("plurals", "singulars"),
    [
        ("dogs boxes dishes churches crosses houses roses", "dog box dish church cross house rose"),
        ("buses horseshoes potatoes knives leaves women", "bus horseshoe potato knife leaf woman"),
        ("berries ties cookies toys gloves pizzas children", "berry tie cookie toy glove pizza child"),
        ("neckties bow-ties beanies quiches taxis skis tvs", "necktie bow-tie beanie quiche taxi ski tv"),
    ],
)
def test_plain_plurals(plurals, singulars):
    assert normalize_text(plurals) == singulars
    assert noun_queries(plurals.replace(" ", ", ")) == tuple(singulars.split())


def test_nearly_every_name_of_lvis_is_found_in_a_caption(shared_data):
    names = [row["name"] for row in json.loads((shared_data / "lvis_v1_train_cat_info.json").read_text())]
    names = [" ".join(strip_sense(name).replace("_", " ").lower().split()) for name in names]
    lost = [name for name in names if name not in noun_queries(f"a {name} on the table")]
    assert len(names) == 1203
    # Colors are dropped from phrases, even where they are part of a kind's name.
    assert set(lost) == {"black sheep"}


def test_after_a_singular_article_nothing_is_made_singular():
    assert noun_queries("a crossed swords") == ("crossed swords",)
    assert noun_queries("crossed swords") == ("crossed sword",)


@given(captions)
@settings(deadline=None)
def test_queries_are_distinct_nonempty_words_of_the_caption(caption):
    found_in = f" {normalize_text(caption)} "
    for queries in (ngram_queries(caption), noun_queries(caption)):
        assert len(set(queries)) == len(queries)
        for query in queries:
            assert query
            assert query == " ".join(split_words(query))
            assert f" {normalize_text(query)} " in found_in


def test_the_world_s_captions_ask_for_what_they_name():
    """Nouns are found in the world's captions, with bounds near the measured 94.5% exact matches and 12% queries that
    name nothing in the world."""
    names_of = {glyph.name: (glyph.name, *glyph.synonyms) for glyph in load_glyphs()}
    all_names = {name for names in names_of.values() for name in names}
    num_named = num_exact = num_queries = num_unknown = 0
    for index in range(150):
        pair = pair_scene(index, "pairs", Settings())
        queries = noun_queries(pair.caption)
        num_queries += len(queries)
        num_unknown += sum(query not in all_names for query in queries)
        for object_name in set(pair.info["names"]):
            named = [name for name in names_of[object_name] if re.search(rf"\b{re.escape(name)}s?\b", pair.caption)]
            num_named += bool(named)
            num_exact += any(name in queries for name in named)
    assert num_named > 300
    assert num_exact >= 0.9 * num_named
    assert num_unknown <= 0.2 * num_queries


def test_every_source_of_a_caption_is_there_and_says_whether_templates_are_put_around_it() -> None:
    assert QUERY_SOURCES.keys() | {"classes"} == set(get_args(QuerySource))
    assert {name for name, source in QUERY_SOURCES.items() if not source.are_names} == {"caption"}


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("an umbrella illustration of a dog", ("umbrella", "dog")),
        ("a dog with her in a park", ("dog", "park")),
        ("a flatbed and a bobsled", ("flatbed", "bobsled")),
    ],
)
def test_phrases_end_where_their_thing_does(caption, nouns):
    assert noun_queries(caption) == nouns
