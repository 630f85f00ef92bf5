//! Nobody gets round a rule by spelling, and ordinary spelling is nobody's business.

use super::*;

#[test]
fn a_path_whose_normal_form_leads_elsewhere_is_ambiguous() {
    let rules = ["h /", "h /admin"];
    let table = table(&rules);
    for path in [
        "/%61dmin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/\\admin",
        "\\admin",
        "/%2Fadmin",
        "/;x/admin",
        "/x/..;/admin",
        "/admin/../x",
        "/admin/..",
        "/%41dmin/../%61dmin",
        "/admin;/../x",
    ] {
        assert_eq!(table.lookup("h", path, "GET", &()), Outcome::AmbiguousPath, "{path}");
    }
}

#[test]
fn a_path_whose_normal_form_leads_to_the_same_place_goes_there() {
    assert_routes(
        &["h /", "h /api", "h =/admin"],
        &[
            ("h /caf%C3%A9", "h /"),
            ("h /%ff%fe", "h /"),
            ("h /a//b", "h /"),
            ("h /.well-known/acme", "h /"),
            ("h /a;b=c", "h /"),
            ("h /100%", "h /"),
            ("h /api/v4/projects/group%2Fproject", "h /api"),
            ("h /api/https://example.org/x.png", "h /api"),
            ("h /api/a/../b", "h /api"),
            ("h /api;v=1", "h /api"),
            ("h /admin", "h =/admin"),
            ("h /admin;x", "ambiguous"),
            ("h /admin/.", "h /"),
        ],
    );
}

#[test]
fn no_route_on_both_sides_is_no_route_and_one_side_alone_is_ambiguous() {
    assert_routes(&["h /a"], &[("h /%62", "none"), ("h /%61", "ambiguous"), ("h /a/../b", "ambiguous")]);
    assert_routes(&["h /a"], &[("other /%61", "none")]);
}

#[test]
fn an_encoded_nul_is_always_ambiguous() {
    assert_routes(&["h /"], &[("h /a%00", "ambiguous"), ("other /%00", "ambiguous")]);
}

#[test]
fn a_path_without_a_reading_that_servers_share_is_ambiguous_unless_all_paths_lead_to_one_place() {
    let spellings = ["h /a/x%2Fy/../../b", "h /a;%2Fb", "h /a//../b", "h /x/../a", "h /%61"];
    assert_routes(&["h /"], &spellings.map(|spelling| (spelling, "h /")));
    assert_routes(
        &["h /", "h =/c"],
        &[("h /a/x%2Fy/../../b", "ambiguous"), ("h /a;%2Fb", "ambiguous"), ("h /a//../b", "ambiguous")],
    );
}

#[test]
fn a_rule_with_an_encoded_character_takes_the_requests_that_are_spelled_like_it() {
    assert_routes(
        &["h /", "h /caf%C3%A9", "h =/a%2Fb", "h /50%25"],
        &[
            ("h /caf%C3%A9/menu", "h /caf%C3%A9"),
            ("h /caf%c3%a9", "ambiguous"),
            ("h /café", "ambiguous"),
            ("h /a%2Fb", "h =/a%2Fb"),
            ("h /a/b", "ambiguous"),
            ("h /50%25", "h /50%25"),
            ("h /50%", "ambiguous"),
        ],
    );
}

#[test]
fn a_rule_may_be_written_in_both_spellings_for_the_same_target() {
    let rules = ["h /%40me", "h /@me"].map(|text| rule(text, 1));
    let table = RouteTable::compile(rules.into_iter().chain([rule("h /", 0)])).expect("valid rules");
    for (path, outcome) in [
        ("/%40me", Outcome::Target(1)),
        ("/@me", Outcome::Target(1)),
        ("/%40you", Outcome::Target(0)),
        ("/%40%6de", Outcome::AmbiguousPath),
    ] {
        assert_eq!(table.lookup("h", path, "GET", &()), outcome, "{path}");
    }
    assert_routes(
        &["h /", "h /%40me"],
        &[("h /@me", "ambiguous"), ("h /%40me", "h /%40me"), ("h /@", "h /")],
    );
}

#[test]
fn rules_that_are_two_spellings_of_one_path_are_refused() {
    for rules in [["h =/a%2Fb", "h =/a/b"], ["h /caf%C3%A9", "h /caf%c3%a9"], ["h /%61", "h /a"]] {
        let refused = try_table(&rules).map(|_| ());
        assert_eq!(refused.map_err(|error| error.code()), Err("duplicate_route"), "{rules:?}");
    }
}

#[test]
fn a_prefix_that_ends_in_a_dot_takes_hidden_files() {
    assert_routes(
        &["h /", "h /.", "h /.well-known/"],
        &[
            ("h /.git/config", "h /."),
            ("h /.well-known/acme", "h /.well-known/"),
            ("h /%2egit", "ambiguous"),
            ("h //.git", "ambiguous"),
            ("h /./index", "ambiguous"),
            ("h /index", "h /"),
        ],
    );
}

#[test]
fn both_forms_pass_through_the_host_patterns_and_the_regular_expressions() {
    assert_routes(
        &["www.h /admin", "*.h /", "* ~/x/.*"],
        &[
            ("www.h /a/../admin", "ambiguous"),
            ("www.h /a/../b", "*.h /"),
            ("q /x/%0a%ff", "* ~/x/.*"),
            ("q /x/../y", "ambiguous"),
            ("q /y/../x/", "ambiguous"),
        ],
    );
}

#[test]
fn a_long_path_is_normalised_as_a_short_one() {
    let table = table(&["h /", "h /admin"]);
    for length in [1_000, 1_023, 1_024, 1_025, 9_000] {
        let path = format!("/{}/../admin", "x".repeat(length - 11));
        assert_eq!(table.lookup("h", &path, "GET", &()), Outcome::AmbiguousPath, "{length}");
        let path = format!("/{}/../other", "x".repeat(length - 11));
        assert_eq!(table.lookup("h", &path, "GET", &()), Outcome::Target(0), "{length}");
    }
}
