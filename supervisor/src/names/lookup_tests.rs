//! What comes out of answers, whatever is in them.

use std::net::Ipv4Addr;

use hickory_resolver::proto::rr::{
    Name,
    rdata::{A, AAAA, SRV},
};

use super::*;

fn record(ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii("app.test.").unwrap(), ttl, data)
}

fn v4(addresses: &[[u8; 4]]) -> Result<Vec<Record>, Lack> {
    Ok(addresses.iter().map(|it| record(30, RData::A(A(Ipv4Addr::from(*it))))).collect())
}

fn v6(addresses: &[&str]) -> Result<Vec<Record>, Lack> {
    Ok(addresses.iter().map(|it| record(20, RData::AAAA(AAAA(it.parse().unwrap())))).collect())
}

fn failed() -> Result<Vec<Record>, Lack> {
    Err(Lack::Failed("silence".into()))
}

fn all(host: &Host) -> Vec<String> {
    host.families.all().map(|it| it.to_string()).collect()
}

#[test]
fn both_families_count_and_one_of_which_nobody_says_anything_stays_as_it_was() {
    let before = join(v4(&[[10, 0, 0, 1]]), v6(&["fd00::1"]), Families::default());
    assert_eq!((all(&before), before.ttl), (vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()], Some(20)));
    let of = |v4, v6| join(v4, v6, before.families.clone());
    let half = of(v4(&[[10, 0, 0, 2]]), failed());
    assert_eq!(
        (all(&half), half.ttl, half.lack),
        (vec!["10.0.0.2".to_owned(), "fd00::1".to_owned()], Some(30), None)
    );
    let only_v4 = of(v4(&[[10, 0, 0, 2]]), Err(Lack::NoRecord));
    assert_eq!(all(&only_v4), ["10.0.0.2"]);
    let gone = of(Err(Lack::NoName), failed());
    assert_eq!((all(&gone).len(), gone.ttl, gone.lack), (0, None, Some(Lack::NoName)));
    let unsaid = of(Err(Lack::NoRecord), failed());
    assert_eq!((unsaid.ttl, unsaid.lack), (None, Some(Lack::Failed("silence".into()))));
    assert_eq!(of(Err(Lack::NoRecord), Err(Lack::NoRecord)).lack, Some(Lack::NoRecord));
}

#[test]
fn addresses_that_no_backend_can_have_are_left_out() {
    let odd =
        [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255], [127, 0, 0, 1], [10, 0, 0, 1], [10, 0, 0, 1]];
    let found =
        join(v4(&odd), v6(&["::", "ff02::1", "fe80::1", "::ffff:10.0.0.9", "::1"]), Families::default());
    assert_eq!(all(&found), ["10.0.0.1", "127.0.0.1", "10.0.0.9", "::1"]);
    let nothing = conclude(Vec::new(), 0, 1, Memory::new());
    assert!(matches!(nothing, Outcome::Empty(_)));
}

#[test]
fn of_very_many_addresses_the_first_are_used_in_whatever_order_they_come() {
    let mut octets: Vec<[u8; 4]> =
        (0..10_000_u32).map(|it| Ipv4Addr::from(0x0a00_0001 + it).octets()).collect();
    let of = |octets: &[[u8; 4]]| join(v4(octets), Err(Lack::NoRecord), Families::default());
    let (one, other) = (of(&octets), {
        octets.reverse();
        of(&octets)
    });
    assert_eq!(one.families, other.families);
    assert_eq!((one.families.all().count(), one.families.left_out()), (64, 10_000 - 64));
    let address = |port| NameAddress { address: ([10, 0, 0, 1], port).into(), backup: false, weight: None };
    let Outcome::Found(found) = conclude((1..=100).map(address).collect(), 5, 9, Memory::new()) else {
        panic!()
    };
    assert_eq!((found.addresses.len(), found.left_out, found.ttl), (64, 41, Duration::from_secs(9)));
}

fn srv(priority: u16, weight: u16, port: u16, host: &str) -> Record {
    record(60, RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(host).unwrap())))
}

#[test]
fn a_service_has_priorities_and_weights() {
    let records = [
        srv(20, 5, 80, "c.test."),
        srv(10, 600, 80, "A.test."),
        srv(10, 0, 81, "b.test."),
        srv(10, 600, 80, "a.test."),
        srv(10, 1, 80, "."),
        srv(10, 1, 0, "a.test."),
    ];
    let (targets, left_out) = targets(&records);
    let hosts: Vec<_> = targets.iter().map(|it| (&*it.host, it.port)).collect();
    assert_eq!((hosts, left_out), (vec![("a.test.", 80), ("b.test.", 81), ("c.test.", 80)], 0));
    let families: BTreeMap<&str, Families> =
        [("a.test.", [10, 0, 0, 1]), ("b.test.", [10, 0, 0, 2]), ("c.test.", [10, 0, 0, 1])]
            .into_iter()
            .map(|(host, address)| {
                (host, join(v4(&[address]), Err(Lack::NoRecord), Families::default()).families)
            })
            .collect();
    let found = addresses_of(&targets, |host| families.get(host));
    let keys: Vec<_> = found.iter().map(|it| (it.address.to_string(), it.backup, it.weight)).collect();
    assert_eq!(
        keys,
        [
            ("10.0.0.1:80".to_owned(), false, Some(255)),
            ("10.0.0.2:81".to_owned(), false, Some(1)),
            ("10.0.0.1:80".to_owned(), true, Some(5)),
        ]
    );
    // One address is there once, and rather no backup.
    let Outcome::Found(found) = conclude(found, 0, 60, Memory::new()) else { panic!("nothing found") };
    assert_eq!(found.addresses.iter().filter(|it| it.backup).count(), 0);
    let (many, left_out) =
        self::targets(&(0..500).map(|port| srv(1, 1, port + 1, "a.test.")).collect::<Vec<_>>());
    assert_eq!((many.len(), left_out), (64, 436));
}
