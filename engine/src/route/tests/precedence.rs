//! Which rule wins.

use kakehi_ctl::state::RulePosition;

use super::*;

#[test]
fn an_empty_table_has_no_route() {
    let table = table(&[]);
    assert!(table.is_empty());
    assert_eq!(table.lookup("example.org", "/", "GET", &()), Outcome::NoRoute);
    assert_eq!(table.lookup("", "", "", &()), Outcome::NoRoute);
}

#[test]
fn an_exact_host_matches_itself_in_any_case_and_with_a_final_dot() {
    assert_routes(
        &["WWW.Example.org /", "[2001:DB8::1] /"],
        &[
            ("www.example.org /", "WWW.Example.org /"),
            ("wWw.eXample.ORG. /", "WWW.Example.org /"),
            ("example.org /", "none"),
            ("a.www.example.org /", "none"),
            ("www.example.org.. /", "none"),
            ("[2001:db8:0::0:1] /", "[2001:DB8::1] /"),
            ("2001:db8::1 /", "none"),
        ],
    );
}

#[test]
fn a_wildcard_stands_for_exactly_one_label() {
    assert_routes(
        &["*.example.org /"],
        &[
            ("www.example.org /", "*.example.org /"),
            ("WWW.EXAMPLE.ORG. /", "*.example.org /"),
            ("example.org /", "none"),
            (".example.org /", "none"),
            ("a.b.example.org /", "none"),
            ("wwwexample.org /", "none"),
        ],
    );
}

#[test]
fn a_regex_label_matches_one_whole_label_in_any_case() {
    assert_routes(
        &["/api|web[0-9]+/.example.org /"],
        &[
            ("api.example.org /", "/api|web[0-9]+/.example.org /"),
            ("WEB12.example.org /", "/api|web[0-9]+/.example.org /"),
            ("apix.example.org /", "none"),
            ("xapi.example.org /", "none"),
            ("x.web1.example.org /", "none"),
            ("api.evil.org /", "none"),
            ("api /", "none"),
            (".example.org /", "none"),
        ],
    );
    assert_routes(
        &["/.*/.b./c|d/ /"],
        &[
            ("a.b.c /", "/.*/.b./c|d/ /"),
            ("a.b.d. /", "/.*/.b./c|d/ /"),
            (".b.c /", "none"),
            ("a.x.c /", "none"),
            ("a.a.b.c /", "none"),
            ("a.b.cd /", "none"),
        ],
    );
}

#[test]
fn a_star_takes_any_host_even_none() {
    assert_routes(
        &["* /"],
        &[
            ("example.org /", "* /"),
            ("a.b.c.d /", "* /"),
            (" /", "* /"),
            ("[::1] /", "* /"),
            ("a..b /", "* /"),
        ],
    );
}

#[test]
fn exact_beats_regex_beats_wildcard_beats_star_in_any_order_of_rules() {
    let rules = ["* /", "*.example.org /", "/w+/.example.org /", "www.example.org /"];
    let cases = [
        ("www.example.org /", "www.example.org /"),
        ("ww.example.org /", "/w+/.example.org /"),
        ("x.example.org /", "*.example.org /"),
        ("x.y.example.org /", "* /"),
    ];
    for turn in 0..rules.len() {
        let mut rules = rules;
        rules.rotate_left(turn);
        assert_routes(&rules, &cases);
        rules.reverse();
        assert_routes(&rules, &cases);
    }
}

#[test]
fn among_regex_hosts_more_literal_labels_win_then_the_first() {
    assert_routes(
        &["/a/./b/.org /", "/./.b.org /", "a./[a-c]/.org /", "/a|x/./b/.org /"],
        &[("a.b.org /", "/./.b.org /"), ("a.c.org /", "a./[a-c]/.org /"), ("x.b.org /", "/./.b.org /")],
    );
    assert_routes(&["/a/./b/.org /", "/a|x/./b/.org /"], &[("a.b.org /", "/a/./b/.org /")]);
    assert_routes(&["/a|x/./b/.org /", "/a/./b/.org /"], &[("a.b.org /", "/a|x/./b/.org /")]);
}

#[test]
fn a_host_whose_rules_do_not_take_the_request_is_passed_over() {
    assert_routes(
        &["www.example.org /api", "/w+/.example.org =/x", "*.example.org /app GET", "* /"],
        &[
            ("www.example.org /api/1", "www.example.org /api"),
            ("www.example.org /x", "/w+/.example.org =/x"),
            ("www.example.org /app", "*.example.org /app GET"),
            ("www.example.org /app POST", "* /"),
            ("www.example.org /other", "* /"),
        ],
    );
}

