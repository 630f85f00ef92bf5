//! Names over time.

use std::net::SocketAddr;

use kakehi_ctl::state::{Backend, DnsOnEmpty};

use super::*;

fn name(text: &str) -> DnsName {
    text.parse().unwrap()
}

fn cluster(names: &[&str]) -> Cluster {
    let backend = |text: &&str| Backend {
        id: (*text).to_owned(),
        address: text.parse().unwrap(),
        ..Backend::default()
    };
    Cluster { backends: names.iter().map(backend).collect(), ..Cluster::default() }
}

fn found(ports: &[u16], ttl_ms: u64) -> Outcome {
    let address = |port: &u16| SocketAddr::from(([10, 0, 0, 1], *port));
    let addresses =
        ports.iter().map(|port| NameAddress { address: address(port), backup: false, weight: None });
    Outcome::Found(Found {
        addresses: addresses.collect(),
        left_out: 0,
        ttl: Duration::from_millis(ttl_ms),
        memory: Arc::default(),
    })
}

/// Takes what is due, and says `outcome` of it.
fn answer(table: &mut Table, now: Instant, outcome: impl Fn() -> Outcome) -> Vec<String> {
    let (jobs, _) = table.due(now, 100);
    jobs.iter().for_each(|job| table.note(&job.name, outcome(), now));
    jobs.iter().map(|job| job.name.to_string()).collect()
}

#[test]
fn a_name_is_asked_for_once_for_all_that_have_it_and_when_its_answer_is_old() {
    let mut table = Table::default();
    table.follow("a", Some(&cluster(&["app:80", "app:81"])));
    table.follow("b", Some(&cluster(&["app:80"])));
    assert!(table.lacks_answers());
    let mut now = Instant::now();
    assert_eq!(answer(&mut table, now, || found(&[1], 0)), ["app:80", "app:81"]);
    assert!(!table.lacks_answers());
    // No sooner than the shortest time, and no later than the longest.
    assert_eq!(table.due(now, 100).1, Some(now + Duration::from_secs(1)));
    now += Duration::from_secs(1);
    answer(&mut table, now, || found(&[1], u64::MAX));
    assert_eq!(table.due(now, 100).1, Some(now + Duration::from_secs(60)));
    let settings = Settings { dns_max_ttl_ms: 5_000, ..Settings::default() };
    table.configure(&settings, false);
    assert_eq!(answer(&mut table, Instant::now(), || found(&[1], 9_000)).len(), 2);
    // As long as anybody has it.
    table.follow("a", None);
    table.forget_unused();
    assert_eq!(table.names.keys().map(ToString::to_string).collect::<Vec<_>>(), ["app:80"]);
    table.follow("b", Some(&cluster(&[])));
    table.forget_unused();
    assert!(table.is_idle() && table.queue.is_empty() && table.clusters.is_empty());
}

#[test]
fn workers_are_told_what_is_another_than_before_only() {
    let mut table = Table::default();
    table.follow("a", Some(&cluster(&["app:80"])));
    assert!(table.take_news().0.is_empty(), "nothing is known yet");
    let mut now = Instant::now();
    let mut news = |table: &mut Table, outcome: Outcome| {
        now += Duration::from_secs(60);
        answer(table, now, || outcome.clone());
        let (answers, clusters) = table.take_news();
        assert_eq!(answers.is_empty(), clusters.is_empty());
        answers.into_iter().next().map(|it| (it.addresses.map(|it| it.len()), it.empty))
    };
    let (empty, failed) = (Outcome::Empty("NXDOMAIN".into()), Outcome::Failed("silence".into()));
    assert_eq!(news(&mut table, failed.clone()), None);
    assert_eq!(news(&mut table, empty.clone()), Some((None, true)), "those that workers know may be to go");
    assert_eq!(news(&mut table, found(&[1, 2], 0)), Some((Some(2), false)));
    assert_eq!(news(&mut table, found(&[1, 2], 0)), None);
    assert_eq!(news(&mut table, failed.clone()), None);
    assert_eq!(news(&mut table, empty.clone()), Some((Some(2), true)));
    assert_eq!(news(&mut table, empty), None);
    assert_eq!(news(&mut table, failed), None, "it does not come back because nobody says anything");
    assert_eq!(news(&mut table, found(&[1, 2], 0)), Some((Some(2), false)));
}

#[test]
fn what_fails_is_asked_for_again_soon_and_then_less_often() {
    let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
    let pauses = |min, max| (1..7).map(|it| retry_after(it, min, max).as_secs()).collect::<Vec<_>>();
    assert_eq!(pauses(min, max), [1, 2, 4, 8, 10, 10]);
    assert_eq!(pauses(min, Duration::from_secs(3)), [1, 2, 3, 3, 3, 3]);
    assert_eq!(pauses(Duration::from_secs(20), max), [20; 6]);
    assert_eq!(retry_after(u32::MAX, Duration::from_millis(1), max), Duration::from_secs(10));
}

#[test]
fn what_another_supervisor_knew_holds_and_is_told_to_new_processes_only() {
    let mut table = Table::default();
    table.follow("a", Some(&cluster(&["app:80"])));
    answer(&mut table, Instant::now(), || found(&[1], 0));
    let known = table.known();
    let mut next = Table::default();
    next.inherit(&known);
    next.follow("a", Some(&cluster(&["app:80", "new:80"])));
    next.forget_unused();
    assert_eq!((next.take_news().0, next.answers().len()), (Vec::new(), 1));
    assert!(next.lacks_answers(), "there is another name");
    let now = Instant::now();
    answer(&mut next, now, || Outcome::Failed("silence".into()));
    assert_eq!(next.answers(), table.answers());
    let configured = cluster(&["app:80"]);
    let settings = Settings { dns_on_empty: DnsOnEmpty::Drop, ..Settings::default() };
    let expanded = next.expanded(&configured, &settings);
    let shown = next.shown("a", &configured, &expanded);
    assert_eq!((shown[0].addresses, shown[0].resolved_ms), (1, known[0].resolved_ms));
    assert_eq!(shown[0].failing.as_ref().map(|it| it.reason.as_str()), Some("silence"));
}

#[test]
fn a_name_that_a_change_may_bring_is_asked_for_until_it_is_known_that_it_does_not() {
    let mut table = Table::default();
    assert!(table.expect(&name("app:80")));
    let names = BTreeSet::from([name("app:80")]);
    assert!(table.lacks_any(&names));
    answer(&mut table, Instant::now(), || found(&[1], 0));
    assert!(!table.lacks_any(&names) && !table.expect(&name("app:80")));
    assert_eq!(table.take_news().0.len(), 1, "before the change");
    table.forget_unused();
    assert!(table.is_idle());
    // An answer that comes too late is about nothing.
    table.expect(&name("app:80"));
    let now = Instant::now();
    let (jobs, _) = table.due(now, 1);
    table.forget_unused();
    table.expect(&name("app:80"));
    table.note(&jobs[0].name, found(&[1], 0), now);
    assert!(!table.has_news());
}
