from eric_sse_sql import SqlStorageEngine


def test_round_trip(database, statements):
    seen = statements(database)
    s = SqlStorageEngine(database)
    s.upsert("a", 1)
    assert s.fetch_one("a") == 1
    assert len(seen) == 2
