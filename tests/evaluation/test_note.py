"""The note beside an evaluation, and the files that earlier versions wrote in its place."""

import json

from ovd.evaluation.note import LEGACY_NOTES, NOTE_FILE, EvaluationNote, read_note, remove_note, write_note


def test_a_note_is_read_as_it_was_written(tmp_path):
    assert read_note(tmp_path) is None
    note = EvaluationNote("ab12", is_of_own_set=True, options={"run": "/runs/one"}, inputs={"images": ["x", 1]})
    write_note(tmp_path, note)
    assert read_note(tmp_path) == note
    assert {path.name for path in tmp_path.iterdir()} == {NOTE_FILE}
    remove_note(tmp_path)
    assert read_note(tmp_path) is None


def test_of_a_note_that_was_cut_short_nothing_is_known(tmp_path):
    write_note(tmp_path, EvaluationNote("ab12", is_of_own_set=True, inputs={"images": "x"}))
    (tmp_path / NOTE_FILE).write_text((tmp_path / NOTE_FILE).read_text()[:30])
    assert read_note(tmp_path) == EvaluationNote()


def test_notes_of_earlier_versions_are_read_and_replaced(tmp_path):
    weights, options, inputs = (tmp_path / name for name in LEGACY_NOTES)
    options.write_text(json.dumps({"run": "/runs/one"}))
    assert read_note(tmp_path) == EvaluationNote(options={"run": "/runs/one"})
    weights.write_text(json.dumps({"sha256": "ab12"}))
    assert read_note(tmp_path) == EvaluationNote("ab12", is_of_own_set=True, options={"run": "/runs/one"})
    options.unlink()
    weights.unlink()
    inputs.write_text(json.dumps({"weights_sha256": "ab12"}))
    assert read_note(tmp_path) == EvaluationNote(inputs={"weights_sha256": "ab12"})
    inputs.write_text('{"weights_sha')
    assert read_note(tmp_path) == EvaluationNote()
    write_note(tmp_path, EvaluationNote("cd34"))
    assert read_note(tmp_path) == EvaluationNote("cd34")
    assert not inputs.exists()
    inputs.write_text("{}")
    remove_note(tmp_path)
    assert read_note(tmp_path) is None