#[test]
fn equals_beats_regex_beats_prefix_in_any_order_of_rules() {
    let rules = ["h /", "h /a", "h ~/a.*", "h =/ab"];
    let cases = [("h /ab", "h =/ab"), ("h /abc", "h ~/a.*"), ("h /b", "h /")];
    for turn in 0..rules.len() {
        let mut rules = rules;
        rules.rotate_left(turn);
        assert_routes(&rules, &cases);
        rules.reverse();
        assert_routes(&rules, &cases);
    }
}

#[test]
fn the_longest_prefix_wins_and_a_prefix_is_one_of_bytes() {
    assert_routes(
        &["h /", "h /api", "h /api/v1", "h /api/v1/users", "h /b", "h /a"],
        &[
            ("h /", "h /"),
            ("h /x", "h /"),
            ("h /a", "h /a"),
            ("h /ap", "h /a"),
            ("h /api", "h /api"),
            ("h /apiary", "h /api"),
            ("h /api/", "h /api"),
            ("h /api/v", "h /api"),
            ("h /api/v1", "h /api/v1"),
            ("h /api/v1/user", "h /api/v1"),
            ("h /api/v1/users/7", "h /api/v1/users"),
            ("h /api/v1/zebra", "h /api/v1"),
            ("h /b/x", "h /b"),
            ("h *", "none"),
        ],
    );
}

#[test]
fn an_empty_prefix_takes_every_path() {
    assert_routes(&["h ", "h =*"], &[("h /", "h "), ("h /x", "h "), ("h * OPTIONS", "h =*")]);
    assert_eq!(table(&["h "]).lookup("h", "", "GET", &()), Outcome::Target(0));
    assert_eq!(table(&["h "]).lookup("h", "*", "OPTIONS", &()), Outcome::Target(0));
}

#[test]
fn a_regex_is_about_the_whole_path_and_the_first_one_wins() {
    assert_routes(
        &["h ~/a|/b", "h ~/[ab].*", "h ~/a/secret"],
        &[
            ("h /a", "h ~/a|/b"),
            ("h /b", "h ~/a|/b"),
            ("h /ab", "h ~/[ab].*"),
            ("h /a/secret", "h ~/[ab].*"),
            ("h /x/a", "none"),
        ],
    );
}

#[test]
fn with_the_same_path_a_rule_with_a_method_beats_one_without() {
    for rules in [["h /", "h / GET", "h / POST"], ["h / POST", "h / GET", "h /"]] {
        assert_routes(
            &rules,
            &[("h / GET", "h / GET"), ("h / POST", "h / POST"), ("h / PUT", "h /"), ("h / get", "h /")],
        );
    }
    for rules in [["h ~/.*", "h ~/.* GET", "h ~/a"], ["h ~/.* GET", "h ~/.*", "h ~/a"]] {
        assert_routes(&rules, &[("h /a GET", "h ~/.* GET"), ("h /a POST", "h ~/.*")]);
    }
    for rules in [["h =/a", "h =/a GET"], ["h =/a GET", "h =/a"]] {
        assert_routes(&rules, &[("h /a GET", "h =/a GET"), ("h /a PUT", "h =/a")]);
    }
}

#[test]
fn a_better_path_beats_a_method() {
    assert_routes(
        &["h / GET", "h /a", "h =/a/b", "h ~/a/b|/a/c GET"],
        &[("h /a", "h /a"), ("h /a/b", "h =/a/b"), ("h /a/c", "h ~/a/b|/a/c GET"), ("h /a/c PUT", "h /a")],
    );
}

#[test]
fn a_rule_for_another_method_lets_shorter_prefixes_and_other_kinds_have_the_request() {
    assert_routes(
        &["h / GET", "h /a POST", "h =/a/b PUT", "h /a/b PATCH"],
        &[
            ("h /a/b PUT", "h =/a/b PUT"),
            ("h /a/b PATCH", "h /a/b PATCH"),
            ("h /a/b POST", "h /a POST"),
            ("h /a/b GET", "h / GET"),
            ("h /a/b DELETE", "none"),
        ],
    );
}

#[test]
fn the_same_rule_twice_with_another_target_is_refused() {
    for (rules, host, path, method) in [
        (["a.b /", "A.B. /"], "a.b", "/", "any method"),
        (["* =/a GET", "* =/a GET"], "*", "/a", "method GET"),
        (["/x/.b ~/a", "/x/.B ~/a"], "/x/.b", "/a", "any method"),
        (["*.b /%61", "*.b /a"], "*.b", "/a", "any method"),
        (["[::1] ", "[0::1] "], "[::1]", "", "any method"),
    ] {
        let expected = RouteError::Duplicate {
            hostname: host.to_owned(),
            path: path.to_owned(),
            method: method.to_owned(),
        };
        assert_eq!(try_table(&rules).map(|table| table.len()), Err(expected), "{rules:?}");
    }
}

