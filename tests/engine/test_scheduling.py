"""Who goes next, as properties: within the bounds, nothing idle that could work, nobody starved, the oldest first."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core import events as e
from streambatch.core import scheduling
from streambatch.core.models import Segment, Shard, ShardState, Slice
from streambatch.core.scheduling import HELD_AHEAD, Backoff, Capacity, Queue
from streambatch.edge.journal import Store

few = st.integers(0, 12)


@st.composite
def queues(draw: st.DrawFn) -> list[Queue]:
    models = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    allowed = st.none() | st.integers(0, 5)
    return [Queue(m, draw(few), draw(few), draw(few), draw(few), 0, draw(few), draw(allowed)) for m in models]


capacities = st.builds(Capacity, st.integers(1, 40), st.integers(1, 8), st.integers(1, 60))


# -- one decision


@given(capacities, queues())
def test_submits_fill_the_places_and_no_more(capacity: Capacity, known: list[Queue]) -> None:
    given_ = capacity.submits(known)
    ready = {q.model: q.ready for q in known}
    room = max(0, capacity.max_batches - sum(q.in_flight for q in known))
    assert all(0 < n <= ready[model] for model, n in given_.items())
    assert sum(given_.values()) == min(room, sum(ready.values())), "a place stays free only where nothing is ready"


@given(capacities, queues())
def test_a_place_goes_to_whoever_has_fewest(capacity: Capacity, known: list[Queue]) -> None:
    given_ = capacity.submits(known)
    has = {q.model: q.in_flight + given_.get(q.model, 0) for q in known}
    hungry = [q.model for q in known if given_.get(q.model, 0) < q.ready]
    for model in hungry:
        assert all(has[other] <= has[model] + 1 for other in given_)


@given(capacities, queues())
def test_uploads_keep_the_transfers_busy_within_each_models_share(capacity: Capacity, known: list[Queue]) -> None:
    given_ = capacity.uploads(known)
    most = {q.model: max(0, min(q.sealed, capacity.max_transfers - q.uploaded - q.uploading)) for q in known}
    room = max(0, capacity.max_transfers - sum(q.uploading for q in known))
    assert all(0 < n <= most[model] for model, n in given_.items())
    assert sum(given_.values()) == min(room, sum(most.values()))
    if any(q.allowed == 0 and q.model in given_ for q in known):
        assert all(given_.get(q.model, 0) == most[q.model] for q in known if q.allowed != 0), "who can't submit is last"


@given(capacities, queues())
def test_of_equals_the_oldest_segment_goes_first(capacity: Capacity, known: list[Queue]) -> None:
    level = [Queue(q.model, uploaded=1, oldest=q.oldest) for q in known]
    given_ = capacity.submits(level)
    if len(given_) < len(level):
        oldest = sorted(level, key=lambda q: (q.oldest, q.model))[: capacity.max_batches]
        assert set(given_) == {q.model for q in oldest}


@given(capacities, queues(), st.booleans())
def test_sealing_is_bounded_and_a_held_model_does_not_stop_the_others(
    capacity: Capacity, known: list[Queue], several: bool
) -> None:
    waiting = sum(q.waiting for q in known)
    may = capacity.may_seal(known, several=several)
    if waiting < capacity.sealed_ahead:
        assert may
    if waiting >= capacity.sealed_ahead * (HELD_AHEAD if several else 1):
        assert not may
    if several and waiting < capacity.sealed_ahead * HELD_AHEAD and all(q.allowed is not None for q in known):
        assert may


# -- many decisions


@given(st.integers(2, 6), st.integers(6, 40), st.randoms(use_true_random=False))
def test_no_model_starves_however_the_others_end(models: int, places: int, chance: random.Random) -> None:
    """With work for everyone each keeps its share of the places, whoever's batches end first."""
    capacity = Capacity(places, 4, 1000)
    flying: Counter[str] = Counter()
    names = [f"m{k}" for k in range(models)]
    weights = [chance.random() + 0.01 for _ in names]
    for _ in range(200):
        flying.update(capacity.submits([Queue(n, uploaded=places, in_flight=flying[n]) for n in names]))
        assert sum(flying.values()) <= places
        if sum(flying.values()) == places:
            assert min(flying[n] for n in names) >= places // models
        (ended,) = chance.choices(names, weights)
        flying[ended] = max(0, flying[ended] - 1)


