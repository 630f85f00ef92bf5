//! The admin address in the file, and by hand.

use std::{collections::BTreeMap, path::Path};

use super::{super::write, parse, read};
use crate::{
    edit::{patch_settings, settings_that_fit, settings_with},
    state::Settings,
};

/// What a file is refused for.
fn refused(text: &str) -> String {
    parse(text, "k.toml").unwrap_err().to_string()
}

#[test]
fn the_admin_address_is_read_and_written_as_it_was() {
    for text in [
        "",
        "[admin]\naddress = \"127.0.0.1:9901\"\n",
        "[admin]\naddress = \"0.0.0.0:9901\"\nallow = [\"10.0.0.0/8\", \"::1\"]\nhostnames = [\"kakehi.example.org\"]\n",
        "[admin]\naddress = \"unix:/run/kakehi/admin.sock\"\n",
    ] {
        let (state, warnings) = read(text);
        assert_eq!(warnings, [""; 0]);
        let written = write::write(&state);
        assert_eq!(read(&written).0, state, "{written}");
        assert_eq!(state.settings.admin.address.is_some(), !text.is_empty());
    }
}

#[test]
fn an_admin_address_that_is_open_to_all_is_an_error_with_its_line() {
    for address in ["0.0.0.0:9901", "[::]:9901", "192.0.2.1:9901"] {
        let error = refused(&format!("\n[admin]\naddress = \"{address}\"\n"));
        assert!(error.starts_with("k.toml:3:11: ") && error.contains("needs `allow`"), "{error}");
    }
}

#[test]
fn what_can_be_no_admin_address_is_an_error_with_its_line() {
    for (keys, words) in [
        ("address = \"localhost:9901\"", "must be `ip:port`"),
        ("address = \"unix:admin.sock\"", "must be `ip:port`"),
        ("address = \"[::ffff:127.0.0.1]:9901\"", "write `127.0.0.1:9901`"),
        ("hostnames = [\"a.example:80\"]", "without ports and `*`"),
        ("hostnames = [\"*.example\"]", "without ports and `*`"),
        ("allow = [\"here\"]", "an array of networks"),
        ("port = 1", "port"),
    ] {
        let error = refused(&format!("[admin]\n{keys}\n"));
        assert!(error.starts_with("k.toml:2:") && error.contains(words), "{keys}: {error}");
    }
    for listener in ["127.0.0.1:9901", "0.0.0.0:9901"] {
        let error = refused(&format!(
            "[[listeners]]\naddress = \"{listener}\"\nprotocol = \"http\"\n[admin]\naddress = \"127.0.0.1:9901\"\n"
        ));
        assert!(error.contains(&format!("the listener `{listener}` is there already")), "{error}");
    }
}

#[test]
fn what_has_no_effect_on_the_admin_address_is_said() {
    for (keys, words) in [
        ("hostnames = [\"a.example\"]", "without `address`"),
        ("address = \"unix:/run/a\"\nallow = [\"::1\"]", "no effect on a unix socket"),
        ("address = \"127.0.0.1:9901\"\nallow = []", "nobody can connect"),
    ] {
        let (_, warnings) = read(&format!("[admin]\n{keys}\n"));
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{keys}: {warnings:?}");
    }
}

#[test]
fn the_keys_of_a_table_are_changed_by_hand_under_their_whole_name() {
    let patch = |by_hand: &BTreeMap<_, _>, keys: &[&str]| {
        let keys: Vec<String> = keys.iter().map(|it| (*it).to_owned()).collect();
        patch_settings(by_hand, &keys, Path::new("/"))
    };
    let in_file = Settings::default();
    let by_hand = patch(&BTreeMap::new(), &["admin.address=0.0.0.0:9901"]).unwrap();
    let error = settings_with(&in_file, &by_hand).unwrap_err().to_string();
    assert!(error.contains("needs `allow`"), "{error}");
    let mut by_hand = patch(&by_hand, &["admin.allow=[\"10.0.0.0/8\"]"]).unwrap();
    let with = settings_with(&in_file, &by_hand).unwrap();
    assert_eq!(with.admin.allow.as_ref().map(Vec::len), Some(1));
    assert_eq!(in_file.becoming(&with).admin, with.admin);
    // Neither fits without the other.
    by_hand.insert("no_such_key".to_owned(), "1".to_owned());
    assert_eq!(settings_that_fit(&in_file, &mut by_hand), with);
    assert_eq!(by_hand.keys().collect::<Vec<_>>(), ["admin.address", "admin.allow"]);
    let by_hand = patch(&by_hand, &["admin.address=", "admin.allow="]).unwrap();
    assert_eq!(settings_with(&in_file, &by_hand), Ok(in_file));
    for (key, words) in [
        ("admin.port=1", "no setting of the process"),
        ("admin=1", "no setting of the process"),
        ("admin.address=9901", "must be `ip:port`"),
    ] {
        let error = patch(&by_hand, &[key]).unwrap_err().to_string();
        assert!(error.contains(words), "{key}: {error}");
    }
}
