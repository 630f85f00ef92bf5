//! What is refused, word by word.

use std::path::Path;

use super::{file, read};
use crate::{
    config::{
        load, parse,
        reference::{example, sample},
    },
    limits,
};

/// The first error of a file that is refused, without its line.
fn error(text: &str) -> String {
    errors(text).swap_remove(0)
}

/// All errors of a file that is refused, without their lines.
fn errors(text: &str) -> Vec<String> {
    match parse(text, "k.toml") {
        Ok(_) => panic!("this was accepted:\n{text}"),
        Err(errors) => errors.lines().collect(),
    }
}

#[test]
fn each_error_names_the_place_the_key_and_what_is_allowed() {
    let in_root = |text: &str| file(text, "", "", "", "");
    let cases = [
        // Syntax.
        ("worker_count = \n".to_owned(), "k.toml:1:16: not TOML: "),
        (in_root("worker_count = 1\nworker_count = 2"), "k.toml:2:1: not TOML: duplicate key"),
        // Unknown keys.
        (
            in_root("worker_cuont = 1"),
            "k.toml:1:1: unknown key `worker_cuont` in the root; did you mean `worker_count`?",
        ),
        (
            file("", "  frnt_timeout = 1", "", "", ""),
            "k.toml:5:3: unknown key `frnt_timeout` in a listener; did you mean `front_timeout`?",
        ),
        (
            file("", "", "", "hostnme = \"x\"", ""),
            "k.toml:12:1: unknown key `hostnme` in a frontend; did you mean `hostname`?",
        ),
        (
            file("", "", "", "", "wieght = 1"),
            "k.toml:15:1: unknown key `wieght` in a backend; did you mean `weight`?",
        ),
        (
            file("", "", "hostname = \"x\"", "", ""),
            "k.toml:8:1: unknown key `hostname` in a cluster; it belongs in a frontend",
        ),
        (
            in_root("[hsts]\nenabled = true"),
            "k.toml:1:2: unknown key `hsts` in the root; it belongs in a listener",
        ),
        (in_root("\"zz\\u001b[2J\" = 1"), "k.toml:1:1: unknown key `zz\\u{1b}[2J` in the root"),
        (
            file("", "", "health_check = { uri = \"/\", inteval = 1 }", "", ""),
            "k.toml:8:29: unknown key `inteval` in a health check; did you mean `interval`?",
        ),
        // Types and ranges.
        (
            in_root("worker_count = \"2\""),
            "k.toml:1:16: `worker_count` must be an integer from 1 to 1024, not a string",
        ),
        (
            in_root("worker_count = 0"),
            "k.toml:1:16: `worker_count` must be an integer from 1 to 1024, not `0`",
        ),
        (
            in_root("worker_count = -1"),
            "k.toml:1:16: `worker_count` must be an integer from 1 to 1024, not `-1`",
        ),
        (
            in_root("worker_count = 99999999999999999999999"),
            "k.toml:1:16: `worker_count` must be an integer from 1 to 1024, not `99999999999999999999999`",
        ),
        (
            in_root("worker_count = 1.5"),
            "k.toml:1:16: `worker_count` must be an integer from 1 to 1024, not a number with a fraction",
        ),
        (
            in_root("worker_automatic_restart = 1"),
            "k.toml:1:28: `worker_automatic_restart` must be `true` or `false`, not an integer",
        ),
        (
            in_root("buffer_count = 1000"),
            "k.toml:1:16: `buffer_count` must be a power of two from 16 to 32768, not `1000`",
        ),
        (in_root("log_level = \"\""), "k.toml:1:13: `log_level` must be a string that is not empty, not ``"),
        (
            in_root("front_timeout = 0"),
            "k.toml:1:17: `front_timeout` must be a number of seconds above 0 and up to 31536000, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, not `0`",
        ),
        (
            in_root("front_timeout = nan"),
            "k.toml:1:17: `front_timeout` must be a number of seconds above 0 and up to 31536000, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, not `nan`",
        ),
        (
            in_root("front_timeout = inf"),
            "k.toml:1:17: `front_timeout` must be a number of seconds above 0 and up to 31536000, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, not `inf`",
        ),
        (
            in_root("front_timeout = 31536001"),
            "k.toml:1:17: `front_timeout` must be a number of seconds above 0 and up to 31536000, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, not `31536001`",
        ),
        (
            in_root("front_timeout = \"10\""),
            "k.toml:1:17: `front_timeout` must be a number of seconds above 0 and up to 31536000, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, not the text `10`",
        ),
        (
            in_root("trusted_peers = [\"10.0.0.0/8\", \"10.0.0.0/33\"]"),
            "k.toml:1:32: `trusted_peers` must be an array of networks (`10.0.0.0/8`) or ip addresses, not one with `10.0.0.0/33`",
        ),
        (
            in_root("command_allowed_uids = [0, -1]"),
            "k.toml:1:28: `command_allowed_uids` must be an array of integers from 0 to 4294967295, not one with an integer",
        ),
        (in_root("clusters = 3"), "k.toml:1:12: `clusters` must be a table, not an integer"),
        ("listeners = 3".to_owned(), "k.toml:1:13: `listeners` must be an array of tables, not an integer"),
        (
            "listeners = [3]".to_owned(),
            "k.toml:1:14: `listeners` must be an array of tables, not one with an integer",
        ),
        ("[clusters]\nweb = 3".to_owned(), "k.toml:2:7: `clusters` must be a table, not one with an integer"),
        (
            file("", "public_address = \"localhost:80\"", "", "", ""),
            "k.toml:5:18: `public_address` must be `ip:port` or `[ipv6]:port` (names are not resolved), not `localhost:80`",
        ),
        (
            file("", "public_address = \"127.0.0.1:0\"", "", "", ""),
            "k.toml:5:18: `public_address` must be `ip:port` or `[ipv6]:port` (names are not resolved), not `127.0.0.1:0`",
        ),
        (
            file("", "answers = { 503 = 5 }", "", "", ""),
            "k.toml:5:19: `answers` must be a table of strings, not one with an integer",
        ),
        (
            file("", "max_head_size = 262145", "", "", ""),
            "k.toml:5:17: `max_head_size` must be an integer from 512 to 262144, not `262145`",
        ),
        (
            file("", "", "load_balancing = \"first_come\"", "", ""),
            "k.toml:8:18: `load_balancing` must be `ROUND_ROBIN` or `RANDOM` or `LEAST_LOADED` or `POWER_OF_TWO` or `HRW` or `MAGLEV` or `PEAK_EWMA`, not `first_come`",
        ),
        (
            file("", "", "https_redirect_port = 65536", "", ""),
            "k.toml:8:23: `https_redirect_port` must be an integer from 1 to 65535, not `65536`",
        ),
        (
            file("", "", "", "method = \"GE T\"", ""),
            "k.toml:12:10: `method` must be a method of HTTP, such as `GET`, not `GE T`",
        ),
        (
            file("", "", "", "", "weight = 256"),
            "k.toml:15:10: `weight` must be an integer from 0 to 255, not `256`",
        ),
        (
            in_root(&format!("command_socket = \"{}\"", "x".repeat(108))),
            &format!(
                "k.toml:1:18: `command_socket` must be the path of a unix socket, of 95 bytes at most, not `{}...`",
                "x".repeat(80)
            ),
        ),
        // What the keys mean together.
        ("[[listeners]]\nprotocol = \"http\"".to_owned(), "k.toml:1:1: a listener needs the key `address`"),
        (
            "[[listeners]]\naddress = \"127.0.0.1:80\"".to_owned(),
            "k.toml:1:1: a listener needs the key `protocol`",
        ),
        ("[clusters.web]\nfrontends = []".to_owned(), "k.toml:1:1: a cluster needs the key `protocol`"),
        (
            file("", "[[listeners]]\naddress = \"127.0.0.1:8080\"\nprotocol = \"http\"", "", "", ""),
            "k.toml:6:11: there is a listener at `127.0.0.1:8080` already, in line 3",
        ),
        (
            file(
                "",
                "interface = \"eth0\"\n[[listeners]]\naddress = \"127.0.0.1:8080\"\nprotocol = \"http\"\ninterface = \"eth1\"",
                "",
                "",
                "",
            ),
            "k.toml:7:11: there is a listener at `127.0.0.1:8080` already, in line 3: an address can be on one `interface` only",
        ),
        (
            file("", "interface = \"sixteen--letters\"", "", "", ""),
            "k.toml:5:13: `interface` must be the name of an interface, of 1 to 15 bytes without `/`, `:` and white space, not `sixteen--letters`",
        ),
        (
            file("splice_pipe_capacity_bytes = 4095", "", "", "", ""),
            "k.toml:1:30: `splice_pipe_capacity_bytes` must be an integer from 4096 to 1048576, not `4095`",
        ),
        (
            file("", "", "mode = \"drain\"", "", ""),
            "k.toml:8:8: `mode` must be `ready` or `maintain`, not `drain`",
        ),
        (
            file("", "", "", "[[clusters.web.frontends]]\nhostname = \"x\"", ""),
            "k.toml:12:1: a frontend needs the key `address`",
        ),
        (
            file("", "", "", "[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"", ""),
            "k.toml:12:1: a frontend needs the key `hostname`",
        ),
        (
            file(
                "",
                "",
                "",
                "[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"A.example\"\nredirect = \"unauthorized\"",
                "",
            ),
            "k.toml:12:1: this frontend takes the same requests as the one in line 9 and answers them otherwise",
        ),
        (file("", "", "", "", "[[clusters.web.backends]]"), "k.toml:15:1: a backend needs the key `address`"),
        (
            file(
                "",
                "",
                "",
                "",
                "backend_id = \"x\"\n[[clusters.web.backends]]\naddress = \"127.0.0.1:9001\"\nbackend_id = \"x\"",
            ),
            "k.toml:18:14: the cluster `web` has another backend with the id `x`, in line 15",
        ),
        (
            file("", "", "", "", "[[clusters.web.backends]]\naddress = \"unix:relative\""),
            "k.toml:16:11: `address` must be `ip:port`, `[ipv6]:port`, `host:port`, `srv:NAME`, `unix:/path` of 107 bytes at most, or `unix:@name`, not `unix:relative`",
        ),
        (
            "[clusters.\"\\u0007\"]\nprotocol = \"http\"".to_owned(),
            "k.toml:1:11: a cluster's name must have 1 to 255 characters that can be printed",
        ),
    ];
    let mut wrong = String::new();
    for (text, expected) in cases {
        let found = error(&text);
        // What the parser of TOML says is its own affair, its place is ours.
        let same =
            if expected.contains("not TOML") { found.starts_with(expected) } else { found == *expected };
        if !same {
            wrong.push_str(&format!(
                "found    {found}
expected {expected}

"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_host_name_that_cannot_be_one_is_refused_where_it_stands() {
    let too_long = "x".repeat(limits::MAX_HOSTNAME_RULE + 1);
    let cases = [
        ("a b", "it has spaces or control characters"),
        ("bücher.example", "write it in its ASCII form (`xn--...`)"),
        ("a.*.example", "`*` may only be the first label (`*.example.org`), or the whole name"),
        ("a..example", "it has an empty label"),
        ("a.example:80", "write it without a port"),
        (&too_long, "it is longer than 4096 bytes"),
    ];
    for (hostname, reason) in cases {
        let text = file(
            "",
            "",
            "",
            &format!("[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"{hostname}\""),
            "",
        );
        let found = error(&text);
        assert!(found.starts_with("k.toml:14:12: the host name `") && found.ends_with(reason), "{found}");
    }
    for hostname in ["*", "*.example", "/a|b c/.example", "[::1]", "127.0.0.1", "a.example."] {
        read(&file(
            "",
            "",
            "",
            &format!("[[clusters.web.frontends]]\naddress = \"127.0.0.1:8080\"\nhostname = \"{hostname}\""),
            "",
        ));
    }
}

#[test]
fn all_errors_of_a_file_are_told_at_once_in_its_order() {
    let text = file(
        "zzz = 1\nworker_count = 0",
        "front_timeout = \"soon\"\nprotocl = 1",
        "",
        "hostnme = \"b\"",
        "weight = 256\n[[clusters.web.backends]]\nadress = \"127.0.0.1:1\"\n\
         [clusters.b]\nprotocol = \"http\"\nfrontends = [{ address = \"127.0.0.1:8080\", hostname = \"a b\" }]\n\
         [clusters.a]\n[clusters.a]",
    );
    let places: Vec<String> = errors(&text);
    let places: Vec<&str> = places.iter().map(|it| it.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        ["1:1", "2:16", "6:17", "7:1", "14:1", "17:10", "19:1", "22:55", "24:11"]
            .map(|it| format!("k.toml:{it}")),
        "{:#?}",
        errors(&text)
    );
}

#[test]
fn an_error_is_shown_with_its_line_and_a_mark() {
    let text = file("", "", "", "hostnme = \"x\"", "weight = 256 # most");
    let shown = parse(&text, "k.toml").unwrap_err().to_string();
    let expected = "\
k.toml:12:1: unknown key `hostnme` in a frontend; did you mean `hostname`?
   |
12 | hostnme = \"x\"
   | ^^^^^^^
k.toml:15:10: `weight` must be an integer from 0 to 255, not `256`
   |
15 | weight = 256 # most
   |          ^^^";
    assert_eq!(shown, expected);
}

#[test]
fn what_is_no_toml_is_told_with_the_other_errors_and_nothing_is_made_of_its_line() {
    let text =
        file("worker_count = \nzzz = 1", "front_timeout = 10 s", "", "hostnme = \"b\"", "weight = 256");
    let found = errors(&text);
    let places: Vec<&str> = found.iter().map(|it| it.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        ["k.toml:1:16", "k.toml:2:1", "k.toml:6:17", "k.toml:13:1", "k.toml:16:10"],
        "{found:#?}"
    );
}

#[test]
fn fifty_errors_are_told_and_the_others_counted() {
    let many: String = (0..1000).map(|number| format!("[clusters.c{number:04}]\nx = 1\n")).collect();
    let found = errors(&many);
    assert_eq!(found.len(), 51);
    assert_eq!(found[49], "k.toml:50:1: unknown key `x` in a cluster");
    assert_eq!(found[50], "and 1950 more errors");
}

#[test]
fn a_wrong_value_is_no_missing_key_and_costs_nobody_else() {
    let text = file("", "protocol = \"htp\"", "", "", "").replacen("protocol = \"http\"\n", "", 1);
    let found = errors(&text);
    assert_eq!(found, ["k.toml:4:12: `protocol` must be `http` or `https` or `tcp` or `udp`, not `htp`"]);
    let found = errors(&file("", "", "", "", "").replace("\"127.0.0.1:9000\"", "9000"));
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn an_address_at_which_nobody_can_listen_is_refused() {
    let text = file("", "", "", "", "").replace("127.0.0.1:8080", "[::ffff:127.0.0.1]:8080");
    let expected = "k.toml:3:11: nothing can listen at `[::ffff:127.0.0.1]:8080`, an IPv4 address in the form of IPv6: write `127.0.0.1:8080`";
    assert_eq!(errors(&text), [expected]);
    // Nor is one made up for a frontend.
    let alone =
        text.replacen("[[listeners]]\naddress = \"[::ffff:127.0.0.1]:8080\"\nprotocol = \"http\"\n", "", 1);
    assert_eq!(errors(&alone), [expected.replace(":3:", ":7:")]);
}

#[test]
fn columns_count_characters_and_not_bytes() {
    let found = error("clusters = { \"ü\" = { ptotocol = \"http\" } }");
    assert_eq!(found, "k.toml:1:22: unknown key `ptotocol` in a cluster; did you mean `protocol`?");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let found = load("/nowhere/kakehi.toml").unwrap_err().to_string();
    assert!(found.starts_with("/nowhere/kakehi.toml: the configuration cannot be read: "), "{found}");
}

#[test]
fn what_is_no_file_or_has_no_end_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for path in [fifo.as_path(), Path::new("/dev/zero"), folder.path()] {
        let found = load(path).unwrap_err().to_string();
        assert!(found.ends_with("it is not a regular file"), "{found}");
    }
    let large = folder.path().join("large.toml");
    std::fs::File::create(&large).unwrap().set_len(limits::MAX_CONFIG_FILE + 1).unwrap();
    let found = load(&large).unwrap_err().to_string();
    assert!(found.ends_with("it has more than 64 MiB"), "{found}");
}

#[test]
fn a_file_that_is_cut_or_garbled_is_an_error_and_never_a_panic() {
    let whole = example(&|_, key| Some(sample(key)));
    let cuts = (0..whole.len()).step_by(97).filter(|at| whole.is_char_boundary(*at));
    for cut in cuts {
        let _ = parse(&whole[..cut], "k.toml");
        let mut garbled = whole.clone();
        garbled.insert_str(cut, "=]\"\u{0}");
        let _ = parse(&garbled, "k.toml");
    }
}
