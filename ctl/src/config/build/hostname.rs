//! Names of hosts, as far as they can be judged without compiling their regular expressions, which the engine does.

use crate::limits;

/// Whether a frontend may have this host name.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(hostname: &str) -> Result<(), &'static str> {
    let (has_regex, is_any) = (hostname.contains('/'), hostname == "*");
    if hostname.len() > limits::MAX_HOSTNAME_RULE {
        return Err("it is longer than 4096 bytes");
    }
    if hostname.bytes().any(|byte| byte.is_ascii_control()) || (!has_regex && hostname.contains(' ')) {
        return Err("it has spaces or control characters");
    }
    if has_regex || is_any {
        return Ok(());
    }
    if !hostname.is_ascii() {
        return Err("write it in its ASCII form (`xn--...`)");
    }
    if hostname.strip_prefix("*.").unwrap_or(hostname).contains('*') {
        return Err("`*` may only be the first label (`*.example.org`), or the whole name");
    }
    if hostname.starts_with('.') || hostname.contains("..") {
        return Err("it has an empty label");
    }
    if !hostname.starts_with('[') && hostname.contains(':') {
        return Err("write it without a port");
    }
    Ok(())
}

/// Whether this is a name that a client may name in a TLS handshake, or `*.` and such a name.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_exact(name: &str) -> Result<(), &'static str> {
    if name == "*" || name.contains('/') {
        return Err("TLS knows only exact names, and `*.example.org` for any one label");
    }
    check(name)?;
    let bare = name.strip_prefix("*.").unwrap_or(name);
    if bare.starts_with('[') || bare.parse::<std::net::IpAddr>().is_ok() {
        return Err("no client names an ip address in a TLS handshake");
    }
    if bare.is_empty() || bare == "." {
        return Err("it has an empty label");
    }
    if bare.len() > 253 || bare.split('.').any(|label| label.len() > 63) {
        return Err("it is longer than a name of the DNS can be");
    }
    Ok(())
}

/// The form in which names are compared: lower case, without the dot of the root.
pub(super) fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
