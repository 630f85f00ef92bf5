//! Why a rule does not take a request, for operators: each is compiled by itself.

use kakehi_ctl::{order::Inquiry, state};

use super::compile::{CompileError, rule};
use crate::{
    exchange::{ListenerConfig, try_each},
    route::{Failed, RouteError},
};

/// A rule, and how it fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontendTrial {
    /// Its place among the frontends that were given.
    pub place: usize,
    /// The first condition that failed, by the key that says it; `None`: it takes the request.
    pub failed: Option<String>,
}

/// Tries the rules of `frontends`, all of `listener`, in the order in which they are looked at; none, if the request is refused before any
/// is.
///
/// # Errors
/// See [`RouteError`].
pub fn try_frontends<'f>(
    listener: &state::Listener,
    frontends: impl IntoIterator<Item = &'f state::Frontend>,
    inquiry: &Inquiry,
) -> Result<Vec<FrontendTrial>, RouteError> {
    let config = match ListenerConfig::without_routes(listener) {
        Ok(config) => config,
        Err(CompileError::Route { error, .. } | CompileError::Routes { error, .. }) => return Err(error),
        Err(_) => return Ok(Vec::new()),
    };
    let rules: Vec<_> = frontends.into_iter().map(|frontend| rule(frontend, 0)).collect();
    let trials = try_each(&config, &rules, inquiry)?.unwrap_or_default();
    let told = trials.into_iter().map(|trial| FrontendTrial {
        place: trial.place,
        failed: trial.failed.map(|failed| match failed {
            Failed::Host => "hostname".to_owned(),
            Failed::Path => "path".to_owned(),
            Failed::Method => "method".to_owned(),
            Failed::Sources => "sources".to_owned(),
            Failed::Predicate(key, name) => format!("{key} {name}"),
        }),
    });
    Ok(told.collect())
}
