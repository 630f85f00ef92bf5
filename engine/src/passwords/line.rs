//! Who waits for the thread.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::Verdict;
use crate::{
    http::{Attempt, AttemptId},
    limits,
};

/// An attempt for which somebody waits.
pub(super) struct Entry {
    pub(super) id: AttemptId,
    /// Kept here for as long as the thread has it, so that what it is made of is given back by the loop.
    attempt: Arc<Attempt>,
    client: Option<IpAddr>,
    /// How many wait for it.
    waiting: Cell<usize>,
    wakers: RefCell<Slab<Waker>>,
    verdict: Cell<Option<Verdict>>,
}

impl Entry {
    /// `key` is where the waker of the one who waits is kept.
    pub(super) fn poll(&self, key: &Cell<Option<usize>>, context: &Context<'_>) -> Poll<Verdict> {
        if let Some(verdict) = self.verdict.get() {
            return Poll::Ready(verdict);
        }
        let (mut wakers, waker) = (self.wakers.borrow_mut(), context.waker());
        match key.get().and_then(|key| wakers.get_mut(key)) {
            Some(kept) => kept.clone_from(waker),
            None => key.set(Some(wakers.insert(waker.clone()))),
        }
        Poll::Pending
    }

    pub(super) fn wake(&self) {
        self.wakers.take().into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Attempts in the order in which they came, each client in turn: who has many does not go before who has one.
#[derive(Default)]
pub(super) struct Line {
    waiting: VecDeque<Rc<Entry>>,
    /// What the thread computes.
    under_way: Option<Rc<Entry>>,
    /// How many were begun.
    begun: u64,
    /// When an attempt of a client that waits was begun last.
    served: FxHashMap<Option<IpAddr>, u64>,
}

impl Line {
    /// Waits for an attempt: with those who wait for the same, or behind all others. `None`: too many wait, or too many of this client.
    pub(super) fn join(
        &mut self,
        id: AttemptId,
        attempt: Attempt,
        client: Option<IpAddr>,
    ) -> Option<Rc<Entry>> {
        if let Some(same) = self.all().find(|entry| entry.id == id) {
            same.waiting.set(same.waiting.get() + 1);
            return Some(Rc::clone(same));
        }
        let client = client.map(network);
        let own = self.all().filter(|entry| entry.client == client).count();
        if self.waiting.len() >= limits::PASSWORDS_WAITING || own >= limits::PASSWORDS_WAITING_PER_CLIENT {
            return None;
        }
        let (wakers, verdict) = Default::default();
        let entry =
            Rc::new(Entry { id, attempt: Arc::new(attempt), client, waiting: Cell::new(1), wakers, verdict });
        self.waiting.push_back(Rc::clone(&entry));
        Some(entry)
    }

    fn all(&self) -> impl Iterator<Item = &Rc<Entry>> {
        self.under_way.iter().chain(&self.waiting)
    }

    /// Nobody waits, and nothing is computed.
    pub(super) fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// The next attempt, if none is under way: it is then.
    pub(super) fn next(&mut self) -> Option<Arc<Attempt>> {
        if self.under_way.is_some() {
            return None;
        }
        let turn =
            |(at, entry): &(usize, &Rc<Entry>)| (self.served.get(&entry.client).copied().unwrap_or(0), *at);
        let (at, _) = self.waiting.iter().enumerate().min_by_key(turn)?;
        self.under_way = self.waiting.remove(at);
        self.begun += 1;
        let client = self.under_way.as_ref().and_then(|entry| entry.client);
        self.served.insert(client, self.begun);
        // Of those who have gone nothing is kept.
        let (waiting, served) = (&self.waiting, &mut self.served);
        served.retain(|it, _| *it == client || waiting.iter().any(|entry| entry.client == *it));
        self.under_way.as_ref().map(|entry| Arc::clone(&entry.attempt))
    }

    /// Ends the attempt that is under way.
    pub(super) fn settle(&mut self, verdict: Verdict) -> Option<Rc<Entry>> {
        let entry = self.under_way.take()?;
        entry.verdict.set(Some(verdict));
        Some(entry)
    }

    /// One waits for it no more. What nobody waits for is not begun; what has begun goes on to its end.
    pub(super) fn leave(&mut self, entry: &Rc<Entry>, key: Option<usize>) {
        if let Some(key) = key {
            entry.wakers.borrow_mut().try_remove(key);
        }
        entry.waiting.set(entry.waiting.get().saturating_sub(1));
        if entry.waiting.get() == 0 {
            self.waiting.retain(|other| !Rc::ptr_eq(other, entry));
        }
    }
}

/// Who is one client: of IPv6, a network of 64 bits.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;

    use super::*;
    use crate::http::authentication_tests::right;

    fn join(line: &mut Line, user: &str, client: Option<&str>) -> Option<Rc<Entry>> {
        let attempt = right(user);
        let id = attempt.id(&hmac::Key::new(hmac::HMAC_SHA256, b"test"));
        line.join(id, attempt, client.map(|client| client.parse().unwrap()))
    }

    #[test]
    fn attempts_go_in_turn_one_at_a_time_and_the_same_together() {
        let mut line = Line::default();
        assert!(line.next().is_none() && line.settle(Verdict::Wrong).is_none() && line.is_empty());
        let ann = join(&mut line, "ann", Some("10.0.0.1")).unwrap();
        let bob = join(&mut line, "bob", Some("10.0.0.2")).unwrap();
        let also = join(&mut line, "bob", Some("10.0.0.3")).unwrap();
        assert!(Rc::ptr_eq(&bob, &also) && !Rc::ptr_eq(&ann, &bob));
        assert!(Arc::ptr_eq(&line.next().unwrap(), &ann.attempt));
        assert!(line.next().is_none(), "one is under way");
        // Who comes now for the one under way waits for it, too.
        let late = join(&mut line, "ann", None).unwrap();
        assert!(Rc::ptr_eq(&late, &ann));
        let waker = Waker::noop();
        assert!(ann.poll(&Cell::new(None), &Context::from_waker(waker)).is_pending());
        assert!(Rc::ptr_eq(&line.settle(Verdict::Right).unwrap(), &ann));
        assert_eq!(late.poll(&Cell::new(None), &Context::from_waker(waker)), Poll::Ready(Verdict::Right));
        assert!(bob.poll(&Cell::new(None), &Context::from_waker(waker)).is_pending());
        assert!(Arc::ptr_eq(&line.next().unwrap(), &bob.attempt) && !line.is_empty());
        line.settle(Verdict::Wrong);
        assert!(line.is_empty());
    }

    #[test]
    fn who_goes_leaves_the_line_but_not_those_who_wait_for_the_same() {
        let mut line = Line::default();
        let first = join(&mut line, "first", None).unwrap();
        line.next();
        let ann = join(&mut line, "ann", None).unwrap();
        join(&mut line, "ann", None).unwrap();
        let bob = join(&mut line, "bob", None).unwrap();
        line.leave(&ann, None);
        assert_eq!(line.waiting.len(), 2);
        line.leave(&ann, None);
        assert_eq!(line.waiting.len(), 1);
        // Nothing of it is left but what who waited has.
        assert_eq!(Rc::strong_count(&ann), 1);
        // What is under way goes on to its end.
        line.leave(&first, None);
        assert!(line.next().is_none());
        assert!(Rc::ptr_eq(&line.settle(Verdict::Right).unwrap(), &first));
        line.leave(&first, None);
        assert!(Arc::ptr_eq(&line.next().unwrap(), &bob.attempt));
    }

    #[test]
    fn the_line_is_bounded_and_so_is_the_share_of_a_client() {
        let mut line = Line::default();
        let of = |network: usize, host: usize| format!("10.0.{network}.{host}");
        for number in 0..limits::PASSWORDS_WAITING_PER_CLIENT {
            assert!(join(&mut line, &format!("a{number}"), Some(&of(0, 1))).is_some());
        }
        assert!(join(&mut line, "more", Some(&of(0, 1))).is_none());
        // The one under way is of its client, too; whatever waits already is no more work.
        line.next();
        assert!(join(&mut line, "more", Some(&of(0, 1))).is_none());
        assert!(join(&mut line, "a0", Some(&of(0, 1))).is_some());
        line.settle(Verdict::Wrong);
        assert!(join(&mut line, "more", Some(&of(0, 1))).is_some());
        for number in line.waiting.len()..limits::PASSWORDS_WAITING {
            assert!(join(&mut line, &format!("b{number}"), Some(&of(1, number))).is_some(), "{number}");
        }
        assert!(join(&mut line, "last", Some(&of(2, 1))).is_none());
        line.next();
        assert!(join(&mut line, "last", Some(&of(2, 1))).is_some());
    }

    #[test]
    fn each_client_has_its_turn_however_many_attempts_of_others_wait() {
        let mut line = Line::default();
        let greedy: Vec<_> =
            (0..4).map(|it| join(&mut line, &format!("g{it}"), Some("10.0.0.1")).unwrap()).collect();
        let next = |line: &mut Line| {
            let attempt = line.next().unwrap();
            line.settle(Verdict::Wrong);
            attempt
        };
        assert!(Arc::ptr_eq(&next(&mut line), &greedy[0].attempt));
        let ann = join(&mut line, "ann", Some("10.0.0.2")).unwrap();
        let bob = join(&mut line, "bob", Some("10.0.0.3")).unwrap();
        let also = join(&mut line, "ann's", Some("10.0.0.2")).unwrap();
        for expected in [&ann, &bob, &greedy[1], &also, &greedy[2], &greedy[3]] {
            assert!(Arc::ptr_eq(&next(&mut line), &expected.attempt));
        }
        assert!(line.is_empty() && line.served.len() == 1);
    }

    #[test]
    fn a_client_of_ipv6_is_a_network() {
        let network = |client: &str| network(client.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }
}