@pytest.mark.parametrize("fits", [0, 1, 3, 20, 64])
def test_a_limit_that_nobody_told_is_learned_not_fought(fits: int) -> None:
    """A service takes `fits` batches of an hour each: soon so many fly, and refusals stay few."""
    capacity, ends = Capacity(64, 4, 1000), list[float]()
    backoff: Backoff | None = None
    refusals = busy = 0
    for now in range(0, 6 * 3600, 5):
        for _ in range(sum(end <= now for end in ends)):
            backoff = None if backoff is None else scheduling.relieved(backoff)
        ends = [end for end in ends if end > now]
        if backoff is not None:
            backoff = scheduling.counted(backoff, len(ends))
        allowed = scheduling.allowed(backoff, len(ends), now)
        made = capacity.submits([Queue("m", uploaded=64, in_flight=len(ends), allowed=allowed)]).get("m", 0)
        backoff = scheduling.submitted(backoff, len(ends) + made, now)
        over = max(0, len(ends) + made - fits)
        ends += [now + 3600.0 + len(ends)] * (made - over)
        for _ in range(over):
            backoff = scheduling.refused(backoff, now, None)
            refusals += 1
        busy += len(ends)
    assert busy >= 0.95 * fits * 6 * 720, "what fits is used"
    assert refusals <= 64 + 6 * 15, refusals


def test_a_burst_of_refusals_counts_once_and_waits_double() -> None:
    backoff = None
    for _ in range(30):
        backoff = scheduling.refused(backoff, 100.0, None)
    assert backoff is not None
    assert (backoff.until, backoff.refusals) == (105.0, 1)
    waits = []
    now = 105.0
    for _ in range(9):
        backoff = scheduling.refused(backoff, now, None)
        waits.append(backoff.until - now)
        now = backoff.until
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert scheduling.refused(None, 0.0, 7.5).until == 7.5
    assert scheduling.refused(backoff, now - 1, 90.0).until == now + 89, "the service's word is heard in a burst, too"


def test_an_end_frees_its_place_before_the_wait_is_over() -> None:
    backoff = scheduling.counted(scheduling.refused(None, 0.0, None), 3)
    assert scheduling.allowed(backoff, 3, 1.0) == 0
    relieved = scheduling.relieved(backoff)
    assert scheduling.allowed(relieved, 2, 1.0) == 1
    assert scheduling.allowed(backoff, 3, 5.0) == 1, "after the wait one more is tried"
    tried = scheduling.submitted(backoff, 4, 5.0)
    assert scheduling.allowed(tried, 4, 6.0) == 0
    assert scheduling.allowed(tried, 4, 15.0) == 2, "it was taken: the next try is larger"
    assert scheduling.allowed(scheduling.refused(None, 0.0, None), 0, 99.0) == 0, "nothing before it was counted"


# -- counts and names from the journal


def sealed(index: int, models: str) -> e.SegmentSealed:
    segment = Segment(index, (Slice(0, 0, 1, 0, 0),), index, 1, 1)
    shards = tuple(
        Shard(f"{index:06d}-{k}", index, index, index, 0, model, 1, 1, 1, "00") for k, model in enumerate(models)
    )
    return e.SegmentSealed(
        segment=segment, source_hash="", rows=len(models), bad=0, skipped=0, first_bad=None, shards=shards
    )


def test_the_journal_counts_by_model_and_names_the_oldest_first() -> None:
    store = Store(":memory:")
    store.append([sealed(k, "ab" if k % 2 else "bc") for k in range(6)])
    for name in ("000005-0", "000001-0", "000003-0"):
        store.append([e.Uploaded(shard=name, file_id=f"f{name}", created_at=0.0)])
    store.append([e.Intended(shard="000001-0", create=1)])
    assert store.queues(["000000-0", "000005-0"]) == [
        Queue("a", uploaded=2, in_flight=1, oldest=3),
        Queue("b", sealed=5, uploading=1, oldest=0),
        Queue("c", sealed=3, oldest=0),
    ]
    assert store.oldest(ShardState.UPLOADED, "a", 9) == ["000003-0", "000005-0"]
    assert store.oldest(ShardState.SEALED, "b", 2) == ["000000-0", "000001-1"]
    assert store.several_models()
    assert [s.name for s in store.shards((ShardState.UPLOADED, ShardState.INTENDED), 2)] == ["000001-0", "000003-0"]
    assert len(store.shards((ShardState.SEALED, ShardState.UPLOADED))) == 11
    store.close()


def test_one_model_is_not_several() -> None:
    store = Store(":memory:")
    assert not store.several_models()
    store.append([sealed(0, "a"), sealed(1, "a")])
    assert not store.several_models()
    store.close()


def test_counting_does_not_read_what_has_ended() -> None:
    """With 200,000 shards and 50 models a turn asks an index for what waits and flies, and never looks at the table."""
    store = Store(":memory:")
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    store.queues([])
    store.oldest(ShardState.SEALED, "m", 5)
    store._db.set_trace_callback(None)
    counts, _, names = asked
    for query in (counts, names):
        steps = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert steps[0].startswith("SEARCH shards USING COVERING INDEX shards_by_model"), steps
    store.close()
