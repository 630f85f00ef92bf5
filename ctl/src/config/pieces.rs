//! A file in pieces: each cluster is parsed by itself, and what is not of one cluster together.
//!
//! A parsed file takes thirty times the memory of its text. Parsed piece by piece, a file with very many clusters takes that
//! for one cluster at a time.
//!
//! A piece is what stands below one header, `[clusters.NAME]` or `[[clusters.NAME.frontends]]`, or a line `NAME = ...` below
//! `[clusters]`. TOML lets the tables of a cluster stand anywhere in the file: all pieces of a name are parsed together, so that
//! nothing is accepted that would be refused in one piece. A file that says something of `clusters` in other ways is parsed whole.

use std::{borrow::Cow, iter::Peekable, ops::Range};

use toml::de::{DeTable, Error};
use toml_parser::{
    Source as Toml,
    lexer::{Lexer, Token, TokenKind},
};

const CLUSTERS: &str = "clusters";

/// Some text of the file, put together from ranges of it.
pub(super) struct Text<'a> {
    text: Cow<'a, str>,
    /// Where the ranges begin, in `text` and in the file.
    starts: Vec<(usize, usize)>,
}

impl<'a> Text<'a> {
    /// All of it.
    fn whole(file: &'a str) -> Text<'a> {
        Text { text: file.into(), starts: vec![(0, 0)] }
    }

    fn new(file: &'a str, ranges: &[Range<u32>]) -> Text<'a> {
        let range = |range: &Range<u32>| range.start as usize..range.end as usize;
        if let [only] = ranges {
            return Text { text: file[range(only)].into(), starts: vec![(0, only.start as usize)] };
        }
        let (mut text, mut starts) = (String::new(), Vec::new());
        for piece in ranges {
            starts.push((text.len(), piece.start as usize));
            text.push_str(&file[range(piece)]);
        }
        Text { text: text.into(), starts }
    }

    /// What stands in it, as far as it can be read, and what is no TOML.
    pub(super) fn parse(&self) -> (DeTable<'_>, Vec<Error>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        (table.into_inner(), errors)
    }

    /// Where in the file that stands which is `at` this byte of the text.
    pub(super) fn offset(&self, at: usize) -> usize {
        let next = self.starts.partition_point(|(start, _)| *start <= at);
        let (start, in_file) = next.checked_sub(1).map_or((0, 0), |it| self.starts[it]);
        in_file + (at - start)
    }
}

/// The pieces of a file.
pub(super) struct Pieces<'a> {
    file: &'a str,
    /// All that is not of one cluster.
    pub rest: Text<'a>,
    /// Those of clusters, by name, and in the order of the file.
    clusters: Vec<(Cow<'a, str>, Range<u32>)>,
    /// The lines `[clusters]` with lines below them.
    headers: Vec<Range<u32>>,
}

impl<'a> Pieces<'a> {
    /// Takes `file`, of less than 4 GiB, apart.
    pub(super) fn of(file: &'a str) -> Pieces<'a> {
        let pieces = Scanner::new(file).run();
        pieces.unwrap_or_else(|| Pieces::whole(file))
    }

    /// All of it in one piece.
    pub(super) fn whole(file: &'a str) -> Pieces<'a> {
        Pieces { file, rest: Text::whole(file), clusters: Vec::new(), headers: Vec::new() }
    }

    /// The texts of the clusters, one after the other.
    pub(super) fn clusters(&self) -> impl Iterator<Item = Text<'a>> {
        self.named_clusters().map(|(_, text)| text)
    }

    /// The same, each made when it is asked for, with its name.
    pub(super) fn named_clusters(&self) -> impl Iterator<Item = (&str, Text<'a>)> {
        self.clusters.chunk_by(|(one, _), (other, _)| one == other).map(|of_one| {
            let mut ranges = Vec::with_capacity(of_one.len());
            let mut last_header: Option<Range<u32>> = None;
            for (_, range) in of_one {
                // A line below `[clusters]` means nothing without it; each of them is taken once.
                let before = self.headers.partition_point(|header| header.end <= range.start);
                let header = before.checked_sub(1).map(|it| &self.headers[it]);
                let of_line = header.filter(|_| !self.file[range.start as usize..].starts_with('['));
                // They come in their order: the last that was taken is the only one that it can be.
                let header = of_line.filter(|header| last_header.as_ref() != Some(*header));
                if let Some(header) = header {
                    last_header = Some(header.clone());
                    ranges.push(header.clone());
                }
                ranges.push(range.clone());
            }
            (of_one.first().map_or("", |(name, _)| &**name), Text::new(self.file, &ranges))
        })
    }
}

/// What a header or a line is about.
#[derive(PartialEq)]
enum About<'a> {
    /// A cluster: its name.
    Cluster(Cow<'a, str>),
    /// `[clusters]`.
    Clusters,
    /// All clusters, or one whose name is none.
    Otherwise,
    Other,
}

/// Goes through the file by its tokens, and knows of each line only what it is about.
struct Scanner<'a> {
    file: &'a str,
    tokens: Peekable<Lexer<'a>>,
    /// Each with what is about one cluster.
    clusters: Vec<(Cow<'a, str>, Range<u32>)>,
    headers: Vec<Range<u32>>,
    rest: Vec<Range<u32>>,
    /// Something is said of `clusters` that is not of one cluster.
    otherwise: bool,
    /// What is being read, and where it began.
    current: (About<'a>, usize),
}

impl<'a> Scanner<'a> {
    fn new(file: &'a str) -> Scanner<'a> {
        let tokens = Toml::new(file).lex().peekable();
        let current = (About::Other, 0);
        let (clusters, headers, rest) = (Vec::new(), Vec::new(), Vec::new());
        Scanner { file, tokens, clusters, headers, rest, otherwise: false, current }
    }

    /// `None` where the file has to be taken whole.
    fn run(mut self) -> Option<Pieces<'a>> {
        let (mut in_root, mut below_clusters) = (true, false);
        while let Some(token) = self.tokens.next() {
            let at = token.span().start();
            match token.kind() {
                TokenKind::Whitespace | TokenKind::Newline | TokenKind::Comment | TokenKind::Eof => {}
                TokenKind::LeftSquareBracket => {
                    let about = self.header();
                    (in_root, below_clusters) = (false, about == About::Clusters);
                    if below_clusters {
                        let end = self.here();
                        self.headers.push(at as u32..end as u32);
                    }
                    self.begin(about, at);
                }
                _ => {
                    let key = self.key(token);
                    if below_clusters {
                        self.begin(key.map_or(About::Otherwise, About::Cluster), at);
                    } else if in_root && key.is_some_and(|key| key == CLUSTERS) {
                        self.otherwise = true;
                    }
                    self.rest_of_line();
                }
            }
        }
        self.begin(About::Other, self.file.len());
        let Scanner { file, mut clusters, headers, rest, otherwise, .. } = self;
        // Stable: the pieces of one cluster stay in their order.
        clusters.sort_by(|(one, _), (other, _)| one.cmp(other));
        let apart = !otherwise && !clusters.is_empty();
        apart.then(|| Pieces { file, rest: Text::new(file, &rest), clusters, headers })
    }

    /// What is being read ends `at` this byte, and something begins.
    fn begin(&mut self, about: About<'a>, at: usize) {
        let (before, start) = std::mem::replace(&mut self.current, (about, at));
        let range = start as u32..at as u32;
        self.otherwise |= before == About::Otherwise;
        match before {
            _ if range.is_empty() => {}
            About::Cluster(name) => match self.clusters.last_mut() {
                Some((last, before)) if *last == name && before.end == range.start => before.end = range.end,
                _ => self.clusters.push((name, range)),
            },
            About::Clusters | About::Otherwise | About::Other => match self.rest.last_mut() {
                Some(before) if before.end == range.start => before.end = range.end,
                _ => self.rest.push(range),
            },
        }
    }

    /// The offset of the next token.
    fn here(&mut self) -> usize {
        self.tokens.peek().map_or(self.file.len(), |token| token.span().start())
    }

    /// The next token that is no whitespace, in this line.
    fn next_in_line(&mut self) -> Option<Token> {
        while self.tokens.next_if(|token| token.kind() == TokenKind::Whitespace).is_some() {}
        self.tokens.next_if(|token| !matches!(token.kind(), TokenKind::Newline | TokenKind::Eof))
    }

    /// The rest of a header, whose first bracket was read, and the end of its line.
    fn header(&mut self) -> About<'a> {
        let is_list = self.tokens.next_if(|token| token.kind() == TokenKind::LeftSquareBracket).is_some();
        let about = self.path(is_list);
        self.rest_of_line();
        about.unwrap_or(About::Other)
    }

    fn path(&mut self, is_list: bool) -> Option<About<'a>> {
        let first = self.next_in_line()?;
        if self.key(first)? != CLUSTERS {
            return None;
        }
        let about = match self.next_in_line().map(|token| token.kind()) {
            Some(TokenKind::RightSquareBracket) if !is_list => Some(About::Clusters),
            Some(TokenKind::Dot) => {
                let second = self.next_in_line();
                second.and_then(|second| self.key(second)).map(About::Cluster)
            }
            _ => None,
        };
        Some(about.unwrap_or(About::Otherwise))
    }

    /// The key in a token, if it is one.
    fn key(&self, token: Token) -> Option<Cow<'a, str>> {
        let (mut key, mut wrong) = (Cow::Borrowed(""), None);
        Toml::new(self.file).get(token)?.decode_key(&mut key, &mut wrong);
        wrong.is_none().then_some(key)
    }

    /// To the end of the line, and of the lists and tables that are open there.
    fn rest_of_line(&mut self) {
        let mut open = 0_usize;
        while let Some(token) = self.tokens.next_if(|token| token.kind() != TokenKind::Eof) {
            match token.kind() {
                TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => open += 1,
                TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket => open = open.saturating_sub(1),
                TokenKind::Newline if open == 0 => return,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and texts of the clusters, and the text of the rest.
    fn pieces(file: &str) -> (Vec<String>, String) {
        let pieces = Pieces::of(file);
        let clusters = pieces.clusters().map(|it| it.text.into_owned()).collect();
        (clusters, pieces.rest.text.into_owned())
    }

    #[test]
    fn each_cluster_is_a_piece_wherever_its_tables_stand() {
        let a = "[clusters.a] # [clusters.x]\nx = [ # ]\n[1]]\n\n[[ clusters . \"a\" .frontends]]\n";
        let b = "[clusters.'b.c']\ny = \"\"\"\n[clusters.x]\n\"\"\"\n";
        let more = "[clusters.a.z]\nlast = 1";
        let file =
            format!("root = 1\n[metrics]\n{b}{a}[clusters]\n[[listeners]]\nz = {{ a = [\n] }}\n{more}");
        let rest = "root = 1\n[metrics]\n[clusters]\n[[listeners]]\nz = { a = [\n] }\n";
        assert_eq!(pieces(&file), (vec![format!("{a}{more}"), b.to_owned()], rest.to_owned()));
    }

    #[test]
    fn lines_below_the_header_of_all_clusters_are_pieces_with_that_header() {
        let file = "[clusters] # all\nb = {}\na.x = 1\n\na.y = [\n]\n[clusters.b.z]\n[[listeners]]\n";
        let a = "[clusters] # all\na.x = 1\n\na.y = [\n]\n";
        let b = "[clusters] # all\nb = {}\n[clusters.b.z]\n";
        assert_eq!(
            pieces(file),
            (vec![a.to_owned(), b.to_owned()], "[clusters] # all\n[[listeners]]\n".to_owned())
        );
    }

    #[test]
    fn what_says_more_of_clusters_is_taken_whole() {
        for file in [
            "clusters = 3\n[clusters.a]\n",
            "clusters = {}\n[clusters.a]\n",
            "clusters.b.x = 1\n[clusters.a]\n",
            "[[clusters]]\n[clusters.a]\n",
            "[clusters.a]\n[clusters]\n\"\\q\" = 1\n",
            "[clusters.\"\\q\"]\n[clusters.a]\n",
            "worker_count = 1\n",
            "",
        ] {
            assert_eq!(pieces(file), (Vec::new(), file.to_owned()));
        }
    }

    #[test]
    fn offsets_are_those_of_the_file() {
        let file = "[clusters.b]\nx = 1\n[clusters.a]\n[clusters.b.c]\ny = 2\n";
        let pieces = Pieces::of(file);
        let b = pieces.clusters().last().unwrap();
        for word in ["[clusters.b]", "x", "[clusters.b.c]", "y", "2"] {
            assert_eq!(b.offset(b.text.find(word).unwrap()), file.find(word).unwrap(), "{word}");
        }
        assert_eq!(b.offset(b.text.len()), file.len());
    }
}
