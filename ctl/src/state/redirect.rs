//! What a frontend does in the place of forwarding, and what it makes of hosts and paths.

use crate::keys::{keyed, words};

words! {
    /// What a frontend does with a request.
    #[derive(Default, Hash)]
    pub enum Redirect {
        /// It forwards it.
        #[default]
        Forward = "forward",
        /// 301.
        Permanent = "permanent",
        /// 302.
        Found = "found",
        /// 307: with the same method and body.
        TemporaryRedirect = "temporary_redirect",
        /// 308: with the same method and body, for good.
        PermanentRedirect = "permanent_redirect",
        /// 401. A state has it as [`deny`](super::Frontend::deny).
        Unauthorized = "unauthorized",
        /// It closes the connection without an answer.
        SilentClose = "silent_close",
    }
}

impl Redirect {
    /// Its word, where requests are not just forwarded.
    pub fn unless_forward(self) -> Option<&'static str> {
        (self != Redirect::Forward).then(|| self.word())
    }

    /// The status of a redirect; `None`: it is none.
    pub fn status(self) -> Option<u16> {
        match self {
            Redirect::Permanent => Some(301),
            Redirect::Found => Some(302),
            Redirect::TemporaryRedirect => Some(307),
            Redirect::PermanentRedirect => Some(308),
            Redirect::Forward | Redirect::Unauthorized | Redirect::SilentClose => None,
        }
    }
}

words! {
    /// Scheme of a redirect.
    #[derive(Default, Hash)]
    pub enum RedirectScheme {
        /// That of the request.
        #[default]
        UseSame = "use-same",
        /// `http`.
        UseHttp = "use-http",
        /// `https`.
        UseHttps = "use-https",
    }
}

keyed! {
    /// What a frontend makes of where a request leads.
    #[derive(Eq, Hash)]
    pub struct Rewrite;
    own {
        /// Scheme of a redirect.
        "redirect_scheme" => scheme: RedirectScheme = RedirectScheme::UseSame, Choice(RedirectScheme::WORDS), Yes, Routes;
        /// Host that the backend sees, or that a redirect leads to: a text in which `$HOST[0]` is the host as the client sent it, and
        /// `$HOST[n]` the n-th of its labels that `*` or a regular expression of `hostname` stands for.
        "rewrite_host" => host: Option<Box<str>> = None, Text, Yes, Routes;
        /// Path, in the same way: `$PATH[0]` is the path as the client sent it, without the query; `$PATH[1]` what follows a `path` of
        /// `PREFIX`, and `$PATH[n]` the n-th group of one of `REGEX`. `$HOST[n]` is known, too. The query stays as it is.
        "rewrite_path" => path: Option<Box<str>> = None, Text, Yes, Routes;
        /// Port that the backend sees behind the host, or that a redirect leads to.
        "rewrite_port" => port: Option<u16> = None, Integer(1, 65_535), Yes, Routes;
    }
}
