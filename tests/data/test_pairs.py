"""Tar shards of image-caption pairs: they are read as written, and damaged or odd ones are named or counted."""

import gc
import gzip
import hashlib
import json
import os
import pickle
import tarfile
import weakref
from io import BytesIO
from pathlib import Path

import pytest
from run_files import bytes_of

from ovd.data.pairs.manifest import MANIFEST_NAME, list_shards
from ovd.data.pairs.pair import Pair
from ovd.data.pairs.tar import PairShards
from ovd.data.pairs.write import write_pair_shards
from ovd.data.report import DataError


def some_pairs(count: int) -> list[Pair]:
    return [
        Pair(key=f"{row:06d}", image=bytes([row % 251]) * (row * 37), caption=f"caption {row} é", info={"row": row})
        for row in range(count)
    ]


def write_tar(path: Path, members: list[tuple[str, bytes]], *, pack_format: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=pack_format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
def test_what_is_written_is_read_by_position(tmp_path, count):
    pairs = some_pairs(count)
    write_pair_shards(tmp_path, pairs, pairs_per_shard=3)
    shards = PairShards(tmp_path)
    assert [shards[row] for row in range(len(shards))] == pairs
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [f"{row:05d}.tar" for row in range(-(-count // 3))]
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(IndexError):
        shards[count]
    with pytest.raises(IndexError):
        shards[-1]


def test_bytes_depend_on_the_pairs_alone_and_the_manifest_is_true(tmp_path):
    for name in "ab":
        write_pair_shards(tmp_path / name, iter(some_pairs(7)), pairs_per_shard=4)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    for entry in json.loads((tmp_path / "a" / MANIFEST_NAME).read_text())["shards"]:
        content = (tmp_path / "a" / entry["file"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        with tarfile.open(tmp_path / "a" / entry["file"]) as archive:
            members = archive.getmembers()
        assert len(members) == 3 * entry["samples"]
        assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
            (0, 0, 0, "", 0o644)
        }


def test_a_failed_write_leaves_no_manifest_and_nothing_is_overwritten(tmp_path):
    def failing():
        yield from some_pairs(5)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_pair_shards(tmp_path / "cut", failing(), pairs_per_shard=2)
    assert not (tmp_path / "cut" / MANIFEST_NAME).exists()
    assert [path.name for path in sorted((tmp_path / "cut").glob("*.tar"))] == ["00000.tar", "00001.tar"]
    write_pair_shards(tmp_path / "clean", some_pairs(5), pairs_per_shard=2)
    for folder in (tmp_path / "cut", tmp_path / "clean"):  # without a manifest, the shards may be a user's only data
        before = bytes_of(folder)
        with pytest.raises(ValueError, match=r"already contains shards \(00000\.tar, 00001\.tar"):
            write_pair_shards(folder, some_pairs(9), pairs_per_shard=2)
        assert bytes_of(folder) == before


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "x" * 95, "a\n"])
def test_keys_that_are_no_member_names_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="key"):
        write_pair_shards(tmp_path, [Pair(key, b"", "", {})], pairs_per_shard=1)


def test_a_key_that_comes_twice_is_refused_across_shards(tmp_path):
    with pytest.raises(ValueError, match="key '000000' follows '000001'; keys must ascend"):
        write_pair_shards(tmp_path / "a", [*some_pairs(2), some_pairs(1)[0]], pairs_per_shard=1)
    with pytest.raises(ValueError, match="key '000000' follows '000000'"):
        write_pair_shards(tmp_path / "b", some_pairs(1) * 2, pairs_per_shard=2)
    numbers = [Pair(f"{row}", b"", "", {}) for row in (8, 9, 10)]
    write_pair_shards(tmp_path / "c", numbers, pairs_per_shard=2)
    assert len(PairShards(tmp_path / "c")) == 3


def test_keys_that_were_written_are_not_remembered(tmp_path):
    class Key(str):
        """A key that weak references can watch."""

    keys: list[weakref.ref[Key]] = []

    def pairs():
        for row in range(5):
            key = Key(f"{row:06d}")
            keys.append(weakref.ref(key))
            yield Pair(key, b"", "", {})
            del key
            gc.collect()
            assert sum(of_pair() is not None for of_pair in keys) <= 2

    write_pair_shards(tmp_path, pairs(), pairs_per_shard=2)
    assert len(keys) == 5


def test_all_faulty_shards_are_named_at_once(tmp_path):
    write_pair_shards(tmp_path, some_pairs(3), pairs_per_shard=1)
    for name in ("00000.tar", "00002.tar"):
        os.truncate(tmp_path / name, 600)
    with pytest.raises(DataError, match=r"2 of 3 shards cannot be used:\n.*00000\.tar: .*\n.*00002\.tar: ") as caught:
        PairShards(tmp_path)
    assert caught.value.code == "F13"
    assert "00001" not in str(caught.value)


@pytest.mark.parametrize(
    ("pack_format", "key"),
    [
        (tarfile.USTAR_FORMAT, "folder/name"),
        (tarfile.GNU_FORMAT, "folder/" + "long name é " * 20),
        (tarfile.PAX_FORMAT, "folder/" + "long name é " * 20),
    ],
)
def test_other_writers_long_names_folders_and_missing_info(tmp_path, pack_format, key):
    write_tar(tmp_path / "part.tar", [(f"./{key}.TXT", b"a cat"), (f"./{key}.png", b"image")], pack_format=pack_format)
    shards = PairShards(tmp_path)
    assert [shards[row] for row in range(len(shards))] == [Pair(key, b"image", "a cat", {})]
    assert shards.location(0) == f"part.tar:{key}"


@pytest.mark.parametrize("with_manifest", [True, False])
def test_no_cut_of_a_shard_loses_samples_in_silence(tmp_path, with_manifest):
    write_pair_shards(tmp_path, some_pairs(4), pairs_per_shard=4)
    shard = tmp_path / "00000.tar"
    whole = shard.read_bytes()
    if not with_manifest:
        (tmp_path / MANIFEST_NAME).unlink()
    last_content = max(row for row, byte in enumerate(whole) if byte) + 1
    end = -(-last_content // 512) * 512  # the zeros after it are the end marker and padding
    for length in [0, 1, 100, *range(511, end, 131), *range(512, end, 512), end, end + 511, end + 1023]:
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"00000\.tar.*(found \d samples?|\d samples? before it)") as caught:
            PairShards(tmp_path)
        if with_manifest:
            assert "expected 4 samples" in str(caught.value)
            assert hashlib.sha256(whole[:length]).hexdigest() in str(caught.value)
            assert hashlib.sha256(whole).hexdigest() in str(caught.value)


def test_with_a_manifest_every_flipped_bit_stops(tmp_path):
    write_pair_shards(tmp_path, some_pairs(2), pairs_per_shard=2)
    shard = tmp_path / "00000.tar"
    whole = shard.read_bytes()
    for bit in range(0, len(whole) * 8, 401):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="sha256"):
            PairShards(tmp_path)


def test_without_a_manifest_a_flipped_header_bit_stops_or_changes_nothing(tmp_path):
    pairs = some_pairs(3)
    write_pair_shards(tmp_path, pairs, pairs_per_shard=3)
    (tmp_path / MANIFEST_NAME).unlink()
    shard = tmp_path / "00000.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        headers = [member.offset for member in archive.getmembers()]
    num_stopped = 0
    for header in headers[1:3]:
        for bit in range(header * 8, (header + 512) * 8, 23):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            shard.write_bytes(damaged)
            try:
                shards = PairShards(tmp_path)
            except ValueError as error:
                assert "before it" in str(error)  # noqa: PT017
                num_stopped += 1
            else:  # the flip turned a zero byte of the checksum into a blank
                assert [shards[row] for row in range(len(shards))] == pairs
    assert num_stopped > 0.95 * 2 * 512 * 8 / 23


def test_interleaved_keys_are_joined_and_a_second_member_stops(tmp_path):
    members = [("b.txt", b"B"), ("a.jpg", b"1"), ("b.jpg", b"2"), ("a.json", b'{"n": 1}'), ("a.txt", b"A")]
    write_tar(tmp_path / "x.tar", members)
    shards = PairShards(tmp_path)
    assert [shards[0], shards[1]] == [Pair("b", b"2", "B", {}), Pair("a", b"1", "A", {"n": 1})]
    write_tar(tmp_path / "x.tar", [*members, ("a.jpg", b"1")])
    with pytest.raises(ValueError, match=r"x\.tar: sample 'a' has its image member twice"):
        PairShards(tmp_path)


def test_an_image_without_a_caption_stops(tmp_path):
    for info in ([], [("b.json", b'{"caption": null}')], [("b.json", b"[1]")], [("b.json", b"[" * 100_000)]):
        write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.txt", b"A"), ("b.jpg", b"B"), *info])
        with pytest.raises(DataError, match=r"sample 'b' has no caption member and no `caption` string in its json"):
            PairShards(tmp_path)


def test_failed_downloads_are_counted_and_stop_where_they_are_most_of_a_shard(tmp_path):
    good = [(f"{row}.{kind}", b"%d" % row) for row in range(5) for kind in ("jpg", "txt")]
    failed = [
        ("f1.txt", b"F"),
        ("f2.json", b"{}"),
        ("f3.txt", b"F"),
        ("f3.json", b"{}"),
        ("f4.txt", b""),
        ("f5.txt", b""),
    ]
    write_tar(tmp_path / "x.tar", [*failed, *good])
    shards = PairShards(tmp_path)
    assert [shards.key(row) for row in range(len(shards))] == ["0", "1", "2", "3", "4"]
    assert (shards.num_failed, shards.rejected) == (5, 0)
    assert shards.describe_rejected().endswith("not used; 5 samples without an image (failed downloads)")
    write_tar(tmp_path / "x.tar", [*failed, *good[2:]])
    with pytest.raises(DataError, match="5 of 9 samples have no image member"):
        PairShards(tmp_path)


def test_captions_may_be_in_the_info_or_in_a_member_of_their_name(tmp_path):
    members = [("a.jpg", b"1"), ("a.json", b'{"caption": "one \\u00e9"}'), ("b.gif", b"2"), ("b.caption", b"two"),
               ("c.avif", b"3"), ("c.txt", b"three"), ("c.json", b'{"caption": "another"}')]  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    shards = PairShards(tmp_path)
    assert [shards[row].caption for row in range(3)] == ["one é", "two", "three"]
    assert [shards[row].info for row in range(3)] == [{"caption": "one é"}, {}, {"caption": "another"}]
    again = PairShards(tmp_path, known={"x.tar": shards.index("x.tar")})
    assert [again.caption(row) for row in range(3)] == ["one é", "two", "three"]
    write_tar(tmp_path / "x.tar", [*members, ("b.txt", b"two")])
    with pytest.raises(DataError, match="sample 'b' has its caption member twice"):
        PairShards(tmp_path)


def test_gaps_in_the_numbers_of_shards_are_named_and_the_others_read(tmp_path, capsys):
    write_pair_shards(tmp_path, some_pairs(4), pairs_per_shard=1)
    (tmp_path / MANIFEST_NAME).unlink()
    assert len(PairShards(tmp_path)) == 4
    assert "gaps" not in capsys.readouterr().err
    (tmp_path / "00001.tar").unlink()
    assert len(PairShards(tmp_path)) == 3
    assert "the shard numbers have 1 gap, the first at 1, and no manifest.json" in capsys.readouterr().err


class CreatesFileWhenUnpickled:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_unsafe_members_are_counted_and_nothing_is_written_or_unpickled(tmp_path):
    directory = tmp_path / "shards"
    directory.mkdir()
    payload = pickle.dumps(CreatesFileWhenUnpickled(tmp_path / "payload"))
    with tarfile.open(directory / "x.tar", "w") as archive:
        for name, content in [
            ("good.jpg", b"image"),
            ("good.txt", b"text"),
            ("good.pkl", payload),
            ("good.pyd", payload),
            ("../../outside.jpg", b"x"),
            ("../../outside.txt", b"x"),
            (str(tmp_path / "absolute.txt"), b"x"),
            ("half.txt", b"its image is a link"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
        for name, kind in [("half.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.txt", tarfile.CHRTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    before = sorted(tmp_path.rglob("*"))
    shards = PairShards(directory)
    assert [shards[row] for row in range(len(shards))] == [Pair("good", b"image", "text", {})]
    assert shards.rejected == 9
    assert shards.describe_rejected().startswith("9 members of the shards not used, such as good.pkl, good.pyd, ..")
    assert sorted(tmp_path.rglob("*")) == before


def test_samples_whose_keys_have_dots_are_paired_by_the_name_before_the_last(tmp_path):
    members = [
        ("v1.0_1.jpg", b"1"),
        ("v1.0_1.txt", b"2"),
        ("v1.0_2.jpg", b"3"),
        ("v1.0_2.txt", b"4"),
        ("v1.0_2.json", b"{}"),
    ]
    write_tar(tmp_path / "x.tar", [*members, ("a.jpg", b"image"), ("a.txt", b"text"), ("a.seg.png", b"part")])
    shards = PairShards(tmp_path)
    assert [shards[row] for row in range(len(shards))] == [
        Pair("v1.0_1", b"1", "2", {}), Pair("v1.0_2", b"3", "4", {}), Pair("a", b"image", "text", {})
    ]  # fmt: skip
    assert shards.describe_rejected().endswith("1 member of the shards not used, such as a.seg.png")


def test_a_key_that_may_be_a_part_of_another_sample_stops(tmp_path):
    parts = [("a.1.jpg", b"1"), ("a.1.txt", b"2")]
    whole = [("a.jpg", b"3"), ("a.txt", b"4")]
    for members in (parts + whole, whole + parts):
        write_tar(tmp_path / "x.tar", members)
        with pytest.raises(
            DataError, match=r"a\.1\.jpg may be sample 'a\.1' or a part of sample 'a'; rename"
        ) as caught:
            PairShards(tmp_path)
        assert caught.value.code == "F14"


def test_attributes_of_macos_are_no_samples(tmp_path):
    attributes = b"\0\x05\x16\x07\0\x02\0\0Mac OS X"
    members = [(f"{start}a.{end}", content) for end, content in (("jpg", b"image"), ("txt", b"text"), ("json", b"{}"))
               for start, content in (("x/._", attributes), ("x/", content))]  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    shards = PairShards(tmp_path)
    assert [shards[row] for row in range(len(shards))] == [Pair("x/a", b"image", "text", {})]
    assert shards.describe_rejected() == ("3 members of the shards not used, such as x/._a.jpg, x/._a.txt, x/._a.json")


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    members = [("a.jpg", b""), ("a.txt", b"\xef\xbb\xbfa gull\r\n"), ("b.jpg", b""), ("b.txt", b"\xef\xbb\xbf"),
               ("c.jpg", b""), ("c.json", b'\xef\xbb\xbf{"caption": "a gull"}')]  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    shards = PairShards(tmp_path)
    assert [shards.caption(row) for row in range(3)] == ["a gull\r\n", "", "a gull"]
    assert shards.num_undecodable_captions == 0


def test_captions_that_are_not_utf8_are_read_and_counted_once(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.jpg", b""), ("a.txt", b"caf\xe9"), ("b.jpg", b""), ("b.txt", b"")])
    shards = PairShards(tmp_path)
    assert [shards.caption(0), shards[0].caption, shards[1].caption] == ["caf�", "caf�", ""]
    assert shards.num_undecodable_captions == 1


@pytest.mark.parametrize("info", [b"{", b"[1]", b"[" * 100_000])
def test_a_bad_info_member_names_the_sample(tmp_path, info):
    write_tar(tmp_path / "x.tar", [("a.jpg", b""), ("a.txt", b""), ("a.json", info)])
    shards = PairShards(tmp_path)
    with pytest.raises(ValueError, match=r"x\.tar:a\.json"):
        shards[0]
    assert (shards.key(0), shards.image(0), shards.caption(0)) == ("a", b"", "")  # enough for labeling and training


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_one_shard_more_or_less_than_in_the_manifest_stops(fault, tmp_path):
    write_pair_shards(tmp_path, some_pairs(4), pairs_per_shard=1)
    first = tmp_path / "00000.tar"
    if fault == "unknown":
        (tmp_path / "x.tar").write_bytes(first.read_bytes())
        words = r"from the folder: none; shards not in the manifest: x\.tar"
    else:
        first.unlink()
        words = r"from the folder: 00000\.tar; shards not in the manifest: none"
    with pytest.raises(DataError, match=words):
        PairShards(tmp_path)


def test_folder_and_manifest_must_name_the_same_shards(tmp_path):
    with pytest.raises(ValueError, match=r"no \.tar shards"):
        PairShards(tmp_path)
    write_pair_shards(tmp_path, some_pairs(2), pairs_per_shard=1)
    (tmp_path / "00001.tar").rename(tmp_path / "other.tar")
    with pytest.raises(ValueError, match=r"missing from the folder: 00001\.tar; .* manifest: other\.tar"):
        PairShards(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "KeyError"),
        ("[" * 100_000, "RecursionError"),
        ('{"shards": [{"file": "a.tar", "samples": 1, "sha256": "0", "bytes": Infinity}]}', "float infinity"),
        (
            '{"shards": [{"file": 7, "samples": 1, "sha256": "0", "bytes": 1},'
            ' {"file": "b.tar", "samples": 1, "sha256": "0", "bytes": 1}]}',
            "the file name 7 is not a string",
        ),
        (
            '{"shards": [{"file": "a.tar", "samples": 1, "sha256": "0", "bytes": 1},'
            ' {"file": "a.tar", "samples": 2, "sha256": "0", "bytes": 1}]}',
            "a shard is listed twice",
        ),
    ],
)
def test_what_is_no_manifest_is_named_with_the_reason_and_the_fix(tmp_path, content, reason):
    write_tar(tmp_path / "a.tar", [("k.jpg", b""), ("k.txt", b"")])
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(DataError, match=rf"manifest\.json is not a shard manifest \(.*{reason}.*\); correct it, or"):
        PairShards(tmp_path)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_only_some_shards_are_opened_and_the_others_may_be_damaged(tmp_path, with_manifest):
    pairs = some_pairs(7)
    write_pair_shards(tmp_path, pairs, pairs_per_shard=2)
    listed = list_shards(tmp_path)
    assert list(listed) == [f"0000{row}.tar" for row in range(4)]
    assert [entry.num_samples for entry in listed.values() if entry is not None] == [2, 2, 2, 1]
    if not with_manifest:
        (tmp_path / MANIFEST_NAME).unlink()
        assert list_shards(tmp_path) == dict.fromkeys(listed)
    (tmp_path / "00000.tar").write_bytes(b"damaged")
    shards = PairShards(tmp_path, only=["00003.tar", "00001.tar"])
    assert shards.file_names == ("00001.tar", "00003.tar")
    assert [shards[row] for row in range(len(shards))] == [pairs[2], pairs[3], pairs[6]]
    assert [shards.caption(row) for row in range(len(shards))] == [pairs[row].caption for row in (2, 3, 6)]
    assert [shards.positions(name) for name in shards.file_names] == [range(2), range(2, 3)]
    assert len(PairShards(tmp_path, only=())) == 0
    with pytest.raises(ValueError, match=r"no shards other\.tar"):
        PairShards(tmp_path, only=["00001.tar", "other.tar"])
    with pytest.raises(ValueError, match=r"00000\.tar"):
        PairShards(tmp_path)


@pytest.mark.parametrize("pack_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_known_index_finds_the_same_samples_and_no_others(tmp_path, pack_format):
    members = [(f"{'long ' * row * 9}{row}.{kind}", b"%d" % row) for row in range(4) for kind in ("jpg", "txt")]
    write_tar(tmp_path / "x.tar", members, pack_format=pack_format)
    before = PairShards(tmp_path)
    again = PairShards(tmp_path, known={"x.tar": before.index("x.tar")})
    assert [again[row] for row in range(4)] == [before[row] for row in range(4)]
    assert again.rejected == 0

    # In another file of the same size, samples at other places are not mistaken for the old ones.
    size = (tmp_path / "x.tar").stat().st_size
    write_tar(tmp_path / "x.tar", [("first.json", bytes(600)), *members[:-2]], pack_format=pack_format)
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:size].ljust(size, b"\0"))
    moved = PairShards(tmp_path, known={"x.tar": before.index("x.tar")})
    with pytest.raises(
        ValueError, match=r"x\.tar: the image of '.*' is not at byte \d+; the shard was changed after indexing"
    ):
        moved[1]


def test_the_members_of_another_sample_of_the_same_sizes_are_not_taken(tmp_path):
    members = [(f"{key}.{kind}", key.encode()) for key in "ab" for kind in ("jpg", "txt")]
    write_tar(tmp_path / "x.tar", members)
    before = PairShards(tmp_path)
    write_tar(tmp_path / "x.tar", members[2:] + members[:2])
    with pytest.raises(ValueError, match="the image of 'a' is not at byte 512; the shard was changed after indexing"):
        PairShards(tmp_path, known={"x.tar": before.index("x.tar")})[0]


def test_half_a_character_in_a_caption_of_json_is_replaced(tmp_path):
    content = b'{"caption": "a red \\ud83d umbrella, \\ud83d\\ude00"}'
    write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.json", content)])
    assert PairShards(tmp_path).caption(0) == "a red \ufffd umbrella, \U0001f600"


def test_a_shard_that_shrinks_after_indexing_stops(tmp_path):
    write_pair_shards(tmp_path, some_pairs(3), pairs_per_shard=3)
    shards = PairShards(tmp_path)
    os.truncate(tmp_path / "00000.tar", 600)
    for read in (shards.__getitem__, shards.caption):
        with pytest.raises(ValueError, match="the shard was changed after indexing"):
            read(2)


@pytest.mark.parametrize("name", ["00001.tar.gz", "00001.tgz", "00001.tar.zst", "00000.tar"])
def test_compressed_shards_are_named(tmp_path, name):
    write_pair_shards(tmp_path, some_pairs(2), pairs_per_shard=2)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / "00000.tar").read_bytes()))
    with pytest.raises(DataError, match=rf"{name}.*unpack|compressed with gzip") as caught:
        PairShards(tmp_path)
    assert caught.value.code == "F13"
