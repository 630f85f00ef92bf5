//! How many handshakes with clients are under way at a time (`max_handshakes`).
//!
//! A handshake that has begun holds memory, and a client may take its time over it. Beyond the limit connections wait in
//! line before their ClientHello is looked at, under the deadline that they have anyway (`handshake_timeout`); the line is
//! bounded by `max_connections`. A source that stalls its handshakes on purpose has at most a quarter of the places: the
//! others go on past it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use crate::ring::{FairLine, Place, Ring, Source};

/// Waiting connections that are looked at for one to go on when a place is free. In each round there is one of each source,
/// and at most four sources have all that they may have.
const MOST_LOOKED_AT: usize = 64;
/// One source may have this part of the places.
const SHARE_OF_ONE: u32 = 4;

/// Counts handshakes that are under way.
pub(crate) struct HandshakeLimit {
    ring: Ring,
    /// At a time; 0 = any number.
    most: Cell<u32>,
    under_way: Cell<u32>,
    of_source: RefCell<HashMap<Source, u32>>,
    line: RefCell<FairLine<Source>>,
}

impl HandshakeLimit {
    pub(crate) fn new(ring: &Ring, most: u32) -> Rc<HandshakeLimit> {
        Rc::new(HandshakeLimit {
            ring: ring.clone(),
            most: Cell::new(most),
            under_way: Cell::new(0),
            of_source: RefCell::default(),
            line: RefCell::default(),
        })
    }

    /// Sets the limit; 0 = none.
    pub(crate) fn set_most(&self, most: u32) {
        self.most.set(most);
        self.wake_next();
    }

    /// True if a handshake of this source may begin at once.
    pub(crate) fn is_open(&self, source: Source) -> bool {
        self.line.borrow().is_empty() && self.has_place(source)
    }

    fn has_place(&self, source: Source) -> bool {
        let most = self.most.get();
        most == 0
            || self.under_way.get() < most
                && self.of_source.borrow().get(&source).is_none_or(|of_it| *of_it < of_one(most))
    }

    /// Waits until a handshake of this source may begin. It is under way until the value is dropped.
    pub(crate) fn begin(self: &Rc<Self>, source: Source) -> Beginning {
        Beginning { limit: Rc::clone(self), source, place: None }
    }

    fn enter(self: &Rc<Self>, source: Source) -> UnderWay {
        self.under_way.set(self.under_way.get() + 1);
        *self.of_source.borrow_mut().entry(source).or_insert(0) += 1;
        // Of those that were woken, others of this source may have no place any more.
        self.wake_next();
        UnderWay { limit: Rc::clone(self), source }
    }

    /// Wakes as many as there are places for.
    fn wake_next(&self) {
        let line = self.line.borrow();
        if line.is_empty() {
            return;
        }
        let most = self.most.get();
        let free = if most == 0 { u32::MAX } else { most.saturating_sub(self.under_way.get()) };
        let able = line.iter().take(MOST_LOOKED_AT).filter(|(_, source, _)| self.has_place(*source));
        able.take(free as usize).for_each(|(_, _, waker)| waker.wake_by_ref());
        self.ring.note_local_work();
    }
}

/// What one source may have of `most`.
fn of_one(most: u32) -> u32 {
    most.div_ceil(SHARE_OF_ONE)
}

/// Waits for a place.
pub(crate) struct Beginning {
    limit: Rc<HandshakeLimit>,
    source: Source,
    place: Option<Place>,
}

impl Future for Beginning {
    type Output = UnderWay;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<UnderWay> {
        let (limit, source) = (Rc::clone(&self.limit), self.source);
        let may = match self.place {
            None => limit.is_open(source),
            Some(_) => limit.has_place(source),
        };
        if may {
            if let Some(place) = self.place.take() {
                limit.line.borrow_mut().leave(place, true);
            }
            return Poll::Ready(limit.enter(source));
        }
        if let Some(place) = self.place {
            limit.line.borrow_mut().set_waker(place, context.waker());
        } else {
            self.place = Some(limit.line.borrow_mut().join(source, context.waker().clone()));
            // It may be the first in line that has a place.
            limit.wake_next();
        }
        Poll::Pending
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.limit.line.borrow_mut().leave(place, false);
            // It may have been woken for a place that is another's now.
            self.limit.wake_next();
        }
    }
}

/// A handshake that is under way.
pub(crate) struct UnderWay {
    limit: Rc<HandshakeLimit>,
    source: Source,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let limit = &self.limit;
        limit.under_way.set(limit.under_way.get() - 1);
        {
            let mut of_source = limit.of_source.borrow_mut();
            if let Some(of_it) = of_source.get_mut(&self.source) {
                *of_it -= 1;
                if *of_it == 0 {
                    of_source.remove(&self.source);
                }
            }
        }
        limit.wake_next();
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, task::Waker};

    use super::*;
    use crate::{limits, ring::Settings};

    fn limit(most: u32) -> Rc<HandshakeLimit> {
        let settings = Settings {
            level: crate::ring::Level::HIGHEST,
            buffer_count: 16,
            buffer_size: limits::BUFFER_SIZE,
            body_memory: 1 << 20,
        };
        HandshakeLimit::new(&Ring::new(&settings).expect("a ring"), most)
    }

    fn client(last: u8) -> Source {
        Source::client(Some(IpAddr::from([127, 0, 0, last])))
    }

    fn poll(beginning: &mut Beginning) -> Option<UnderWay> {
        match Pin::new(beginning).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(under_way) => Some(under_way),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_source_has_a_quarter_of_the_places_and_others_go_on_past_it() {
        let limit = limit(8);
        let mut greedy: Vec<_> = (0..10).map(|_| limit.begin(client(1))).collect();
        let mut places: Vec<_> = greedy.iter_mut().filter_map(poll).collect();
        assert_eq!(places.len(), 2);
        let mut honest = limit.begin(client(2));
        // The line is not empty, so it takes a place there, which is the first that can be used.
        let honest = poll(&mut honest).or_else(|| poll(&mut honest));
        assert!(honest.is_some());
        places.pop();
        let next: Vec<_> = greedy[2..].iter_mut().filter_map(poll).collect();
        assert_eq!(next.len(), 1, "one place was free");
    }

    #[test]
    fn no_more_than_the_limit_are_under_way_and_dropped_ones_leave_nothing() {
        let limit = limit(2);
        let mut beginnings: Vec<_> = (0..4).map(|n| limit.begin(client(n))).collect();
        let places: Vec<_> = beginnings.iter_mut().filter_map(poll).collect();
        assert_eq!((places.len(), limit.under_way.get()), (2, 2));
        drop(beginnings);
        assert!(limit.line.borrow().is_empty());
        drop(places);
        assert!(limit.under_way.get() == 0 && limit.of_source.borrow().is_empty());
        assert!(limit.is_open(client(1)));
    }

    #[test]
    fn zero_is_no_limit() {
        let limit = limit(0);
        let places: Vec<_> = (0..100).filter_map(|_| poll(&mut limit.begin(client(1)))).collect();
        assert_eq!(places.len(), 100);
    }
}
