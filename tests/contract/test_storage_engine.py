"""What every storage engine does: eric-sse's own in memory, the oracle, and that of this package."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from eric_sse_sql import Database, SqlStorageEngine
from eric_sse_sql.contract import ItemNotFound, KvStorageEngine
from support.upstream import upstream_storage

# Text of all planes, with what breaks prefix searches near the top of the choice.
CHARACTERS = st.sampled_from("aAéÉ%_*?[\\'\"/:. \ud7ff\ue000\uffff\U0001f600\U0010ffff") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\0"
)
KEYS = st.text(CHARACTERS, max_size=12)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_a_value_comes_back_until_it_is_replaced(storage: KvStorageEngine) -> None:
    storage.upsert("key", {"n": 1})
    assert storage.fetch_one("key") == {"n": 1}
    storage.upsert("key", {"n": 2})
    assert storage.fetch_one("key") == {"n": 2}
    assert list(storage.fetch_all()) == [{"n": 2}]


def test_a_missing_key_is_not_found(storage: KvStorageEngine) -> None:
    with pytest.raises(ItemNotFound) as caught:
        storage.fetch_one("nothing here")
    assert missing_key(caught.value) == "nothing here"


def test_deleting_is_idempotent(storage: KvStorageEngine) -> None:
    storage.upsert("key", 1)
    storage.delete("key")
    storage.delete("key")
    with pytest.raises(ItemNotFound):
        storage.fetch_one("key")


def test_none_is_a_value(storage: KvStorageEngine) -> None:
    storage.upsert("key", None)
    assert storage.fetch_one("key") is None
    assert list(storage.fetch_by_prefix("k")) == [None]


def test_the_empty_text_is_a_key_like_any_other(storage: KvStorageEngine) -> None:
    storage.upsert("", "empty")
    storage.upsert("a", "a")
    assert storage.fetch_one("") == "empty"
    assert sorted(storage.fetch_by_prefix("")) == ["a", "empty"]
    storage.delete("")
    assert list(storage.fetch_all()) == ["a"]


@pytest.mark.parametrize(
    "prefix", ["ch1", "a_b", "a%b", "É", "\ud7ff", "\U0010ffff", "\U0010ffff\U0010ffff", "x\\", ""]
)
def test_a_prefix_is_what_startswith_says(storage: KvStorageEngine, prefix: str) -> None:
    keys = [
        *(
            "ch1",
            "ch10",
            "ch1:x",
            "CH1",
            "ch2",
            "a_b",
            "a_bc",
            "axb",
            "aXb",
            "a%b",
            "a%bc",
            "ab",
            "É",
            "Éa",
            "é",
            "x\\",
            "x\\y",
        ),
        *("\ud7ff", "\ud7ff!", "\ue000", "\U0010ffff", "\U0010ffff\U0010ffff", "\U0010ffff\U0010ffff!", "\U0010fffe"),
    ]
    for key in keys:
        storage.upsert(key, key)
    assert sorted(storage.fetch_by_prefix(prefix)) == sorted(key for key in keys if key.startswith(prefix))


def test_ten_thousand_random_prefixes_are_what_startswith_says(storage: KvStorageEngine) -> None:
    rng = random.Random(20_000)
    alphabet = "aAbB%_É\u00e9\ud7ff\ue000\U0010fffe\U0010ffff/:\\'"

    def text(longest: int) -> str:
        return "".join(rng.choices(alphabet, k=rng.randint(0, longest)))

    keys = {text(5) for _ in range(1_000)}
    for key in keys:
        storage.upsert(key, key)
    ordered = sorted(keys)
    for _ in range(10_000):
        prefix = text(4)
        assert sorted(storage.fetch_by_prefix(prefix)) == [key for key in ordered if key.startswith(prefix)]


class SameAsUpstream(RuleBasedStateMachine):
    """Any sequence of calls has the same result on a database as on eric-sse's engine in memory, but for the order."""

    new_storage: Callable[[SameAsUpstream], SqlStorageEngine]

    @initialize()
    def begin(self) -> None:
        self.storage, self.oracle, self.keys = self.new_storage(), upstream_storage(), set[str]()

    @rule(key=KEYS, value=VALUES)
    def upsert(self, key: str, value: object) -> None:
        self.keys.add(key)
        assert self.storage.upsert(key, value) is self.oracle.upsert(key, value)

    @rule(key=KEYS, data=st.data())
    def delete(self, key: str, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted({*self.keys, key})))
        assert self.storage.delete(key) is self.oracle.delete(key)

    @rule(key=KEYS, data=st.data())
    def fetch_one(self, key: str, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted({*self.keys, key})))
        assert outcome(self.storage, key) == outcome(self.oracle, key)

    @rule(prefix=KEYS, data=st.data())
    def fetch_by_prefix(self, prefix: str, data: st.DataObject) -> None:
        prefix = data.draw(st.sampled_from(sorted({prefix, *(key[:2] for key in self.keys)})))
        assert in_order(self.storage.fetch_by_prefix(prefix)) == in_order(self.oracle.fetch_by_prefix(prefix))

    @rule()
    def fetch_all(self) -> None:
        assert in_order(self.storage.fetch_all()) == in_order(self.oracle.fetch_all())


def outcome(storage: KvStorageEngine, key: str) -> object:
    try:
        return "found", storage.fetch_one(key)
    except ItemNotFound as error:
        return "missing", missing_key(error)


def missing_key(error: ItemNotFound) -> object:
    return getattr(error, "key", error.args[0] if error.args else None)  # eric-sse 2.0 has no .key


def in_order(values: object) -> list[str]:
    return sorted(map(repr, values))  # type: ignore[call-overload]


def test_any_sequence_of_calls_has_the_same_results_as_in_memory(database: Database) -> None:
    namespaces = iter(range(1_000_000))

    class Machine(SameAsUpstream):
        def new_storage(self) -> SqlStorageEngine:
            return SqlStorageEngine(database, f"run{next(namespaces)}")

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
