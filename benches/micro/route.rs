//! What finding a route costs, by the number of rules, and what building the table costs at a reload.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kakehi_ctl::state::PathRule;
use kakehi_engine::route::{RouteTable, Rule};

/// Exact hosts, each with a few prefixes, one wildcard in ten, one regular expression in a hundred.
fn rules(hosts: u32) -> Vec<Rule> {
    let mut rules = Vec::new();
    for host in 0..hosts {
        let hostname = match host {
            every if every % 100 == 99 => format!("/[a-z]+{host}/.example.org"),
            every if every % 10 == 9 => format!("*.site-{host}.example.org"),
            _ => format!("site-{host}.example.org"),
        };
        for (target, prefix) in (host * 4..).zip(["/", "/api", "/api/v2", "/static/"]) {
            let path = PathRule::Prefix(prefix.to_owned());
            rules.push(Rule { hostname: hostname.clone(), path, method: None, target });
        }
    }
    rules
}

#[expect(clippy::expect_used, reason = "the rules of this file are valid")]
fn lookups(criterion: &mut Criterion) {
    for hosts in [1, 100, 10_000] {
        let table = RouteTable::compile(rules(hosts)).expect("valid rules");
        let mut group = criterion.benchmark_group(format!("lookup among {hosts} hosts"));
        let exact = format!("site-{}.example.org", hosts / 2);
        let cases = [
            ("exact host", exact.as_str(), "/api/v2/users/17"),
            ("exact host, path to normalise", exact.as_str(), "/api/%76%32/../v2/users"),
            ("wildcard host", "www.site-9.example.org", "/static/app.js"),
            ("no route", "unknown.example.net", "/"),
        ];
        for (name, host, path) in cases {
            group.bench_function(name, |bencher| {
                bencher.iter(|| table.lookup(black_box(host), black_box(path), "GET"));
            });
        }
        group.finish();
    }
}

fn compilation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for hosts in [100, 10_000] {
        let rules = rules(hosts);
        group.bench_function(format!("{hosts} hosts"), |bencher| {
            bencher.iter(|| RouteTable::compile(black_box(&rules).iter().cloned()).is_ok());
        });
    }
    group.finish();
}

criterion_group!(route, lookups, compilation);
criterion_main!(route);
