//! What becomes of backends when probes find something, and when the configuration changes.

use kakehi_ctl::state::{HealthCheck, InitialVerdict};

use super::*;

fn backend(id: &str, port: u16) -> Backend {
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    Backend { id: id.to_owned(), address, ..Backend::default() }
}

fn cluster(change: impl FnOnce(&mut HealthCheck)) -> Cluster {
    let mut check = HealthCheck { healthy_threshold: 1, unhealthy_threshold: 1, ..HealthCheck::default() };
    change(&mut check);
    let backends = vec![backend("a", 1), backend("b", 2)];
    Cluster { backends, health: Some(Box::new(check)), ..Cluster::default() }
}

/// Makes all probes that are due `now`: those of ports in `dead` are bad.
fn probe(table: &mut Table, now: Instant, dead: &[u16]) -> usize {
    let (jobs, _) = table.due(now, usize::MAX);
    for job in &jobs {
        let BackendAddress::Ip(address) = job.address else { panic!("a socket") };
        let outcome = match dead.contains(&address.port()) {
            true => Outcome::bad("status 500"),
            false => Outcome::good("status 200"),
        };
        table.note(job, &outcome, Duration::from_millis(1), now);
    }
    jobs.len()
}

fn up(table: &Table) -> Vec<(String, bool)> {
    let mut all: Vec<_> = table.verdicts(false).into_iter().map(|it| (it.backend.id, it.up)).collect();
    all.sort();
    all
}

fn told(table: &mut Table) -> Vec<String> {
    table.take_news().1.iter().map(ToString::to_string).collect()
}

const LATER: Duration = Duration::from_secs(11);

#[tokio::test]
async fn what_was_found_of_a_backend_stays_as_long_as_its_cluster_name_and_address() {
    let (mut table, mut now) = (Table::default(), Instant::now() + LATER);
    let mut web = cluster(|_| ());
    table.follow("web", Some(&web), true);
    table.follow("other", Some(&web), true);
    assert_eq!(probe(&mut table, now, &[1]), 4, "two clusters with one address have two states");
    assert_eq!(table.verdicts(true).len(), 2);
    table.follow("other", None, false);
    assert_eq!(up(&table), [("a".to_owned(), false), ("b".to_owned(), true)]);
    // Another weight, another check.
    web.backends[0].weight = 7;
    table.follow("web", Some(&web), false);
    web.health.as_mut().unwrap().uri = "/other".to_owned();
    table.follow("web", Some(&web), false);
    assert_eq!(up(&table), [("a".to_owned(), false), ("b".to_owned(), true)]);
    now += LATER;
    assert_eq!(probe(&mut table, now, &[1]), 2);
    // Another address is another backend.
    web.backends[0] = backend("a", 3);
    table.follow("web", Some(&web), false);
    assert_eq!(up(&table), [("b".to_owned(), true)]);
    web.health = None;
    table.follow("web", Some(&web), false);
    assert!(table.is_idle() && table.names().is_empty());
}

#[tokio::test]
async fn each_backend_is_probed_once_in_an_interval_and_not_all_at_once() {
    let (mut table, start) = (Table::default(), Instant::now());
    for number in 0..500 {
        table.follow(&format!("c{number}"), Some(&cluster(|_| ())), true);
    }
    assert_eq!(probe(&mut table, start + Duration::from_secs(1), &[]), 1_000, "the first goes out at once");
    let mut most = 0;
    let mut count = 0;
    for tick in 0..300 {
        let now = start + Duration::from_secs(1) + Duration::from_millis(100) * tick;
        let probes = probe(&mut table, now, &[]);
        (most, count) = (most.max(probes), count + probes);
    }
    assert!((2_800..=3_100).contains(&count), "{count} in three intervals");
    assert!(most < 30, "{most} of 1,000 in a hundredth of the interval");
}

#[tokio::test]
async fn a_cluster_is_told_once_when_it_goes_down_and_once_when_it_recovers() {
    let (mut table, mut now) = (Table::default(), Instant::now() + LATER);
    let mut web = cluster(|_| ());
    table.follow("web", Some(&web), true);
    probe(&mut table, now, &[]);
    assert!(told(&mut table).is_empty(), "they were taken to be well from the start");
    let mut step = |table: &mut Table, dead: &[u16]| {
        now += LATER;
        probe(table, now, dead);
        told(table)
    };
    let one = step(&mut table, &[1]);
    assert!(one.len() == 1 && one[0].contains("backend a of cluster web is down: status 500"), "{one:?}");
    let both = step(&mut table, &[1, 2]);
    assert!(both.len() == 2 && both[1].contains("no backend that can be used"), "{both:?}");
    assert!(step(&mut table, &[1, 2]).is_empty());
    let again = step(&mut table, &[1]);
    assert!(again.len() == 2 && again[1].contains("a backend again"), "{again:?}");
    web.backends[1].mode = BackendMode::Maintain;
    table.follow("web", Some(&web), false);
    assert_eq!(table.condition("web"), Some(ClusterCondition::Down));
    assert_eq!(told(&mut table).len(), 1);
}

#[tokio::test]
async fn a_panic_begins_below_the_threshold_and_ends_above_it() {
    let (mut table, mut now) = (Table::default(), Instant::now() + LATER);
    let mut web = cluster(|_| ());
    web.balancing = Some(Box::new(Balancing { panic_threshold: 50, ..Balancing::default() }));
    table.follow("web", Some(&web), true);
    let mut step = |table: &mut Table, dead: &[u16]| {
        probe(table, now, dead);
        now += LATER;
        table.condition("web")
    };
    assert_eq!(step(&mut table, &[1]), None);
    assert_eq!(step(&mut table, &[1, 2]), Some(ClusterCondition::Panic));
    assert_eq!(step(&mut table, &[1]), None);
    let told = told(&mut table);
    assert!(told.iter().any(|it| it.contains("panic, probes call only 0 %")), "{told:?}");
}

#[tokio::test]
async fn a_new_worker_is_told_what_it_does_not_assume() {
    let (mut table, now) = (Table::default(), Instant::now() + LATER);
    let web = cluster(|check| check.initial = InitialVerdict::Down);
    table.follow("web", Some(&web), true);
    assert!(table.verdicts(true).is_empty());
    probe(&mut table, now, &[1]);
    let unusual = table.verdicts(true);
    assert!(unusual.len() == 1 && unusual[0].up && unusual[0].backend.id == "b", "{unusual:?}");
}

#[tokio::test]
async fn a_backend_is_told_to_be_drained_once() {
    let mut table = Table::default();
    let mut web = cluster(|_| ());
    web.health = None;
    table.follow("web", Some(&web), true);
    assert!(table.draining(10).is_empty() && table.names().is_empty());
    web.backends[0].mode = BackendMode::Drain;
    table.follow("web", Some(&web), false);
    let draining = table.draining(10);
    assert_eq!(draining.len(), 1);
    assert!(table.known("web", &web.backends[0]).mode_since_ms.is_some());
    table.note_drained(&draining[0]);
    table.note_drained(&draining[0]);
    assert_eq!(told(&mut table).len(), 1);
    assert!(table.draining(10).is_empty());
    web.backends[1].weight = 7;
    table.follow("web", Some(&web), false);
    assert!(table.draining(10).is_empty());
    web.backends[0].mode = BackendMode::Ready;
    table.follow("web", Some(&web), false);
    web.backends[0].mode = BackendMode::Drain;
    table.follow("web", Some(&web), false);
    assert_eq!(table.draining(10).len(), 1);
}
