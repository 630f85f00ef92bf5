//! What is to be served: what the workers serve that another supervisor left, or what was saved, or what the file says. Much may
//! have to be read for that; it is done on a thread of its own.

use std::collections::BTreeMap;

use kakehi_ctl::{
    config::Places,
    edit,
    order::KeyPair,
    state::{Fingerprint, KnownName, State, WantedCertificate},
};

use super::{
    error::Error,
    takeover::{Left, recorded_state},
};
use crate::{
    certificates::{Depth, Keeper},
    control::save,
    estate::names_record,
};

/// What is to be served, and with what.
pub(super) struct Recalled {
    pub(super) state: State,
    pub(super) keeper: Keeper,
    /// What the file says, where another state goes on. There may be much of it.
    pub(super) in_file: Option<State>,
    /// Certificates that the file names and that were not read.
    pub(super) to_be_read: Vec<WantedCertificate>,
    /// It is what the supervisor before wrote down.
    pub(super) recorded: bool,
    /// What that one knew of names of backends.
    pub(super) names: Vec<KnownName>,
}

/// Finds out what is to be served where the file says `state`, its rules in the order of `places`, and names `certificates`. With a `complaint`, `state` is not what the
/// file says.
///
/// # Errors
/// See [`Error`].
pub(super) fn recall(
    (mut state, places): (State, Places),
    certificates: Vec<WantedCertificate>,
    mut left: Left,
    complaint: Option<String>,
) -> Result<Recalled, Error> {
    let mut keeper = Keeper::new(left.vault()?).map_err(Error::Runtime)?;
    if let Some(running) = recorded_state(&state, &left) {
        let mut in_file = state.clone();
        places.keep(&mut in_file, &running);
        state = state.going_on_from(running);
        keeper.adopt(&state);
        let names = names_record::load(&state.settings.command_socket);
        let names =
            names.inspect_err(|error| tracing::warn!("{error}: the DNS is asked anew")).unwrap_or_default();
        return Ok(Recalled {
            state,
            keeper,
            in_file: Some(in_file),
            to_be_read: certificates,
            recorded: true,
            names,
        });
    }
    if let Some(complaint) = complaint {
        return Err(Error::NobodyGoesOn(complaint));
    }
    let (mut in_file, mut to_be_read) = (None, Vec::new());
    let warnings = match save::load(&state)? {
        Some((mut saved, keys)) if saved.revision.origin == state.revision.origin => {
            let warnings = keeper.restore(&mut saved, &keys, &State::default())?;
            in_file = Some(state.clone());
            state = state.going_on_from(saved);
            kakehi_engine::worker::check(&state)?;
            to_be_read = certificates;
            warnings
        }
        Some((saved, keys)) if !saved.by_hand.is_empty() || !saved.revision.settings.is_empty() => {
            match with_hand_layer(&mut keeper, &state, &certificates, (&saved, &keys)) {
                Ok((laid, warnings)) => {
                    state = laid;
                    warnings
                }
                Err(reason) => {
                    tracing::error!("what is by hand in `saved_state` is dropped: {reason}");
                    keeper.settle(false);
                    keeper.furnish(&mut state, certificates, Depth::Few)?
                }
            }
        }
        _ => keeper.furnish(&mut state, certificates, Depth::Few)?,
    };
    keeper.settle(true);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(Recalled { state, keeper, in_file, to_be_read, recorded: false, names: Vec::new() })
}

/// What `in_file` says, under what is by hand in a state that was saved when the file said something else; and of what to be
/// aware.
fn with_hand_layer(
    keeper: &mut Keeper,
    in_file: &State,
    wanted: &[WantedCertificate],
    (saved, keys): (&State, &BTreeMap<Fingerprint, KeyPair>),
) -> Result<(State, Vec<String>), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut hand, mut state) = (saved.hand_layer(), in_file.clone());
    state.revision.settings.clone_from(&saved.revision.settings);
    state.settings = edit::settings_that_fit(&in_file.settings, &mut state.revision.settings);
    let mut warnings = keeper.restore(&mut hand, keys, &State::default()).map_err(|error| text(&error))?;
    warnings.extend(hand.lay_by_hand_over(&mut state).map_err(|error| text(&error))?);
    warnings.extend(keeper.furnish(&mut state, wanted.to_vec(), Depth::Few).map_err(|error| text(&error))?);
    hand.lay_certificates_over(&mut state);
    state.check().map_err(|error| text(&error))?;
    kakehi_engine::worker::check(&state).map_err(|error| text(&error))?;
    Ok((state, warnings))
}
