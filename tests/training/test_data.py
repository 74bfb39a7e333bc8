from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsv2.training.data import IGNORED, PackedLoader
from dsv2.training.shards import MANIFEST, DataError, ShardWriter, TokenDataset
from tests.training.make import VOCAB, write_shards

LENGTHS = [5, 70, 1, 33, 12, 64, 9, 100, 2, 31]


def documents(dataset: TokenDataset) -> list[list[int]]:
    return [
        dataset.read(*dataset.bounds(number))[0].tolist() for number in range(dataset.num_documents)
    ]


@pytest.mark.parametrize("shard_tokens", [1, 80, 1 << 20])
def test_documents_come_back_whole_over_any_number_of_shards(
    tmp_path: Path, shard_tokens: int
) -> None:
    folder = write_shards(tmp_path / "d", LENGTHS, shard_tokens=shard_tokens)
    assert [len(document) for document in documents(TokenDataset(folder))] == LENGTHS
    same = write_shards(tmp_path / "e", LENGTHS)
    assert documents(TokenDataset(folder)) == documents(TokenDataset(same))


def test_an_epoch_holds_every_token_once_and_cuts_only_at_rows(tmp_path: Path) -> None:
    dataset = TokenDataset(write_shards(tmp_path / "d", LENGTHS))
    loader = PackedLoader(dataset, 16, seed=3)
    assert loader.rows_per_epoch == sum(LENGTHS) // 16
    batch = loader.batch_at(0, loader.rows_per_epoch)
    assert len(batch.tokens) == sum(batch.lengths) == loader.rows_per_epoch * 16
    originals = documents(dataset)
    pieces, start = [], 0
    for length in batch.lengths:
        tokens = batch.tokens[start : start + length].tolist()
        targets = batch.targets[start : start + length].tolist()
        assert targets[:-1] == tokens[1:]
        assert targets[-1] == IGNORED or any(
            [*tokens, targets[-1]] == d[i : i + length + 1]
            for d in originals
            for i in range(len(d))
        )
        pieces.append(tokens)
        start += length
    # Joined in order, the pieces are whole documents, but for the one that the epoch's end cuts.
    joined = [token for piece in pieces for token in piece]
    left = sorted(originals, key=len, reverse=True)
    while joined:
        found = next((d for d in left if joined[: len(d)] == d), None)
        if found is None:
            assert any(d[: len(joined)] == joined for d in left)
            break
        left.remove(found)
        joined = joined[len(found) :]


def test_a_row_is_the_same_however_it_is_reached(tmp_path: Path) -> None:
    dataset = TokenDataset(write_shards(tmp_path / "d", LENGTHS))
    for whole in (False, True):
        straight = PackedLoader(dataset, 32, seed=1, whole=whole)
        rows = 4 * straight.rows_per_epoch + 3
        everything = straight.batch_at(0, rows)
        for number in (rows - 1, 0, rows // 2, 3):
            row = PackedLoader(dataset, 32, seed=1, whole=whole).batch_at(number, 1)
            expected = everything.tokens[number * 32 : (number + 1) * 32]
            assert row.tokens.tolist() == expected.tolist()


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    dataset = TokenDataset(write_shards(tmp_path / "d", LENGTHS * 3))
    loader = PackedLoader(dataset, 16, seed=1)
    rows = loader.rows_per_epoch
    first, second = loader.batch_at(0, rows).tokens, loader.batch_at(rows, rows).tokens
    assert first.tolist() != second.tolist()
    other = PackedLoader(dataset, 16, seed=2).batch_at(0, rows).tokens
    assert first.tolist() != other.tolist()


def test_whole_documents_are_never_cut_unless_longer_than_a_row(tmp_path: Path) -> None:
    dataset = TokenDataset(write_shards(tmp_path / "d", LENGTHS))
    loader = PackedLoader(dataset, 40, seed=0, whole=True)
    batch = loader.batch_at(0, loader.rows_per_epoch)
    originals = documents(dataset)
    start, seen = 0, []
    for length in batch.lengths:
        tokens = batch.tokens[start : start + length].tolist()
        if (batch.targets[start : start + length] == IGNORED).all() and set(tokens) == {0}:
            pass  # the filling of a row
        else:
            seen.append(tokens)
        start += length
    assert sorted(seen) == sorted(document[:40] for document in originals)


def test_the_mask_turns_targets_off(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "d", [20], masked=True)
    dataset = TokenDataset(folder)
    tokens, mask = dataset.read(0, 20)
    assert mask is not None
    assert 0 < mask.sum() < 20
    batch = PackedLoader(dataset, 20, seed=0, whole=True).batch_at(0, 1)
    expected = [*np.where(mask[1:], tokens[1:], IGNORED).tolist(), IGNORED]
    assert batch.targets.tolist() == expected


def test_too_little_data_for_a_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not fill one row"):
        PackedLoader(TokenDataset(write_shards(tmp_path / "d", [5])), 16, seed=0)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "d", LENGTHS)
    shard = folder / "tokens-00000.bin"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"tokens-00000\.bin: has \d+ bytes"):
        TokenDataset(folder)
    shard.write_bytes(good[:-2] + b"\x05\x00")
    with pytest.raises(DataError, match=r"tokens-00000\.bin: its content"):
        TokenDataset(folder)
    shard.unlink()
    with pytest.raises(DataError, match="is not there"):
        TokenDataset(folder)
    shard.write_bytes(good)
    TokenDataset(folder)
    (folder / "documents.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"documents\.bin"):
        TokenDataset(folder)


def test_a_manifest_that_was_edited_is_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "d", LENGTHS)
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"vocab_size": 10**6}))
    with pytest.raises(DataError, match="fingerprint"):
        TokenDataset(folder)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        TokenDataset(folder)
    path.unlink()
    with pytest.raises(DataError, match="dsv2 prepare writes it"):
        TokenDataset(folder)


def test_a_token_beyond_the_vocabulary_names_file_and_place(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "d", VOCAB, masked=False) as writer:
        writer.add([3, 4, VOCAB, 5], None, 4)
    loader = PackedLoader(TokenDataset(tmp_path / "d"), 4, seed=0)
    with pytest.raises(DataError, match=r"tokens-00000\.bin: token 160 at place 2 .*160"):
        loader.batch_at(0, 1)


def test_large_ids_do_not_wrap(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "d", 102_400, masked=False) as writer:
        writer.add([65_536, 102_399, 40_000], None, 3)
    assert TokenDataset(tmp_path / "d").read(0, 3)[0].tolist() == [65_536, 102_399, 40_000]


def test_documents_are_not_empty_and_masks_are_where_they_belong(tmp_path: Path) -> None:
    for ids, mask, words in (([], None, "no tokens"), ([1], [True], "masked")):
        folder = tmp_path / words
        with (
            pytest.raises(DataError, match=words),
            ShardWriter(folder, VOCAB, masked=False) as writer,
        ):
            writer.add(ids, mask, 1)
        with pytest.raises(DataError, match="not there"):
            TokenDataset(folder)
