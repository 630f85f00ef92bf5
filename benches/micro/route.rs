//! What finding a route costs, by the number of rules, and what building the table costs at a reload.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use kakehi_ctl::state::{PathRule, Predicate, Predicates};
use kakehi_engine::{
    http::Asked,
    route::{RouteTable, Rule},
};

const MANY_HOSTS: u32 = 100_000;

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
            rules.push(Rule::new(hostname.clone(), path, None, target));
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
                bencher.iter(|| table.lookup(black_box(host), black_box(path), "GET", &()));
            });
        }
        group.finish();
    }
}

/// A hundred thousand exact hosts with ten paths each.
fn many_rules() -> impl Iterator<Item = Rule> {
    const PATHS: [&str; 10] = [
        "/",
        "/api",
        "/api/v2",
        "/api/v2/users",
        "/static/",
        "/images/",
        "/login",
        "/account",
        "/shop/cart",
        "/search",
    ];
    (0..MANY_HOSTS).flat_map(|host| {
        (host * 10..).zip(PATHS).map(move |(target, prefix)| {
            let path = PathRule::Prefix(prefix.to_owned());
            Rule::new(format!("site-{host}.example.org"), path, None, target)
        })
    })
}

/// Lookups in a table that fits no cache, each for another host than the one before. The table is made once, and
/// how long that took is printed.
#[expect(clippy::expect_used, reason = "the rules of this file are valid")]
fn lookups_among_many(criterion: &mut Criterion) {
    // A smoke test learns nothing from the big table that the small ones do not show.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let compiled = LazyCell::new(|| {
        let begun = Instant::now();
        let table = RouteTable::compile(many_rules()).expect("valid rules");
        println!("compile/{MANY_HOSTS} hosts x 10 paths: {:.2} s", begun.elapsed().as_secs_f64());
        table
    });
    let known: Vec<String> = hosts_out_of_order().map(|host| format!("site-{host}.example.org")).collect();
    let unknown: Vec<String> = hosts_out_of_order().map(|host| format!("site-{host}.example.net")).collect();
    let mut group = criterion.benchmark_group(format!("lookup among {MANY_HOSTS} hosts x 10 paths"));
    for (name, hosts, path) in [
        ("exact host", &known, "/api/v2/users/17"),
        ("exact host, path of /", &known, "/nothing/else"),
        ("no route", &unknown, "/"),
    ] {
        let mut hosts = hosts.iter().cycle();
        group.bench_function(name, |bencher| {
            let table = &*compiled;
            bencher
                .iter(|| hosts.next().map(|host| table.lookup(black_box(host), black_box(path), "GET", &())));
        });
    }
    group.finish();
}

/// Ten thousand hosts, each far from the one before.
fn hosts_out_of_order() -> impl Iterator<Item = u32> {
    /// Odd and no multiple of 5: no host comes twice.
    const STRIDE: u32 = 61_803;
    (0..10_000).map(|turn| (turn * STRIDE) % MANY_HOSTS)
}

/// A request of a tenant.
struct OfTenant(String);

impl Asked for OfTenant {
    fn field(&self, name: &str) -> Option<&[u8]> {
        (name == "x-tenant").then_some(self.0.as_bytes())
    }
}

/// Rules for one host and path, each for another tenant.
fn rules_of_tenants(count: u32) -> impl Iterator<Item = Rule> {
    (0..count).map(|target| {
        let value = Some(format!("tenant-{target}"));
        let predicate = Predicate { name: "x-tenant".to_owned(), value, ..Predicate::default() };
        let predicates = Predicates { headers: vec![predicate], ..Predicates::default() };
        let rule = Rule::new("example.org".to_owned(), PathRule::Prefix("/".to_owned()), None, target);
        Rule { predicates: Some(Box::new(predicates)), ..rule }
    })
}

/// The last of many rules that differ in what they ask of a field alone. How long the table took to make is printed.
#[expect(clippy::expect_used, reason = "the rules of this file are valid")]
fn lookups_by_predicates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup by a predicate");
    for count in [1, 16, 10_000, 100_000] {
        let rules: Vec<Rule> = rules_of_tenants(count).collect();
        let begun = Instant::now();
        let table = RouteTable::compile(rules).expect("valid rules");
        println!("compile/{count} rules with a predicate: {:.3} s", begun.elapsed().as_secs_f64());
        let request = OfTenant(format!("tenant-{}", count - 1));
        group.bench_function(format!("the last of {count} rules"), |bencher| {
            bencher.iter(|| table.lookup(black_box("example.org"), black_box("/x"), "GET", &request));
        });
    }
    group.finish();
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

criterion_group!(route, lookups, lookups_among_many, lookups_by_predicates, compilation);
criterion_main!(route);
