//! What would become of a request: asked by operators, answered by what serves.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::change::FrontendRule;

/// Rules, limits and lines that are told of at most.
pub const MOST_EXPLAINED: usize = 64;
/// Of a head so much is told at most (bytes).
const MOST_HEAD: usize = 65_536;
/// Of everything else.
const MOST_TEXT: usize = 1_024;

/// A request as it would come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    /// The head, as the client sends it.
    pub head: String,
    /// Whose connection it is.
    pub from: IpAddr,
    /// The name that the client asks for in its TLS handshake; `None`: none, or it speaks no TLS.
    pub server_name: Option<String>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The listener that it comes in at.
    pub listener: SocketAddr,
    /// Rules that were tried and did not take it, in their order; where none takes it, those that come next to it first.
    pub tried: Vec<TriedRule>,
    /// Rules that were tried besides.
    pub more_tried: usize,
    /// The rule that takes it.
    pub rule: Option<ClusterRule>,
    /// All else.
    #[serde(flatten)]
    pub found: Found,
}

/// A rule, and the cluster that it stands in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterRule {
    /// The cluster.
    pub cluster: String,
    /// The rule.
    #[serde(flatten)]
    pub rule: FrontendRule,
}

/// A rule that did not take the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TriedRule {
    /// The rule.
    #[serde(flatten)]
    pub rule: ClusterRule,
    /// The first condition that failed, by the key of the file that says it.
    pub failed: String,
}

/// What a worker says of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// What is answered, or done.
    pub answer: Answered,
    /// The cluster whose rule it is, if a rule takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_of: Option<String>,
    /// What is changed of fields.
    pub edits: ExplainedEdits,
    /// Limits that it was held against, in their order.
    pub limits: Vec<ExplainedLimit>,
    /// The cluster that it goes to.
    pub cluster: Option<String>,
    /// The clusters among which such requests are divided, if they are.
    pub split: Vec<ExplainedShare>,
}

/// What is answered, or done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// It goes to a backend.
    pub forwarded: bool,
    /// Its connection is passed on as it is, and nothing of the request is read.
    pub passed_on: bool,
    /// Status of kakehi's own answer; `None`: a backend's, or there is none.
    pub status: Option<u16>,
    /// The code of the answer's reason.
    pub reason: Option<String>,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// The head as the backend gets it; its ids are made up.
    pub head: Option<String>,
}

/// What is changed of fields, line by line: `-NAME` for lines that go, `+NAME: VALUE` for one that comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedEdits {
    /// Of the request.
    pub request: Vec<String>,
    /// Of the response.
    pub response: Vec<String>,
}

/// A limit that it was held against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedLimit {
    /// Where it stands: `listener`, `frontend` or `cluster`.
    pub place: String,
    /// What it is about: a key of the file, with what a rate limit counts by.
    pub limit: String,
    /// How much is used up at present.
    pub used: u64,
    /// Of so much; `None`: it is no number.
    pub most: Option<u64>,
    /// It refuses the request.
    pub refuses: bool,
}

/// A cluster of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedShare {
    /// Its name.
    pub cluster: String,
    /// Its weight.
    pub weight: u64,
    /// It is in maintenance: requests that fall to it are answered with 503.
    #[serde(default)]
    pub maintained: bool,
}

impl Found {
    /// The same with lists and texts no longer than they may be: who says it may be in the hands of a stranger.
    #[must_use]
    pub fn bounded(mut self) -> Found {
        let cut_to = |most: usize, text: &mut String| {
            text.truncate(text.floor_char_boundary(most));
            // Nothing that a terminal would obey.
            if text.contains(|it: char| it.is_control() && !matches!(it, '\r' | '\n' | '\t')) {
                *text = text.replace(|it: char| it.is_control() && !matches!(it, '\r' | '\n' | '\t'), "?");
            }
        };
        let cut = |text: &mut String| cut_to(MOST_TEXT, text);
        let Answered { reason, location, head, .. } = &mut self.answer;
        [location, head].into_iter().flatten().for_each(|text| cut_to(MOST_HEAD, text));
        [reason, &mut self.rule_of, &mut self.cluster].into_iter().flatten().for_each(cut);
        for lines in [&mut self.edits.request, &mut self.edits.response] {
            lines.truncate(MOST_EXPLAINED);
            lines.iter_mut().for_each(cut);
        }
        self.limits.truncate(MOST_EXPLAINED);
        self.limits.iter_mut().flat_map(|it| [&mut it.place, &mut it.limit]).for_each(cut);
        self.split.truncate(MOST_EXPLAINED);
        self.split.iter_mut().for_each(|it| cut(&mut it.cluster));
        self
    }
}
