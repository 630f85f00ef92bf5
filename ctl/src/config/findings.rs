//! Collects what is wrong with a file, and what is to be said of it, while it is read.
//!
//! Promises: what is kept is bounded, whatever is in the file: the first [`MOST_ERRORS`] errors in its order, with the number of the
//! others, and one warning for all places where the same is to be said.

use std::collections::{BTreeMap, HashMap};

use super::{
    error::{ConfigError, Place, Warning},
    report::{ConfigErrors, Shown},
};

/// Errors of a file that are told.
const MOST_ERRORS: usize = 50;

/// The text of a file, to turn offsets into places.
pub(super) struct Source<'a> {
    text: &'a str,
    file: &'a str,
    /// Offset of each line's first byte. A file has less than 4 GiB.
    lines: Vec<u32>,
}

impl<'a> Source<'a> {
    /// `text`, which stands in `file`.
    pub(super) fn new(text: &'a str, file: &'a str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = ends.map(|(at, _)| u32::try_from(at + 1).unwrap_or(u32::MAX));
        Source { text, file, lines: std::iter::once(0).chain(starts).collect() }
    }

    /// The line of the byte at `offset`, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start as usize <= offset).max(1)
    }

    /// The place of the byte at `offset`.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.line(offset);
        let before = self.text.as_bytes().get(self.start(line)..offset).unwrap_or_default();
        let column = String::from_utf8_lossy(before).chars().count() + 1;
        Place { file: self.file.to_owned(), line, column }
    }

    fn start(&self, line: usize) -> usize {
        self.lines[line - 1] as usize
    }

    /// An error with the line in which it stands.
    fn shown(&self, offset: usize, error: ConfigError) -> Shown {
        let line = self.line(offset);
        let start = self.start(line);
        let text = self.text.get(start..).unwrap_or_default();
        let text = text.split(['\n', '\r']).next().unwrap_or_default();
        Shown::new(error, line, text, offset - start)
    }
}

/// The first errors and all warnings, in the order of the file.
pub(super) struct Findings<'a> {
    /// Where they are.
    pub source: &'a Source<'a>,
    /// By offset, and in the order in which they were found.
    errors: BTreeMap<(usize, usize), ConfigError>,
    /// How many errors there are, with those that are not kept.
    count: usize,
    /// First place of each, and how many there are.
    warnings: HashMap<String, (usize, usize)>,
}

impl<'a> Findings<'a> {
    /// Nothing yet.
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        Findings { source, errors: BTreeMap::new(), count: 0, warnings: HashMap::new() }
    }

    /// Something is wrong at `offset`; `error` says what, for that place.
    pub(super) fn error(&mut self, offset: usize, error: impl FnOnce(Place) -> ConfigError) {
        self.count += 1;
        let place = (offset, self.count);
        if self.errors.len() >= MOST_ERRORS {
            if self.errors.last_key_value().is_some_and(|(last, _)| *last < place) {
                return;
            }
            self.errors.pop_last();
        }
        self.errors.insert(place, error(self.source.place(offset)));
    }

    /// Keys mean nothing together, or nothing where they stand.
    pub(super) fn unfit(&mut self, offset: usize, reason: impl Into<String>) {
        self.error(offset, |place| ConfigError::Unfit { place, reason: reason.into() });
    }

    /// Something is not as it looks at `offset`.
    pub(super) fn warn(&mut self, offset: usize, text: impl Into<String>) {
        let (first, count) = self.warnings.entry(text.into()).or_insert((offset, 0));
        *first = offset.min(*first);
        *count += 1;
    }

    /// The warnings in the order of the file.
    ///
    /// # Errors
    /// All errors, if there are any.
    pub(super) fn finish(self) -> Result<Vec<Warning>, ConfigErrors> {
        if self.count > 0 {
            let more = self.count - self.errors.len();
            let shown = self.errors.into_iter().map(|((offset, _), error)| self.source.shown(offset, error));
            return Err(ConfigErrors::new(shown.collect(), more));
        }
        let mut warnings: Vec<_> = self.warnings.into_iter().collect();
        warnings.sort_by(|(text, (offset, _)), (other, (place, _))| (offset, text).cmp(&(place, other)));
        let warning = |(text, (offset, count)): (String, (usize, usize))| Warning {
            place: self.source.place(offset),
            text,
            repeated: count - 1,
        };
        Ok(warnings.into_iter().map(warning).collect())
    }
}
