//! Changes that a frontend makes to the fields of messages, after everything else was written.
//!
//! Relies on heads that were written here: lines that end in CRLF, without folds, and an empty one behind them. Promises: of the fields
//! that frame a message none is touched, as none of them can be named.

use std::rc::Rc;

use kakehi_ctl::state::HeaderEdit;

/// What is changed of a message.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Edits {
    /// Names of the lines that go.
    removed: Rc<[Box<str>]>,
    /// Lines that come, each with its end.
    added: Vec<u8>,
}

impl Edits {
    /// Each change as a line: `-NAME` for lines that go, `+NAME: VALUE` for one that comes.
    pub(super) fn lines(&self) -> Vec<String> {
        let removed = self.removed.iter().map(|name| format!("-{name}"));
        let added = self.added.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        removed
            .chain(added.map(|line| format!("+{}", String::from_utf8_lossy(line.trim_ascii_end()))))
            .collect()
    }

    /// Changes the head at the beginning of `message`.
    pub(crate) fn apply(&self, message: &mut Vec<u8>) {
        let line_end = |from: usize, message: &[u8]| {
            memchr::memchr(b'\n', message.get(from..).unwrap_or_default()).map(|length| from + length + 1)
        };
        // Behind the first line.
        let Some(mut at) = line_end(0, message) else { return };
        let mut kept = at;
        while let Some(next) = line_end(at, message) {
            let line = &message[at..next];
            if line == b"\r\n" {
                break;
            }
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if !self.removed.iter().any(|removed| removed.as_bytes().eq_ignore_ascii_case(name)) {
                message.copy_within(at..next, kept);
                kept += next - at;
            }
            at = next;
        }
        message.splice(kept..at, self.added.iter().copied());
    }
}

/// What a value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Variable {
    ClientIp,
    RequestId,
    Scheme,
    Sni,
    Cluster,
}

const VARIABLES: [(&str, Variable); 5] = [
    ("$CLIENT_IP", Variable::ClientIp),
    ("$REQUEST_ID", Variable::RequestId),
    ("$SCHEME", Variable::Scheme),
    ("$SNI", Variable::Sni),
    ("$CLUSTER", Variable::Cluster),
];

#[derive(Debug, PartialEq, Eq, Hash)]
enum Part {
    Text(Box<str>),
    Variable(Variable),
}

/// What is known of a request when its edits are made.
pub(crate) struct Known<'a> {
    pub(crate) client_ip: &'a str,
    pub(crate) request_id: &'a [u8],
    pub(crate) scheme: &'static str,
    pub(crate) sni: &'a str,
    pub(crate) cluster: &'a str,
}

/// What is changed of the messages of one direction, compiled.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Direction {
    Nothing,
    /// Of every message the same.
    Same(Rc<Edits>),
    Made {
        removed: Rc<[Box<str>]>,
        added: Vec<(Box<str>, Vec<Part>)>,
    },
}

/// What a frontend changes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct EditRules {
    request: Direction,
    response: Direction,
}

impl EditRules {
    /// Compiles edits; `None` if there are none.
    pub(crate) fn compile(edits: &[HeaderEdit]) -> Option<EditRules> {
        let of = |chosen: fn((bool, bool)) -> bool| {
            Direction::compile(edits.iter().filter(|edit| chosen(edit.position.directions())))
        };
        (!edits.is_empty()).then(|| EditRules { request: of(|it| it.0), response: of(|it| it.1) })
    }

    /// Whether something has to be known of a request.
    pub(crate) fn asks(&self) -> bool {
        [&self.request, &self.response].iter().any(|it| matches!(it, Direction::Made { .. }))
    }

    /// What is changed of a request, and of its response.
    pub(crate) fn make(&self, known: &Known<'_>) -> (Option<Rc<Edits>>, Option<Rc<Edits>>) {
        (self.request.make(known), self.response.make(known))
    }
}

impl Direction {
    fn compile<'e>(edits: impl Iterator<Item = &'e HeaderEdit>) -> Direction {
        let (mut removed, mut added) = (Vec::<Box<str>>::new(), Vec::new());
        for HeaderEdit { name, value, append, .. } in edits {
            let is_known = removed.iter().any(|it| it.eq_ignore_ascii_case(name));
            if !append && !is_known {
                removed.push(name.as_str().into());
            }
            if !value.is_empty() {
                added.push((Box::from(name.as_str()), parts(value)));
            }
        }
        let removed: Rc<[Box<str>]> = removed.into();
        let asks = added.iter().any(|(_, parts)| parts.iter().any(|it| matches!(it, Part::Variable(_))));
        if asks {
            return Direction::Made { removed, added };
        }
        if removed.is_empty() && added.is_empty() {
            return Direction::Nothing;
        }
        let nothing = Known { client_ip: "", request_id: b"", scheme: "", sni: "", cluster: "" };
        let added = lines(&added, &nothing);
        Direction::Same(Rc::new(Edits { removed, added }))
    }

    fn make(&self, known: &Known<'_>) -> Option<Rc<Edits>> {
        match self {
            Direction::Nothing => None,
            Direction::Same(edits) => Some(Rc::clone(edits)),
            Direction::Made { removed, added } => {
                Some(Rc::new(Edits { removed: Rc::clone(removed), added: lines(added, known) }))
            }
        }
    }
}

