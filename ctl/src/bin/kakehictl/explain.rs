//! `kakehictl explain`: what would become of a request.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use clap::Args;
use kakehi_ctl::{
    order::{Answered, Backends, ClusterRule, ExplainedLimit, Explanation, Inquiry, Request, Response},
    state::{PathRule, is_token},
};
use serde_json::{Value, json};

use crate::{
    client::Failure,
    print::{self, printable},
    routing::{Ask, Shown},
};

/// A request, in the words of the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExplainArguments {
    /// What is asked for: `http://HOST[:PORT]/PATH` or `https://...`
    url: String,
    /// Method of the request
    #[arg(short, long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// A field of the request, as `Name: value`; may be repeated. `Host` takes the place of the one that the URL says
    #[arg(short = 'H', long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// Address of the client
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    from: IpAddr,
    /// Listener that it comes in at; without it: the one that has the scheme and the port of the URL
    #[arg(long, value_name = "ADDRESS")]
    listener: Option<SocketAddr>,
}

/// The parts of a URL, as they stand in it: what a client would send is not tidied up.
#[derive(Debug, PartialEq, Eq)]
struct Url<'a> {
    tls: bool,
    /// Host and port.
    authority: &'a str,
    host: &'a str,
    port: u16,
    /// Path and query.
    target: String,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Result<Url<'a>, String> {
        let wrong = |what: &str| format!("`{text}` is no URL of `http` or `https`: {what}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let (tls, usual) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return Err(wrong("its scheme is another one")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        if authority.is_empty() {
            return Err(wrong("it names no host"));
        }
        if authority.contains('@') {
            return Err(wrong("clients send no user in it: use `-H 'Authorization: ...'`"));
        }
        // The brackets of an IPv6 address have colons in them.
        let after_host = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[after_host..].rfind(':') {
            None => (authority, usual),
            Some(colon) => {
                let (host, port) = authority.split_at(after_host + colon);
                let port = if port == ":" { Ok(usual) } else { port[1..].parse() };
                (host, port.map_err(|_| wrong("its port is none"))?)
            }
        };
        // A fragment stays with the client.
        let sent = after.split('#').next().unwrap_or_default();
        let slash = if sent.starts_with('/') { "" } else { "/" };
        Ok(Url { tls, authority, host, port, target: format!("{slash}{sent}") })
    }
}

impl ExplainArguments {
    pub(crate) fn run(&self, ask: Ask<'_>) -> Result<Shown, Failure> {
        let url = Url::parse(&self.url).map_err(Failure::Usage)?;
        let inquiry = Inquiry {
            head: self.head(&url).map_err(Failure::Usage)?,
            from: self.from,
            // RFC 6066 section 3: no addresses.
            server_name: Some(url.host)
                .filter(|host| url.tls && !host.starts_with('[') && host.parse::<IpAddr>().is_err())
                .map(str::to_owned),
        };
        let request = Request::Explain { listener: self.listener, tls: url.tls, port: url.port, inquiry };
        let explanation = match ask(request)? {
            Response::Explained(explanation) => explanation,
            _ => return Err(Failure::Refused("it does not explain requests".to_owned())),
        };
        let backends = match &explanation.found.cluster {
            None => Backends::default(),
            Some(cluster) => match ask(Request::Backends { cluster: Some(cluster.clone()) })? {
                Response::Backends(backends) => backends,
                _ => return Err(Failure::Refused("it does not tell its backends".to_owned())),
            },
        };
        Ok(Shown::Made { json: as_json(&explanation, &backends), text: self.text(&explanation, &backends) })
    }

    /// The head of the request, as a client sends it.
    fn head(&self, url: &Url<'_>) -> Result<String, String> {
        let has_no_line_end = |text: &str| !text.contains(['\r', '\n']);
        if !is_token(&self.method) || !has_no_line_end(&url.target) || url.target.contains(' ') {
            return Err("neither a method nor a URL has spaces or line ends in it".to_owned());
        }
        let mut fields = String::new();
        let mut names_host = false;
        for field in &self.headers {
            let (name, value) = field
                .split_once(':')
                .filter(|(name, _)| is_token(name))
                .ok_or_else(|| format!("`{field}` is no field: write it as `Name: value`"))?;
            if !has_no_line_end(value) {
                return Err(format!("the value of `{name}` has a line end in it"));
            }
            names_host |= name.eq_ignore_ascii_case("host");
            // Writing to a string cannot fail.
            let _ = write!(fields, "{name}: {}\r\n", value.trim());
        }
        let host = if names_host { String::new() } else { format!("Host: {}\r\n", url.authority) };
        Ok(format!("{} {} HTTP/1.1\r\n{host}{fields}\r\n", self.method, url.target))
    }

