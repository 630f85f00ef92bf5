//! What a frontend changes of the fields of requests and responses.

use crate::keys::{keyed, words};

/// Edits of a frontend at most.
pub const MAX_HEADER_EDITS: usize = 64;
/// The longest value of one (bytes).
pub const MAX_EDIT_VALUE: usize = 4_096;

/// Fields that say where a message ends, whom it is for, or what becomes of its connection.
const OF_FRAMING: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

words! {
    /// Which messages an edit is for.
    #[derive(Default, Hash)]
    pub enum EditPosition {
        /// Requests, before a backend gets them.
        #[default]
        Request = "request",
        /// Responses, kakehi's own too.
        Response = "response",
        /// Both.
        Both = "both",
    }
}

impl EditPosition {
    /// Whether requests are changed, and whether responses are.
    pub fn directions(self) -> (bool, bool) {
        (self != EditPosition::Response, self != EditPosition::Request)
    }
}

keyed! {
    /// A change of a field.
    #[derive(Eq, Hash)]
    pub struct HeaderEdit;
    required {
        /// Of which message: `request`, `response`, or `both`; required.
        "position" => position: EditPosition = EditPosition::Request, Choice(EditPosition::WORDS), Yes, Routes;
        /// Name of the field; required. Those that say where a message ends, whom it is for or what becomes of its connection are kakehi's.
        "key" => name: String = String::new(), Token, Yes, Routes;
        /// Its value; required. An empty one removes all lines of that name; another one takes their place. `$CLIENT_IP`, `$REQUEST_ID`,
        /// `$SCHEME`, `$SNI` and `$CLUSTER` stand for what they say.
        "value" => value: String = String::new(), AnyText, Yes, Routes;
    }
    own {
        /// The lines of that name that are there stay.
        "append" => append: bool = false, Bool, Own, Routes;
    }
}

/// Whether a field is kakehi's own: it says where a message ends, whom it is for, or what becomes of its connection.
pub(super) fn is_of_framing(name: &str) -> bool {
    OF_FRAMING.iter().any(|own| name.eq_ignore_ascii_case(own))
}

impl HeaderEdit {
    /// Why it cannot be made; `None`: it can. With the key that is wrong.
    pub fn unfit(&self) -> Option<(&'static str, &'static str)> {
        if is_of_framing(&self.name) {
            return Some((
                "key",
                "`key`: that field says where a message ends, whom it is for or what becomes of its connection, and is kakehi's",
            ));
        }
        // RFC 9110 section 5.5.
        if self.value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Some(("value", "`value`: no field has control characters in its value"));
        }
        if self.value.len() > MAX_EDIT_VALUE || self.name.len() > 256 {
            return Some(("value", "a field is changed to 4096 bytes at most, and a name has 256"));
        }
        if self.value.trim() != self.value {
            return Some(("value", "`value` begins or ends with white space, which no value has"));
        }
        (self.append && self.value.is_empty())
            .then_some(("append", "`append` without a `value` adds nothing"))
    }
}