#[test]
fn the_same_rule_twice_with_the_same_target_counts_once() {
    let rules = ["h /", "H. /", "h =/a", "h =/a", "h ~/a", "h ~/a", "h / GET", "h ~/a GET"];
    let table = RouteTable::compile(rules.iter().map(|text| rule(text, 7))).expect("valid rules");
    assert_eq!(table.len(), 5);
    assert_eq!(table.lookup("h", "/", "GET", &()), Outcome::Target(7));
}

#[test]
fn rules_that_differ_in_kind_or_method_are_not_the_same() {
    assert_eq!(table(&["h /a", "h =/a", "h ~/a", "h /a GET", "*.h /a"]).len(), 5);
}

#[test]
fn a_bad_rule_is_refused_whatever_is_bad_in_it() {
    for (text, code) in [
        ("a..b /", "hostname_bad_label"),
        ("h api", "bad_path"),
        ("h =", "bad_path"),
        ("h ~(", "bad_regex"),
        ("/(/.h /", "bad_regex"),
        ("h / G(T", "bad_method"),
        ("h / ", "bad_method"),
    ] {
        let refused = try_table(&["h /", text]).map(|_| ());
        assert_eq!(refused.map_err(|error| error.code()), Err(code), "{text}");
    }
    let equal_to_prefix = try_table(&["h /.", "h =/."]).map(|_| ());
    assert_eq!(equal_to_prefix.map_err(|error| error.code()), Err("bad_path"));
}

#[test]
fn a_hostname_is_checked_with_its_regular_expressions() {
    assert_eq!(crate::route::check_hostname("/[a-z]+/.example.org"), Ok(()));
    let refused = crate::route::check_hostname("/[a-z/.example.org");
    assert!(matches!(refused, Err(RouteError::BadRegex { .. })), "{refused:?}");
}

#[test]
fn a_name_longer_than_names_can_be_has_no_route() {
    let table = table(&["* /"]);
    assert_eq!(table.lookup(&"a".repeat(255), "/", "GET", &()), Outcome::Target(0));
    assert_eq!(table.lookup(&"a".repeat(256), "/", "GET", &()), Outcome::NoRoute);
}

#[test]
fn adding_and_removing_neighbours_never_changes_a_host() {
    let with = ["/a+/.example.org /", "a.example.org /", "*.example.org /", "aa.example.org /"];
    assert_routes(
        &with,
        &[
            ("a.example.org /", "a.example.org /"),
            ("aa.example.org /", "aa.example.org /"),
            ("aaa.example.org /", "/a+/.example.org /"),
            ("b.example.org /", "*.example.org /"),
        ],
    );
    assert_routes(&with[..1], &[("a.example.org /", with[0]), ("b.example.org /", "none")]);
    assert_routes(&with[1..], &[("aaa.example.org /", with[2]), ("aa.example.org /", with[3])]);
}

#[test]
fn rules_that_are_otherwise_equal_are_tried_by_their_order_and_those_without_one_last() {
    let text = |it: &str| PathRule::Regex(it.to_owned());
    let ordered = |rule: Rule, order: u64| Rule { order: std::num::NonZeroU64::new(order), ..rule };
    let of = |hostname: &str, path: &str, target| Rule::new(hostname.to_owned(), text(path), None, target);
    let rules = [
        ordered(of("a", "/x.*", 0), 0),
        ordered(of("a", "/.*", 1), 9),
        ordered(of("a", "/.*y", 2), 8),
        ordered(of("/[a-c]/", "/.*", 3), 5),
        ordered(of("/[b-d]/", "/.*", 4), 4),
        ordered(Rule { position: RulePosition::Pre, ..of("p", "/.*", 5) }, 0),
        ordered(Rule { position: RulePosition::Pre, ..of("p", "/.*x", 6) }, 1_000_000),
        ordered(Rule { position: RulePosition::Post, ..of("q", "/.*", 7) }, 3),
        ordered(Rule { position: RulePosition::Post, ..of("q", "/.*x", 8) }, 2),
    ];
    let table = RouteTable::compile(rules).expect("valid rules");
    for (host, path, expected) in [
        ("a", "/xy", 2),
        ("a", "/x", 1),
        ("c", "/", 4),
        ("b", "/", 4),
        ("p", "/x", 6),
        ("p", "/", 5),
        ("q", "/x", 8),
        ("q", "/", 7),
    ] {
        assert_eq!(table.lookup(host, path, "GET", &()), Outcome::Target(expected), "{host}{path}");
    }
}
