//! `answers`, `answer_NNN` and `redirect_template`: whole responses of kakehi's own.

use std::{path::PathBuf, sync::Arc};

use super::{
    super::{
        error::Quoted,
        read::{Section, Values},
    },
    Builder,
};
use crate::{
    keys::in_folder,
    state::{Answer, Answers, read_answer},
    template::Template,
};

/// All responses of a file together (bytes): a state with them has to fit in a message.
const MOST_PAGES: usize = 32 * 1024 * 1024;

/// Statuses that kakehi answers with.
fn is_own(status: u16) -> bool {
    matches!(status, 301 | 302 | 307 | 308 | 400..=599)
}

impl Builder<'_, '_> {
    /// The answers of a listener or a cluster.
    pub(super) fn answers(&mut self, section: &Section) -> Answers {
        let mut answers = Answers::default();
        for (name, offset, value) in section.text_map("answers") {
            let status = name.parse::<u16>().ok().filter(|status| name.len() == 3 && is_own(*status));
            let Some(status) = status else {
                let reason = format!("`answers`: kakehi makes no answer {}", Quoted(name));
                self.findings.unfit(*offset, reason);
                continue;
            };
            if let Some(answer) = self.answer(*offset, value, Some(status)) {
                answers.0.insert(status, answer);
            }
        }
        for key in section.level.keys() {
            let status = key.name.strip_prefix("answer_").and_then(|digits| digits.parse().ok());
            let (key, Some(status)) = (key.name, status) else { continue };
            let Some(path) = self.path_of(section, key) else { continue };
            let offset = section.offset_of(key);
            let Some(answer) = self.answer_in(offset, path, Some(status)) else { continue };
            if answers.0.get(&status).is_some_and(|other| other.text != answer.text) {
                let line = self.findings.source.line(section.offset_of("answers"));
                let reason = format!(
                    "`{key}` is another name of `answers.{status}` in line {line}, with another value"
                );
                self.findings.unfit(offset, reason);
            }
            answers.0.insert(status, answer);
        }
        answers
    }

    /// The response of a redirect.
    pub(super) fn redirect_template(
        &mut self,
        section: &Section,
        status: Option<u16>,
    ) -> Option<Box<Answer>> {
        let value = section.text("redirect_template")?.to_owned();
        let offset = section.offset_of("redirect_template");
        if status.is_none() {
            let text = "`redirect_template` has no effect in a frontend that does not redirect".to_owned();
            self.warn_at(section, "redirect_template", text);
        }
        let answer = self.answer(offset, &value, status)?;
        status.is_some().then(|| Box::new(answer))
    }

    /// One that a value gives, as a text or as the name of a file.
    fn answer(&mut self, offset: usize, value: &str, status: Option<u16>) -> Option<Answer> {
        match Answer::path_in(value) {
            Some(path) => self.answer_in(offset, in_folder(self.folder, path), status),
            None => self.checked_answer(offset, Answer { file: None, text: value.into() }, status),
        }
    }

    fn answer_in(&mut self, offset: usize, path: PathBuf, status: Option<u16>) -> Option<Answer> {
        let text = match self.pages.get(&path) {
            Some(text) => Arc::clone(text),
            None => match read_answer(&path) {
                Ok(text) => text,
                Err(error) => {
                    // A page that is missing is no reason to serve nothing.
                    let path = path.display();
                    let text = format!("{path} cannot be read, and kakehi's own answer is given: {error}");
                    self.findings.warn(offset, text);
                    return None;
                }
            },
        };
        self.pages.insert(path.clone(), Arc::clone(&text));
        self.checked_answer(offset, Answer { file: Some(path), text }, status)
    }

    fn checked_answer(&mut self, offset: usize, answer: Answer, status: Option<u16>) -> Option<Answer> {
        // A page that several name is told several times.
        self.page_bytes += answer.text.len();
        if self.page_bytes > MOST_PAGES {
            let reason = "own answers have more than 33554432 bytes in all, each counted where it is named";
            self.findings.unfit(offset, reason);
            return None;
        }
        let file = answer.file.as_ref().map_or_else(String::new, |file| format!("{}, ", file.display()));
        match Template::parse(&answer.text) {
            Err(error) => {
                self.findings.unfit(offset, format!("{file}{error}"));
                None
            }
            Ok((template, _)) if status.is_some_and(|status| status != template.status()) => {
                let (found, status) = (template.status(), status.unwrap_or_default());
                self.findings.unfit(offset, format!("{file}line 1: the status is {found}, not {status}"));
                None
            }
            Ok((_, left_out)) => {
                for name in left_out {
                    let text = format!(
                        "{file}the field `{name}` is left out: what becomes of a connection is not for a template to say"
                    );
                    self.findings.warn(offset, text);
                }
                Some(answer)
            }
        }
    }
}
