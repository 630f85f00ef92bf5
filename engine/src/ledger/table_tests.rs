//! What the table of keys promises: counts that hold for all processes, and are not lost while somebody is busy.

use std::os::fd::OwnedFd;

use super::*;

const SECOND: u64 = 1_000_000_000;
/// 100 in a second, and 20 at once.
const CAPACITY: Capacity = Capacity { interval: SECOND / 100, tolerance: 20 * SECOND / 100 };

/// The supervisor's and those of so many workers.
fn processes(count: u32, keys: u32) -> (Ledger, Vec<Ledger>, OwnedFd) {
    let (supervisor, file) = Ledger::create(c"test", keys).unwrap();
    let worker = |pid| {
        let ledger = Ledger::map(&file).unwrap();
        assert!(ledger.claim_lane(pid));
        ledger.expect(CAPACITY);
        ledger
    };
    let workers = (1..=count).map(worker).collect();
    (supervisor, workers, file)
}

fn key(ledger: &Ledger, name: u32) -> Key {
    ledger.key(7, &[b"source", &name.to_be_bytes()])
}

#[test]
fn a_bucket_lets_through_its_rate_and_its_burst_in_all_processes_together() {
    let (_supervisor, workers, _file) = processes(2, 1024);
    let mut admitted = 0;
    // 1,000 a second for 30 seconds, in turns, and not on time.
    for n in 0..30_000_u64 {
        let worker = &workers[n as usize % 2];
        let now = SECOND + n * SECOND / 1_000 + (n * 7_919) % 900_000;
        admitted += u64::from(worker.fill(key(worker, 1), CAPACITY, now).is_ok());
    }
    assert!((3_015..=3_025).contains(&admitted), "{admitted}");
}

#[test]
fn whoever_is_refused_is_told_when_there_is_room() {
    let (_supervisor, workers, _file) = processes(1, 1024);
    let (one, now) = (&workers[0], 5 * SECOND);
    let strict = Capacity { interval: SECOND, tolerance: 0 };
    one.expect(strict);
    assert_eq!(one.fill(key(one, 1), strict, now), Ok(()));
    let wait = one.fill(key(one, 1), strict, now + SECOND / 4).unwrap_err();
    assert_eq!(wait, SECOND * 3 / 4);
    assert_eq!(one.fill(key(one, 1), strict, now + SECOND), Ok(()));
    // Of another limit or client nothing is known.
    assert_eq!(one.fill(one.key(8, &[b"x"]), strict, now), Ok(()));
}

#[test]
fn a_flood_of_keys_frees_none_that_is_busy_and_is_held_to_the_limit_as_one() {
    let (_supervisor, workers, _file) = processes(1, 64);
    let (one, now) = (&workers[0], SECOND);
    let slow = Capacity { interval: 60 * SECOND, tolerance: 0 };
    one.expect(slow);
    let admitted = (0..10_000).filter(|name| one.fill(key(one, *name), slow, now).is_ok()).count();
    assert!((50..=65).contains(&admitted), "{admitted}");
    // Those that came first are still known.
    let known = (0..40).filter(|name| one.fill(key(one, *name), slow, now + SECOND).is_err()).count();
    assert_eq!(known, 40);
    // When they are idle, others get their room. So few of them that hardly ever two sets are full of them, whatever the secret.
    let later = now + 61 * SECOND;
    let admitted = (20_000..20_016).filter(|name| one.fill(key(one, *name), slow, later).is_ok()).count();
    assert_eq!(admitted, 16);
}

#[test]
fn what_was_used_last_the_longest_ago_is_forgotten_first() {
    let (_supervisor, workers, _file) = processes(1, 8);
    let one = &workers[0];
    for name in 0..8 {
        let _ = one.fill(key(one, name), CAPACITY, u64::from(name + 1) * SECOND);
    }
    let before = one.memory.ways(key(one, 99).tag).filter(|(at, _)| one.memory.word(*at).load(Relaxed) != 0);
    assert_eq!(before.count(), 16, "both ways lead to the only set");
    let _ = one.fill(key(one, 99), CAPACITY, 100 * SECOND);
    assert!(one.memory.present(key(one, 0).tag).is_none());
    assert!((1..8).all(|name| one.memory.present(key(one, name).tag).is_some()));
}

#[test]
fn places_are_counted_in_all_processes_and_go_with_a_dead_one() {
    let (supervisor, workers, file) = processes(3, 1024);
    let now = SECOND;
    let hold = |worker: &Ledger| worker.hold(key(worker, 1), 5, now);
    let mut held: Vec<_> = (0..5).map(|n| hold(&workers[n % 3]).expect("there is room")).collect();
    assert!(workers.iter().all(|worker| hold(worker).is_none()), "there is none");
    drop(held.remove(4));
    held.push(hold(&workers[2]).expect("one has gone"));
    assert!(workers.iter().all(|worker| hold(worker).is_none()));
    // The first dies with two, and its lane becomes another's.
    supervisor.release_lanes(|pid| pid != 1);
    let late = Ledger::map(&file).unwrap();
    assert!(late.claim_lane(44));
    let more: Vec<_> = (0..3).filter_map(|_| hold(&late)).collect();
    assert_eq!(more.len(), 2);
    // Its own places are let go of by nobody: they were counted in a life that is over.
    drop(held);
    drop(more);
    let all: Vec<_> = (0..9).map(|_| hold(&workers[1])).collect();
    assert_eq!(all.iter().flatten().count(), 5);
}

