//! Orders in parts, and what older programs say.

use super::{worker::CHANGES_PER_ORDER, *};
use crate::state::{NameAnswer, Revision};

#[test]
fn many_changes_are_told_in_parts_that_make_up_the_whole() {
    let change = |port: usize| Change::RemoveListener { address: ([127, 0, 0, 1], port as u16).into() };
    for count in [0, 1, CHANGES_PER_ORDER, CHANGES_PER_ORDER + 1, 3 * CHANGES_PER_ORDER] {
        let changes: Vec<Change> = (1..=count).map(change).collect();
        let whole = Order::Prepare { staged: 0, changes: changes.clone(), revision: Revision::default() };
        let parts = whole.in_parts();
        let mut told = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let (last, part) = match part {
                Order::Stage { changes } => (false, changes),
                Order::Prepare { staged, changes, .. } => {
                    assert_eq!(*staged, told.len());
                    (true, changes)
                }
                other => panic!("{other:?}"),
            };
            assert!(last == (number + 1 == parts.len()) && part.len() <= CHANGES_PER_ORDER);
            told.extend_from_slice(part);
        }
        assert_eq!(told, changes);
    }
    assert_eq!(Order::Ping.in_parts(), [Order::Ping]);
    let verdict = |number: usize| {
        let backend = BackendName { cluster: "a".to_owned(), id: number.to_string() };
        Verdict { backend, up: number.is_multiple_of(2) }
    };
    let verdicts: Vec<Verdict> = (0..2 * BACKENDS_PER_ORDER + 1).map(verdict).collect();
    let parts = Order::Fact { fact: Fact::Verdicts { verdicts: verdicts.clone() } }.in_parts();
    let told = parts.iter().flat_map(|part| match part {
        Order::Fact { fact: Fact::Verdicts { verdicts } } if verdicts.len() <= BACKENDS_PER_ORDER => verdicts,
        other => panic!("{other:?}"),
    });
    assert!(told.eq(&verdicts) && parts.len() == 3);
    let answer = |number: usize| NameAnswer {
        name: format!("app{number}:80").parse().unwrap(),
        addresses: None,
        empty: true,
    };
    let answers: Vec<NameAnswer> = (0..2 * NAMES_PER_ORDER + 1).map(answer).collect();
    let parts = Order::Fact { fact: Fact::Names { answers: answers.clone() } }.in_parts();
    let told = parts.iter().flat_map(|part| match part {
        Order::Fact { fact: Fact::Names { answers } } if answers.len() <= NAMES_PER_ORDER => answers,
        other => panic!("{other:?}"),
    });
    assert!(told.eq(&answers) && parts.len() == 3);
}

#[test]
fn every_order_travels_under_its_name_and_older_workers_are_given_those_that_they_know() {
    for name in Order::known() {
        let text = match name {
            "stage" => r#"{"stage":{"changes":[]}}"#.to_owned(),
            "prepare" => r#"{"prepare":{"changes":[],"revision":{"generation":1,"origin":""}}}"#.to_owned(),
            "yield" => r#"{"yield":{"sockets":[]}}"#.to_owned(),
            "fact" => r#"{"fact":{"fact":"ticket_keys"}}"#.to_owned(),
            "fact.verdicts" => {
                r#"{"fact":{"fact":{"verdicts":{"verdicts":[{"cluster":"a","id":"b","up":false}]}}}}"#
                    .to_owned()
            }
            "fact.names" => {
                r#"{"fact":{"fact":{"names":{"answers":[{"name":"a:80","addresses":[{"address":"10.0.0.1:80"}]}]}}}}"#
                    .to_owned()
            }
            "tell_loads" => r#"{"tell_loads":{"backends":[{"cluster":"a","id":"b"}]}}"#.to_owned(),
            "close_sessions" => r#"{"close_sessions":{"cluster":"a","backend":"b"}}"#.to_owned(),
            "explain" => {
                r#"{"explain":{"listener":"10.0.0.1:80","inquiry":{"head":"","from":"10.0.0.2","server_name":null}}}"#
                    .to_owned()
            }
            "share" => r#"{"share":{"connections":1}}"#.to_owned(),
            "hand_over" | "stop" => format!(r#"{{"{name}":{{"deadline_ms":1}}}}"#),
            name => format!("\"{name}\""),
        };
        let order: Order = serde_json::from_str(&text).unwrap();
        assert_eq!(order.name(), name);
        let is_later = ["fact", "fact.verdicts", "tell_loads", "close_sessions", "fact.names", "explain"]
            .contains(&name);
        assert_eq!(order.is_understood_by(&[]), !is_later, "the first program had no such order");
        assert!(order.is_understood_by(&[name.to_owned()]));
        assert!(!order.is_understood_by(&["another".to_owned()]));
    }
}

#[test]
fn what_older_programs_say_of_themselves_is_understood() {
    let ready: Report =
        serde_json::from_str(r#"{"ready":{"io_uring_level":4,"io_uring_features":[]}}"#).unwrap();
    assert!(matches!(ready, Report::Ready { capabilities, .. } if capabilities.is_empty()));
    let hello = Hello::new(&["watch"]);
    assert!(hello.can("watch") && !hello.can("dance"));
}
