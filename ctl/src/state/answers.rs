//! Responses of kakehi's own as operators write them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use super::State;
use crate::{
    config::open,
    template::{MAX_TEMPLATE, Template},
};

/// What a value begins with that names a file.
const FILE: &str = "file://";

/// By the status that they take the place of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answers(pub BTreeMap<u16, Answer>);

/// A whole response.
#[derive(Debug, Clone, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The file that it stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// What stands there: a template ([`crate::template::Template`]).
    #[serde(deserialize_with = "once")]
    pub text: Arc<str>,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Answer) -> bool {
        self.file == other.file && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

/// A text; one that a thread has read already, and that is still there, is the same.
fn once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    thread_local! {
        static KNOWN: RefCell<HashMap<[u8; 32], Weak<str>>> = RefCell::default();
    }
    let text = String::deserialize(deserializer)?;
    let digest = Sha256::digest(text.as_bytes()).into();
    KNOWN.with_borrow_mut(|known| {
        if let Some(same) = known.get(&digest).and_then(Weak::upgrade) {
            return Ok(same);
        }
        // Those that are gone, now and then.
        if known.len().is_power_of_two() {
            known.retain(|_, text| text.strong_count() > 0);
        }
        let text: Arc<str> = text.into();
        known.insert(digest, Arc::downgrade(&text));
        Ok(text)
    })
}

impl Answers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Answer {
    /// The path in a value that names a file.
    pub(crate) fn path_in(value: &str) -> Option<&Path> {
        value.strip_prefix(FILE).map(Path::new)
    }

    /// As it is written in a file.
    pub(crate) fn to_value(&self) -> String {
        match &self.file {
            Some(file) => format!("{FILE}{}", file.display()),
            None => self.text.to_string(),
        }
    }
}

/// What stands in files with own answers.
pub type Pages = HashMap<PathBuf, Arc<str>>;

impl State {
    /// Own answers, one after the other.
    fn own_answers_mut(&mut self) -> impl Iterator<Item = &mut Answer> {
        let of_listeners = self.listeners.values_mut().flat_map(|it| it.answers.0.values_mut());
        let of_clusters = self.clusters.values_mut().flat_map(|cluster| {
            let redirects = cluster.frontends.iter_mut().filter_map(|it| it.redirect_template.as_deref_mut());
            cluster.answers.0.values_mut().chain(redirects)
        });
        of_listeners.chain(of_clusters)
    }

    /// What it has of files with own answers.
    pub fn pages(&self) -> Pages {
        let of_listeners = self.listeners.values().flat_map(|it| it.answers.0.values());
        let of_clusters = self.clusters.values().flat_map(|cluster| {
            let redirects = cluster.frontends.iter().filter_map(|it| it.redirect_template.as_deref());
            cluster.answers.0.values().chain(redirects)
        });
        let of_file = |answer: &Answer| Some((answer.file.clone()?, Arc::clone(&answer.text)));
        of_listeners.chain(of_clusters).filter_map(of_file).collect()
    }

    /// Takes the texts of own answers that stand in files from `pages`, or else from the files. One that is none any more stays as it was.
    pub(crate) fn take_pages(&mut self, pages: &Pages) {
        for answer in self.own_answers_mut() {
            let Some(file) = &answer.file else { continue };
            let text = pages.get(file).map_or_else(|| read_answer(file).ok(), |text| Some(Arc::clone(text)));
            let status = |text: &Arc<str>| Template::parse(text).ok().map(|(template, _)| template.status());
            if let Some(text) = text.filter(|text| **text != *answer.text)
                && status(&text) == status(&answer.text)
            {
                answer.text = text;
            }
        }
    }

    /// The same with the texts of own answers in the place of their files.
    #[must_use]
    pub fn without_page_files(mut self) -> State {
        self.own_answers_mut().for_each(|answer| answer.file = None);
        self
    }
}

/// The text of a file with a response. It waits for a disk.
///
/// # Errors
/// When it cannot be read, is no regular file, no UTF-8, or longer than [`MAX_TEMPLATE`].
pub(crate) fn read_answer(path: &Path) -> io::Result<Arc<str>> {
    let mut text = String::new();
    open(path)?.take(MAX_TEMPLATE as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_TEMPLATE {
        return Err(io::Error::other("it has more than 1048576 bytes"));
    }
    Ok(text.into())
}