/// Lines of fields, each with its end.
fn lines(fields: &[(Box<str>, Vec<Part>)], known: &Known<'_>) -> Vec<u8> {
    let mut lines = Vec::with_capacity(64 * fields.len());
    for (name, parts) in fields {
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b": ");
        for part in parts {
            let text = match part {
                Part::Text(text) => text.as_bytes(),
                Part::Variable(Variable::ClientIp) => known.client_ip.as_bytes(),
                Part::Variable(Variable::RequestId) => known.request_id,
                Part::Variable(Variable::Scheme) => known.scheme.as_bytes(),
                Part::Variable(Variable::Sni) => known.sni.as_bytes(),
                Part::Variable(Variable::Cluster) => known.cluster.as_bytes(),
            };
            // The name of a cluster is any text.
            lines.extend(text.iter().filter(|byte| !byte.is_ascii_control() || **byte == b'\t'));
        }
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

fn parts(value: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut own, mut rest) = (String::new(), value);
    while let Some(next) = rest.chars().next() {
        let is_of_name = |after: &str| after.starts_with(|it: char| it.is_ascii_uppercase() || it == '_');
        let found = VARIABLES.iter().find_map(|(name, variable)| {
            rest.strip_prefix(name).filter(|after| !is_of_name(after)).map(|after| (*variable, after))
        });
        match found {
            Some((variable, after)) => {
                if !own.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut own).into()));
                }
                parts.push(Part::Variable(variable));
                rest = after;
            }
            None => {
                own.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    if !own.is_empty() {
        parts.push(Part::Text(own.into()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state::EditPosition::{self, Both, Request, Response};

    use super::*;

    fn edit(position: EditPosition, name: &str, value: &str, append: bool) -> HeaderEdit {
        HeaderEdit { position, name: name.to_owned(), value: value.to_owned(), append }
    }

    fn known() -> Known<'static> {
        Known { client_ip: "::1", request_id: b"ID", scheme: "https", sni: "a.test", cluster: "we\r\nb" }
    }

    fn applied(edits: &[HeaderEdit], message: &str) -> [String; 2] {
        let rules = EditRules::compile(edits).unwrap();
        let (request, response) = rules.make(&known());
        [request, response].map(|edits| {
            let mut message = message.as_bytes().to_vec();
            edits.iter().for_each(|edits| edits.apply(&mut message));
            String::from_utf8(message).unwrap()
        })
    }

    #[test]
    fn lines_go_first_and_come_in_their_order() {
        let message = "GET / HTTP/1.1\r\nA: 1\r\nHost: x\r\na: 2\r\nAB: 3\r\n\r\nbody\r\n\r\n";
        let edits = [
            edit(Request, "new", "n", false),
            edit(Request, "A", "one", false),
            edit(Request, "a", "", false),
            edit(Request, "A", "two", false),
            edit(Response, "AB", "more", true),
        ];
        assert_eq!(
            applied(&edits, message),
            [
                "GET / HTTP/1.1\r\nHost: x\r\nAB: 3\r\nnew: n\r\nA: one\r\nA: two\r\n\r\nbody\r\n\r\n",
                "GET / HTTP/1.1\r\nA: 1\r\nHost: x\r\na: 2\r\nAB: 3\r\nAB: more\r\n\r\nbody\r\n\r\n",
            ]
        );
        // The first and the last line, and all of them.
        let edits = [edit(Both, "A", "", false), edit(Both, "AB", "", false), edit(Both, "X", "", false)];
        assert_eq!(
            applied(&edits, "S\r\nA: 1\r\nAB: 2\r\n\r\n"),
            ["S\r\n\r\n".to_owned(), "S\r\n\r\n".to_owned()]
        );
        assert_eq!(
            applied(&[edit(Both, "A", "1", true)], "S\r\n\r\nA: 2\r\n")[0],
            "S\r\nA: 1\r\n\r\nA: 2\r\n"
        );
        assert_eq!(EditRules::compile(&[]), None);
    }

    #[test]
    fn variables_stand_for_what_they_say_and_bring_no_line() {
        let value = "$CLIENT_IP,$REQUEST_ID,$SCHEME,$SNI,$CLUSTER,$CLUSTERS,$$5,$sni";
        let edits = [edit(Both, "X", value, false)];
        assert!(EditRules::compile(&edits).unwrap().asks());
        assert_eq!(
            applied(&edits, "S\r\n\r\n")[1],
            "S\r\nX: ::1,ID,https,a.test,web,$CLUSTERS,$$5,$sni\r\n\r\n"
        );
        assert!(!EditRules::compile(&[edit(Both, "X", "y", false)]).unwrap().asks());
    }

    #[test]
    fn what_is_no_head_stays_as_it_is() {
        let rules = EditRules::compile(&[edit(Both, "A", "", false)]).unwrap();
        let (edits, _) = rules.make(&known());
        for text in ["", "no line", "one\r\n", "one\r\nB: 2", "one\r\n\r\n"] {
            let mut message = text.as_bytes().to_vec();
            edits.as_ref().unwrap().apply(&mut message);
            assert_eq!(message, text.as_bytes());
        }
    }
}
