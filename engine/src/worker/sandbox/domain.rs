//! What landlock closes: the worker's thread, and those that it begins, enter a domain in which nothing is allowed that a
//! landlock ruleset can speak of, but connecting.
//!
//! | since | closed |
//! |---|---|
//! | 5.13 | opening, making, removing and executing files; devices from 6.10 |
//! | 6.7 | listening on TCP (`bind`) |
//! | 6.12 | signals to processes that are not in the domain, connecting to abstract unix sockets that are not |
//!
//! Connecting to TCP ports and to unix sockets with a path stays open: backends come and go. To those without a path it does where
//! the worker has such a backend when it starts.

use std::fmt;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetError, RulesetStatus, Scope,
};

/// How much of it this kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All.
    Whole,
    /// What an earlier version knows.
    Part,
    /// Nothing: an earlier kernel, or one without it.
    None,
}

impl fmt::Display for Extent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Extent::Whole => "whole",
            Extent::Part => "this kernel has a part of it: files are closed, the newer restrictions are not",
            Extent::None => {
                "this kernel has none (5.13, in the list `lsm=`): files are closed by seccomp only"
            }
        })
    }
}

/// Enters the domain, for this thread and those to come. Where `backends_without_files` are to be reached, abstract unix sockets stay
/// open.
///
/// # Errors
/// When the kernel knows landlock and refuses.
pub(super) fn enter(backends_without_files: bool) -> Result<Extent, RulesetError> {
    let scopes = if backends_without_files { Scope::Signal.into() } else { Scope::from_all(ABI::V6) };
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::BindTcp)?
        .scope(scopes)?
        .create()?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Extent::Whole,
        RulesetStatus::PartiallyEnforced => Extent::Part,
        RulesetStatus::NotEnforced => Extent::None,
    })
}