#[test]
fn more_processes_than_an_entry_has_room_for_count_together() {
    let (_supervisor, workers, _file) = processes(20, 1024);
    let hold = |worker: &Ledger, most| worker.hold(key(worker, 1), most, SECOND);
    let held: Vec<_> = workers.iter().map(|worker| hold(worker, 20).expect("there is room")).collect();
    assert!(workers.iter().all(|worker| hold(worker, 20).is_none()));
    assert!(hold(&workers[7], 21).is_some());
    // One of the first entry goes, and one of a further entry takes and drops another: it is counted in one place.
    let mut held = held;
    drop(held.swap_remove(2));
    let last = held.pop().unwrap();
    let more = hold(&workers[18], 20);
    assert!(more.is_some() && hold(&workers[5], 20).is_none());
    drop((last, more));
    assert!(hold(&workers[5], 20).is_some());
    drop(held);
    let one: Vec<_> = (0..25).map(|_| hold(&workers[3], 20)).collect();
    assert_eq!(one.iter().flatten().count(), 20, "nothing is left");
}

#[test]
fn rubbish_costs_wrong_counts_for_a_while() {
    let (supervisor, workers, _file) = processes(2, 64);
    let (one, memory) = (&workers[0], &supervisor.memory);
    let end = SETS_AT + memory.sets * SET;
    let mut random = fastrand::Rng::with_seed(3);
    for round in 0..200 {
        for at in CROWD_AT..end {
            memory.word(at).store(random.u64(..), Relaxed);
        }
        let now = SECOND * (round + 1);
        for name in 0..200 {
            let _ = one.fill(key(one, name), CAPACITY, now);
            drop(one.hold(key(one, name), 3, now));
        }
    }
    // Words that say that living processes hold places under names that nobody asks for.
    for at in CROWD_AT..end {
        let lane = one.memory.lane.get().unwrap();
        let holder = Holder { lane, life: one.memory.life.get(), count: 1 };
        memory.word(at).store(holder.word(), Relaxed);
    }
    let later = SECOND * 1_000;
    for name in 0..3_000 {
        drop(one.hold(key(one, name), 1_000_000, later));
    }
    let places: Vec<_> = (0..5).map(|_| one.hold(key(one, 5_000), 3, later)).collect();
    assert_eq!(places.iter().flatten().count(), 3);
    assert!(one.memory.present(key(one, 5_000).tag).is_some(), "it has an entry of its own");
}

#[test]
fn a_bucket_with_more_in_it_than_fits_is_full_and_runs_empty() {
    let (supervisor, workers, _file) = processes(1, 1024);
    let (one, now) = (&workers[0], 5 * SECOND);
    let wide = Capacity { interval: 3_600 * SECOND, tolerance: 100 * 3_600 * SECOND };
    one.expect(wide);
    (0..101).for_each(|_| one.fill(key(one, 1), wide, now).unwrap());
    // The limit was changed.
    let Err(wait) = one.fill(key(one, 1), CAPACITY, now) else { panic!("it is full") };
    assert_eq!(one.fill(key(one, 1), CAPACITY, now + wait), Ok(()));
    let entry = one.memory.present(key(one, 1).tag).unwrap();
    supervisor.memory.word(entry.0).store(u64::MAX, Relaxed);
    let Err(wait) = one.fill(key(one, 1), CAPACITY, now) else { panic!("it is full") };
    assert_eq!(one.fill(key(one, 1), CAPACITY, now + wait), Ok(()));
}

#[test]
fn keys_that_clients_choose_leave_room_for_clients() {
    // So large that two of a hundred keys are hardly ever in each other's way, whatever the secret of their hashes.
    let (_supervisor, workers, _file) = processes(1, 1 << 16);
    let (one, now) = (&workers[0], SECOND);
    let slow = Capacity { interval: 3_600 * SECOND, tolerance: 0 };
    one.expect(slow);
    for name in 0..400_000_u32 {
        let _ = one.fill(one.chosen_key(3, &[&name.to_be_bytes()]), slow, now);
    }
    let admitted = (0..100).filter(|name| one.fill(key(one, *name), slow, now).is_ok()).count();
    assert_eq!(admitted, 100, "each is counted by itself");
    let places = (0..50).filter(|name| one.hold(one.key(9, &[&[*name]]), 1, now).is_some()).count();
    assert_eq!(places, 50);
}

#[test]
fn without_a_lane_a_process_counts_for_itself() {
    let (supervisor, ..) = processes(1, 64);
    let held: Vec<_> = (0..9).map(|_| supervisor.hold(key(&supervisor, 1), 5, SECOND)).collect();
    assert_eq!(held.iter().flatten().count(), 5);
}
