"""Jobs between workers: who gets which, for how long, and how each ends exactly once; on both databases."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from service.errors import IdempotencyKeyReused, TooManyJobs, UnknownJob
from service.store.database import Database, now
from service.store.jobs import MAX_OPEN, Jobs, LostLease
from service.store.tables import JobRow


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


@pytest.fixture
def other_jobs(url: str) -> Iterator[Jobs]:
    """The same jobs, as another process sees them."""
    database = Database(url)
    yield Jobs(database)
    database.close()


def job(model: str = "pets", *, key: str | None = None, request: str = "r", created_at: str | None = None) -> JobRow:
    return JobRow(
        kind="class-frequencies",
        target=model,
        options={"role": "target"},
        input_digest=None,
        request_digest=request,
        idempotency_key=key,
        actor=None,
        created_at=created_at or now(),
    )


def claimed(jobs: Jobs, owner: str = "worker") -> JobRow:
    found = jobs.claim(owner)
    assert found is not None
    return found


def expire(database: Database) -> None:
    """Let the time of every lease pass."""
    with database.writing() as session:
        session.execute(update(JobRow).values(lease_until=0.0))


def finish(database: Database, jobs: Jobs, held: JobRow) -> None:
    with database.writing() as session:
        jobs.finish(session, held, result={"revision": 2}, revision=2)


def test_jobs_are_taken_in_the_order_in_which_they_came(jobs: Jobs) -> None:
    submitted = [jobs.submit(job(model)).number for model in ("pets", "birds", "cars")]
    assert [claimed(jobs).number for _ in submitted] == submitted
    assert jobs.claim("worker") is None


def test_of_one_model_one_job_is_worked_on_at_a_time(database: Database, jobs: Jobs) -> None:
    first, second, other = (jobs.submit(job(model)).number for model in ("pets", "pets", "birds"))
    held = claimed(jobs)
    assert [held.number, claimed(jobs).number] == [first, other]
    assert jobs.claim("worker") is None
    finish(database, jobs, held)
    assert claimed(jobs).number == second


def test_registrations_of_models_not_known_yet_do_not_wait_for_each_other(jobs: Jobs) -> None:
    numbers = [jobs.submit(job("")).number for _ in range(2)]
    assert [claimed(jobs).number for _ in numbers] == numbers


def test_a_claimed_job_says_who_has_it_and_how_often_it_was_tried(jobs: Jobs) -> None:
    number = jobs.submit(job()).number
    assert (jobs.get(number).status, jobs.get(number).started_at) == ("queued", None)
    claimed(jobs, "ada")
    stored = jobs.get(number)
    assert (stored.status, stored.lease_owner, stored.attempts) == ("running", "ada", 1)
    assert stored.started_at is not None


def test_a_job_whose_lease_ran_out_is_taken_by_another_and_the_first_cannot_end_it(
    database: Database, jobs: Jobs, other_jobs: Jobs
) -> None:
    jobs.submit(job())
    lost = claimed(jobs, "first")
    assert other_jobs.claim("second") is None
    expire(database)
    held = claimed(other_jobs, "second")
    assert (held.number, held.attempts) == (lost.number, 2)
    with pytest.raises(LostLease):
        finish(database, jobs, lost)
    with pytest.raises(LostLease):
        jobs.fail(lost, {"status": 500})
    with pytest.raises(LostLease):
        jobs.renew(lost, 0.5)
    with pytest.raises(LostLease):
        jobs.release(lost, attempts=0)
    finish(database, other_jobs, held)
    assert (jobs.get(held.number).status, jobs.get(held.number).result) == ("done", {"revision": 2})


def test_a_worker_that_gets_its_job_back_cannot_end_it_as_what_it_was_before(database: Database, jobs: Jobs) -> None:
    jobs.submit(job())
    before = claimed(jobs, "same")
    expire(database)
    again = claimed(jobs, "same")
    with pytest.raises(LostLease):
        finish(database, jobs, before)
    finish(database, jobs, again)


def test_a_renewed_lease_does_not_run_out_and_shows_the_progress(database: Database, jobs: Jobs) -> None:
    jobs.submit(job())
    held = claimed(Jobs(database, lease_seconds=0.0))
    jobs.renew(held, 0.25)  # for longer
    assert jobs.claim("another") is None
    assert jobs.get(held.number).progress == 0.25


def test_a_lease_that_ran_out_while_nobody_took_the_job_can_be_renewed(database: Database, jobs: Jobs) -> None:
    jobs.submit(job())
    held = claimed(jobs)
    expire(database)  # as after some time without the database
    jobs.renew(held, 0.5)
    assert jobs.claim("another") is None
    finish(database, jobs, held)


def test_a_job_that_has_ended_is_never_taken_again(database: Database, jobs: Jobs) -> None:
    done, failed, cancelled = (jobs.submit(job(model)).number for model in ("a", "b", "c"))
    finish(database, jobs, claimed(jobs))
    jobs.fail(claimed(jobs), {"status": 422})
    jobs.cancel(cancelled)
    expire(database)
    assert jobs.claim("worker") is None
    assert [jobs.get(number).status for number in (done, failed, cancelled)] == ["done", "failed", "cancelled"]
    assert jobs.get(failed).problem == {"status": 422}


def test_a_change_is_not_made_when_its_job_was_cancelled(database: Database, jobs: Jobs) -> None:
    jobs.submit(job())
    held = claimed(jobs)
    jobs.cancel(held.number)

    def change() -> None:
        with database.writing() as session:
            session.add(job("the change"))
            jobs.finish(session, held, result={}, revision=2)

    with pytest.raises(LostLease):
        change()
    assert [each.target for each in jobs.newest(model=None, limit=9)] == ["pets"]


def test_a_job_that_has_ended_stays_as_it_is_when_it_is_cancelled(database: Database, jobs: Jobs) -> None:
    number = jobs.submit(job()).number
    finish(database, jobs, claimed(jobs))
    assert jobs.cancel(number).status == "done"
    with pytest.raises(UnknownJob, match="j99"):
        jobs.cancel(99)


def test_a_job_that_was_given_back_is_free_at_once_and_no_longer_of_its_former_worker(
    database: Database, jobs: Jobs, other_jobs: Jobs
) -> None:
    jobs.submit(job())
    given_back = claimed(jobs, "first")
    jobs.release(given_back, attempts=0)
    assert claimed(other_jobs, "second").attempts == 1
    with pytest.raises(LostLease):
        finish(database, jobs, given_back)


def test_the_same_key_and_request_is_one_job(jobs: Jobs, other_jobs: Jobs) -> None:
    first = jobs.submit(job(key="k"))
    assert other_jobs.submit(job(key="k")).number == first.number
    assert jobs.submit(job("birds", key="k")).number != first.number  # a key belongs to a model
    assert jobs.submit(job()).number != jobs.submit(job()).number  # without a key, each is its own
    with pytest.raises(IdempotencyKeyReused, match="came with another request"):
        jobs.submit(job(key="k", request="another"))


def test_a_key_sent_many_times_at_once_is_one_job(jobs: Jobs, other_jobs: Jobs) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: (jobs, other_jobs)[each % 2].submit(job(key="k")).number, range(16)))
    assert len(set(found)) == 1


def test_so_many_jobs_may_wait_and_a_known_key_is_answered_all_the_same(database: Database, jobs: Jobs) -> None:
    known = jobs.submit(job(key="k"))
    with database.writing() as session:
        session.add_all(job() for _ in range(MAX_OPEN - 2))
    with ThreadPoolExecutor(4) as pool:
        accepted = sum(pool.map(lambda _: _accepts(jobs), range(4)))
    assert accepted == 1
    with pytest.raises(TooManyJobs, match="at most 200"):
        jobs.submit(job(key="new"))
    assert jobs.submit(job(key="k")).number == known.number
    jobs.cancel(known.number)
    jobs.submit(job(key="new"))


def _accepts(jobs: Jobs) -> bool:
    try:
        jobs.submit(job())
    except TooManyJobs:
        return False
    return True


def test_jobs_that_ended_long_ago_are_forgotten_and_their_numbers_are_not_given_again(
    database: Database, jobs: Jobs
) -> None:
    long_ago = (datetime.now(UTC) - timedelta(days=31)).isoformat(timespec="microseconds")
    waiting = jobs.submit(job("birds", created_at=long_ago)).number
    recent = jobs.submit(job("cars")).number
    old = jobs.submit(job("pets", created_at=long_ago)).number
    jobs.cancel(recent)
    jobs.cancel(old)
    jobs.prune()
    assert {each.number for each in jobs.newest(model=None, limit=9)} == {waiting, recent}
    with pytest.raises(UnknownJob):
        jobs.get(old)
    assert jobs.submit(job()).number > old


def test_the_newest_jobs_are_listed_first(jobs: Jobs) -> None:
    numbers = [jobs.submit(job(model)).number for model in ("pets", "birds", "pets")]
    assert [each.number for each in jobs.newest(model=None, limit=2)] == numbers[:0:-1]
    assert [each.number for each in jobs.newest(model="pets", limit=9)] == [numbers[2], numbers[0]]


def test_a_list_leaves_results_out_but_for_the_name_of_a_model_that_was_made(database: Database, jobs: Jobs) -> None:
    for model in ("pets", ""):
        jobs.submit(job(model))
        with database.writing() as session:
            jobs.finish(session, claimed(jobs), result={"model": model or "birds", "report": ["long"]}, revision=2)
    jobs.submit(job(""))
    assert [each.result for each in jobs.newest(model=None, limit=9)] == [None, {"model": "birds"}, None]


def test_claimers_at_once_never_get_the_same_job_nor_two_of_one_model(jobs: Jobs, other_jobs: Jobs) -> None:
    for _ in range(5):
        for model in ("pets", "birds", "cars", "dogs"):
            jobs.submit(job(model))
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda each: (jobs, other_jobs)[each % 2].claim(f"worker {each}"), range(16)))
    models = Counter(each.target for each in held if each is not None)
    assert models == {"pets": 1, "birds": 1, "cars": 1, "dogs": 1}