    fn text(&self, explanation: &Explanation, backends: &Backends) -> String {
        let found = &explanation.found;
        let mut text = String::new();
        let mut line = |what: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what:<10} {}", printable(value));
        };
        line("request", &format!("{} {} from {}", self.method, self.url, self.from));
        line("listener", &explanation.listener.to_string());
        for tried in &explanation.tried {
            line("tried", &format!("{}: failed in `{}`", describe(&tried.rule), tried.failed));
        }
        if explanation.more_tried > 0 {
            line("tried", &format!("and {} more", explanation.more_tried));
        }
        line("rule", &explanation.rule.as_ref().map_or_else(|| "none".to_owned(), describe));
        for limit in &found.limits {
            line("limit", &describe_limit(limit));
        }
        for (of, lines) in [("request", &found.edits.request), ("response", &found.edits.response)] {
            lines.iter().for_each(|edit| line("edit", &format!("{of}: {edit}")));
        }
        line("answer", &describe_answer(&found.answer));
        for share in &found.split {
            let maintained = if share.maintained { ", in maintenance" } else { "" };
            line("split", &format!("cluster {}, weight {}{maintained}", share.cluster, share.weight));
        }
        if let Some(cluster) = &found.cluster {
            line("cluster", cluster);
        }
        for head in found.answer.head.iter().flat_map(|head| head.lines().filter(|line| !line.is_empty())) {
            line("head", head);
        }
        if found.cluster.is_some() {
            text.push_str(&print::human(&Response::Backends(backends.clone())));
        }
        text
    }
}

fn as_json(explanation: &Explanation, backends: &Backends) -> Value {
    let found = &explanation.found;
    json!({
        "listener": explanation.listener,
        "tried": explanation.tried,
        "more_tried": explanation.more_tried,
        "rule": explanation.rule,
        "answer": found.answer,
        "edits": found.edits,
        "limits": found.limits,
        "split": found.split,
        "cluster": found.cluster,
        "backends": backends.backends,
    })
}

fn describe(of: &ClusterRule) -> String {
    let ClusterRule { cluster, rule } = of;
    let path = match &rule.path {
        PathRule::Prefix(path) if path.is_empty() => "any path".to_owned(),
        PathRule::Prefix(path) => format!("PREFIX {path}"),
        PathRule::Equals(path) => format!("EQUALS {path}"),
        PathRule::Regex(path) => format!("REGEX {path}"),
    };
    let method = rule.method.as_ref().map_or_else(String::new, |method| format!(", {method}"));
    let asks = rule.asks();
    let asks = if asks.is_empty() { asks } else { format!(", {asks}") };
    format!("{}, {path}{method}{asks} (cluster {cluster})", rule.hostname)
}

fn describe_limit(limit: &ExplainedLimit) -> String {
    let ExplainedLimit { place, limit, used, most, refuses } = limit;
    let fill = most.map_or_else(String::new, |most| format!(", {used} of {most} used"));
    let refuses = if *refuses { ": refuses it" } else { "" };
    format!("{place}: {limit}{fill}{refuses}")
}

fn describe_answer(answer: &Answered) -> String {
    if answer.forwarded {
        return "a backend's".to_owned();
    }
    if answer.passed_on {
        return "none: the connection is passed on as it is".to_owned();
    }
    let reason = answer.reason.as_deref().unwrap_or("no reason");
    let location = answer.location.as_ref().map_or_else(String::new, |it| format!(", to {it}"));
    match answer.status {
        Some(status) => format!("{status} {reason}{location}"),
        None => format!("none: the connection is closed ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(bool, &str, &str, u16, String)> {
        let Url { tls, authority, host, port, target } = Url::parse(text).ok()?;
        Some((tls, authority, host, port, target))
    }

    #[test]
    fn a_url_is_taken_as_it_stands() {
        for (text, expected) in [
            ("http://a", (false, "a", "a", 80, "/")),
            ("HTTPS://a:8443/x/../%2e?y#z", (true, "a:8443", "a", 8443, "/x/../%2e?y")),
            ("http://a?x=/y", (false, "a", "a", 80, "/?x=/y")),
            ("http://[::1]/", (false, "[::1]", "[::1]", 80, "/")),
            ("https://[::1]:81//", (true, "[::1]:81", "[::1]", 81, "//")),
            ("http://a:/", (false, "a:", "a", 80, "/")),
        ] {
            let (tls, authority, host, port, target) = expected;
            assert_eq!(parts(text), Some((tls, authority, host, port, target.to_owned())), "{text}");
        }
        for text in ["a/b", "ftp://a/", "http:///x", "http://a:b/", "http://a:70000/", "http://u@a/"] {
            assert_eq!(parts(text), None, "{text}");
        }
    }
}
