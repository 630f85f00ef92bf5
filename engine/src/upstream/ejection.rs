//! Backends that are passed over because of how they answer, on all workers.
//!
//! A failure is a connection that is refused or comes too late, an end or silence before the head of a response, and a status that is
//! named as one; never what a client has caused. Enough of them, and the backend is *ejected* for a while that doubles. Then it is on
//! *trial*: it gets one request at a time, until one has succeeded. Of the primaries no more than a part is ejected, and never the
//! last one.

use std::sync::atomic::Ordering::Relaxed;

use kakehi_ctl::state::Passive;

use super::{cluster::Member, endpoint::Endpoint, names::Name, window::Window};
use crate::{
    ledger::{Ledger, Slot, Word},
    limits,
};

/// A ratio says nothing of fewer answers.
const LEAST_ANSWERS: u64 = 20;
/// What is in the middle says nothing of fewer others.
const LEAST_OTHERS: usize = 3;

/// What traffic says of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is used.
    Good,
    /// It is passed over.
    Ejected,
    /// It gets one request at a time.
    OnTrial,
}

/// Answers of one backend.
pub(super) struct Answers {
    window: Window,
}

impl Answers {
    /// Of the backend of `cluster` that is counted as `id`.
    pub(super) fn new(cluster: &str, id: &str, passive: &Passive) -> Answers {
        Answers { window: Window::new(passive.window_ms, Name::answers(cluster, id)) }
    }
}

/// When a request was answered, or not.
pub(super) struct Moment<'a> {
    /// By the clock of the host (ms).
    pub(super) host: u64,
    /// By that of the ring (ms).
    pub(super) ring: u64,
    pub(super) ledger: Option<&'a Ledger>,
}

/// What traffic says of `endpoint`.
#[inline]
pub(super) fn standing(endpoint: &Endpoint, host_now: u64, ledger: Option<&Ledger>) -> Standing {
    let Some(slot) = endpoint.load.slot(ledger) else { return Standing::Good };
    let until = slot.word(Word::EjectedUntil).load(Relaxed);
    // Further away than any ejection is long: nobody of us has written it.
    let is_rubbish = until > host_now + limits::MAX_EJECTION_TIME_MS;
    match until {
        0 => Standing::Good,
        _ if is_rubbish => Standing::Good,
        until if until > host_now => Standing::Ejected,
        _ => Standing::OnTrial,
    }
}

/// For how long `endpoint` is passed over because of how it answered: so far, and still (ms).
pub(super) fn left(endpoint: &Endpoint, host_now: u64, ledger: Option<&Ledger>) -> Option<(u64, u64)> {
    let ejected = standing(endpoint, host_now, ledger) == Standing::Ejected;
    let slot = endpoint.load.slot(ledger).filter(|_| ejected)?;
    let word = |word| slot.word(word).load(Relaxed);
    let since = host_now.saturating_sub(word(Word::EjectedAt));
    Some((since, word(Word::EjectedUntil).saturating_sub(host_now)))
}

/// The backend at `index` has answered well.
pub(super) fn succeeded(passive: &Passive, members: &[Member], index: usize, moment: &Moment<'_>) -> bool {
    let member = &members[index];
    if let Some(answers) = &member.answers {
        answers.window.count(false, moment.host, moment.ledger);
    }
    let Some(slot) = member.backend.load.slot(moment.ledger) else { return false };
    let clear = |word: Word| {
        if slot.word(word).load(Relaxed) != 0 {
            slot.word(word).store(0, Relaxed);
        }
    };
    clear(Word::Failures);
    let until = slot.word(Word::EjectedUntil).load(Relaxed);
    if until != 0 && until <= moment.host {
        clear(Word::EjectedUntil);
        member.backend.start.begin();
    } else if until == 0 {
        let last = slot.word(Word::EjectedAt).load(Relaxed);
        // What was long ago makes the next time no longer.
        if last != 0 && moment.host.saturating_sub(last) > limits::MAX_EJECTION_TIME_MS {
            clear(Word::Ejections);
            clear(Word::EjectedAt);
        }
    }
    passive.latency_factor.is_on()
        && is_outlier(passive, members, index, moment.ring)
        && eject(passive, members, index, moment)
}

/// The backend at `index` has failed. True if it is ejected because of that.
pub(super) fn failed(passive: &Passive, members: &[Member], index: usize, moment: &Moment<'_>) -> bool {
    let member = &members[index];
    let Some(slot) = member.backend.load.slot(moment.ledger) else { return false };
    let failures = slot.word(Word::Failures).fetch_add(1, Relaxed).saturating_add(1);
    let until = slot.word(Word::EjectedUntil).load(Relaxed);
    let was_on_trial = until != 0 && until <= moment.host;
    let in_a_row = passive.consecutive_failures > 0 && failures >= u64::from(passive.consecutive_failures);
    let ratio = member.answers.as_ref().is_some_and(|answers| {
        answers.window.count(true, moment.host, moment.ledger);
        let counts = answers.window.sum(moment.host, moment.ledger);
        counts.all >= LEAST_ANSWERS && counts.some * 100 >= counts.all * u64::from(passive.failure_ratio)
    });
    (was_on_trial || in_a_row || ratio) && eject(passive, members, index, moment)
}

/// Whether its answers take so much longer than those of the others.
fn is_outlier(passive: &Passive, members: &[Member], index: usize, now: u64) -> bool {
    let average = |member: &Member| member.backend.load.answering.get(now);
    let others = members.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, member)| member);
    let answered = others.filter(|member| member.backend.load.answering.is_known());
    let mut others: Vec<f64> = answered.map(average).collect();
    if others.len() < LEAST_OTHERS {
        return false;
    }
    others.sort_unstable_by(f64::total_cmp);
    let middle = others[others.len() / 2].max(1.0);
    average(&members[index]) > middle * passive.latency_factor.get()
}

fn eject(passive: &Passive, members: &[Member], index: usize, moment: &Moment<'_>) -> bool {
    let Some(slot) = members[index].backend.load.slot(moment.ledger) else { return false };
    let until = slot.word(Word::EjectedUntil);
    let before = until.load(Relaxed);
    if standing(&members[index].backend, moment.host, moment.ledger) == Standing::Ejected {
        return false;
    }
    let ejections = slot.word(Word::Ejections).load(Relaxed).min(16);
    let time = passive.ejection_ms.saturating_mul(1 << ejections).min(limits::MAX_EJECTION_TIME_MS);
    until.store((moment.host + time).max(1), Relaxed);
    // Of two workers that eject two at the same time each sees what the other does.
    Slot::settle();
    if !is_allowed(passive, members, moment) {
        until.store(before, Relaxed);
        return false;
    }
    slot.word(Word::Ejections).store(ejections + 1, Relaxed);
    slot.word(Word::EjectedAt).store(moment.host, Relaxed);
    slot.word(Word::Failures).store(0, Relaxed);
    true
}

/// Whether so many primaries may be ejected as are.
fn is_allowed(passive: &Passive, members: &[Member], moment: &Moment<'_>) -> bool {
    let primaries = members.iter().filter(|member| member.is_primary());
    let is_ejected =
        |member: &&Member| standing(&member.backend, moment.host, moment.ledger) == Standing::Ejected;
    let (count, ejected) = (primaries.clone().count(), primaries.filter(is_ejected).count());
    let part = count * usize::from(passive.max_ejection_percent) / 100;
    let most = if count > 1 { part.max(1) } else { 0 };
    ejected <= most.min(count.saturating_sub(1))
}
