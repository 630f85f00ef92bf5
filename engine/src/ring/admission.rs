//! Admission of heavy work: each kind has a budget per turn of the loop.
//!
//! There are three kinds: steps of handshakes and pieces of a reload; pieces of large bodies; new connections.
//!
//! All tasks that are ready run before the loop serves its sockets again, so a thousand handshakes in one turn would stall
//! every connection for as long as they take. Whatever takes more than some 50 us is therefore run through
//! [`Admission::run`], or in pieces through a [`Slice`], or announced with [`Admission::reserve`]: when the time of a turn is
//! used up, the rest waits for the next turn, between which everybody else is served.
//!
//! Promises: each turn admits at least one, so there is progress; the loop does not sleep while somebody waits, and costs
//! nothing when nobody does; sources take turns, so that one with a thousand pieces of work delays the first piece of
//! another by one; a future that is dropped while it waits leaves no gap.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    future::Future,
    hash::Hash,
    net::IpAddr,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// What one turn admits of handshakes and of reloads, whose pieces are up to a millisecond. Not a key, and neither are the next two:
/// it is what the latency of everybody else is made of, who waits for some three turns per request.
pub(super) const COMPUTE_BUDGET: Duration = Duration::from_micros(1_000);
/// What one turn admits of large bodies.
pub(super) const BULK_BUDGET: Duration = Duration::from_micros(400);
/// What one turn admits of new connections.
pub(super) const CONNECTION_BUDGET: Duration = Duration::from_micros(400);
/// Waiting tasks that are woken in one turn at most.
const MOST_WOKEN: usize = 64;
/// Weight of one measurement in the usual cost of a piece of work: an eighth.
const USUAL_SHIFT: u32 = 3;

/// Whose work it is: each source has a share of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A client: its IPv4 address, or the /64 network of its IPv6 address.
    Client(IpAddr),
    /// A client whose address is not known.
    Unknown,
    /// Clients that have just connected.
    Clients,
    /// Connections to backends, and handshakes with them.
    Backends,
    /// Orders of the supervisor.
    Orders,
    /// Large bodies on their way, each of which waits with one piece at a time.
    Bulk,
}

impl Source {
    /// The source that a client's address belongs to.
    pub fn client(address: Option<IpAddr>) -> Source {
        match address.map(|address| address.to_canonical()) {
            None => Source::Unknown,
            Some(IpAddr::V6(address)) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Source::Client(IpAddr::V6(network.into()))
            }
            Some(address) => Source::Client(address),
        }
    }
}

/// A place in a [`FairLine`]: lower ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    round: u64,
    number: u64,
}

/// Tasks that wait, in an order in which their sources take turns: first in, first out within a source, and a source with
/// many waiting has one of them in each round.
pub struct FairLine<S> {
    waiting: BTreeMap<Place, (S, Waker)>,
    /// The round of the last place that was given to each source; of no meaning once that round was reached.
    last_round: HashMap<S, u64>,
    /// The round that the last served was in.
    reached: u64,
    next_number: u64,
}

impl<S> Default for FairLine<S> {
    fn default() -> FairLine<S> {
        FairLine { waiting: BTreeMap::new(), last_round: HashMap::new(), reached: 0, next_number: 1 }
    }
}

impl<S: Copy + Eq + Hash> FairLine<S> {
    /// True if nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a place at the end of the source's own line.
    pub fn join(&mut self, source: S, waker: Waker) -> Place {
        if self.last_round.len() > 2 * self.waiting.len() + 64 {
            let reached = self.reached;
            self.last_round.retain(|_, round| *round > reached);
        }
        let last_round = self.last_round.entry(source).or_insert(0);
        *last_round = self.reached.max(*last_round) + 1;
        let place = Place { round: *last_round, number: self.next_number };
        self.next_number += 1;
        self.waiting.insert(place, (source, waker));
        place
    }

    /// Gives up a place; `served` if the waiting was not in vain.
    pub fn leave(&mut self, place: Place, served: bool) {
        self.waiting.remove(&place);
        if served {
            self.reached = self.reached.max(place.round);
        }
        if self.waiting.is_empty() {
            self.last_round.clear();
        }
    }

    /// Who waits at a place is woken by this waker from now on.
    pub fn set_waker(&mut self, place: Place, waker: &Waker) {
        if let Some((_, present)) = self.waiting.get_mut(&place) {
            present.clone_from(waker);
        }
    }

    /// Those that wait, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Place, S, &Waker)> {
        self.waiting.iter().map(|(place, (source, waker))| (*place, *source, waker))
    }
}

/// What admits heavy work of one kind.
pub struct Admission {
    /// What a turn admits.
    budget: Duration,
    line: RefCell<FairLine<Source>>,
    /// What was used of this turn's budget.
    used: Cell<Duration>,
    /// What a piece of work costs on average.
    usual: Cell<Duration>,
    /// Places up to this one may go in this turn.
    horizon: Cell<Place>,
    deferred: Cell<u64>,
}

impl Admission {
    pub(super) fn new(budget: Duration) -> Admission {
        Admission {
            budget,
            line: RefCell::default(),
            used: Cell::default(),
            usual: Cell::new(budget / 8),
            horizon: Cell::default(),
            deferred: Cell::new(0),
        }
    }

    /// Begins a turn, with a new budget, and wakes those whose turn it is.
    pub(super) fn begin_turn(&self) {
        self.used.set(Duration::ZERO);
        let line = self.line.borrow();
        if line.is_empty() {
            return;
        }
        let usual = self.usual.get().as_nanos().max(1);
        let fitting = usize::try_from(self.budget.as_nanos() / usual).unwrap_or(MOST_WOKEN);
        for (place, _, waker) in line.iter().take(fitting.clamp(1, MOST_WOKEN)) {
            self.horizon.set(place);
            waker.wake_by_ref();
        }
    }

    /// True if somebody waits for a turn: the loop must not sleep then.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.line.borrow().is_empty()
    }

    /// How often work had to wait for a later turn.
    pub(super) fn deferred(&self) -> u64 {
        self.deferred.get()
    }

    /// True if a piece of work would be admitted at once.
    pub fn is_open(&self) -> bool {
        !self.is_waited_for() && self.has_room()
    }

    fn has_room(&self) -> bool {
        let used = self.used.get();
        used.is_zero() || used + self.usual.get() <= self.budget
    }

    fn note_used(&self, time: Duration) {
        self.used.set(self.used.get() + time.max(Duration::from_nanos(1)));
    }

    /// Runs one piece of work that cannot be divided, when it is its turn.
    pub async fn run<T>(&self, source: Source, work: impl FnOnce() -> T) -> T {
        self.turn_of(source).await;
        let began = Instant::now();
        let outcome = work();
        self.note_piece(began.elapsed());
        outcome
    }

    /// Waits for the turn of one piece of work that others do, the kernel for instance, and that takes about `time`.
    pub async fn reserve(&self, source: Source, time: Duration) {
        self.turn_of(source).await;
        self.note_piece(time);
    }

    fn note_piece(&self, time: Duration) {
        self.note_used(time);
        let usual = self.usual.get();
        self.usual.set(usual - usual / (1 << USUAL_SHIFT) + time / (1 << USUAL_SHIFT));
    }

    /// Ready when work of this source may run, in this turn and without waiting for anything in between.
    fn turn_of(&self, source: Source) -> Turn<'_> {
        Turn { admission: self, source, place: None }
    }

    /// For work that runs in pieces.
    pub fn slices(&self, source: Source) -> Slice<'_> {
        Slice { of: Some((self, source)), began: None }
    }
}

/// Waits for a turn.
struct Turn<'a> {
    admission: &'a Admission,
    source: Source,
    place: Option<Place>,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let admission = self.admission;
        match self.place {
            None if admission.is_open() => Poll::Ready(()),
            None => {
                admission.deferred.set(admission.deferred.get() + 1);
                let place = admission.line.borrow_mut().join(self.source, context.waker().clone());
                self.place = Some(place);
                Poll::Pending
            }
            Some(place) if place <= admission.horizon.get() && admission.has_room() => {
                self.place = None;
                admission.line.borrow_mut().leave(place, true);
                Poll::Ready(())
            }
            Some(place) => {
                admission.line.borrow_mut().set_waker(place, context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.admission.line.borrow_mut().leave(place, false);
        }
    }
}

/// Long work in pieces: [`Slice::pause`] between two of them lets everybody else have a turn when it is time.
pub struct Slice<'a> {
    /// `None`: nobody else is there to be served.
    of: Option<(&'a Admission, Source)>,
    /// Since when a piece runs.
    began: Option<Instant>,
}

impl Slice<'_> {
    /// To be called before each small piece of the work. Waits for the next turn that has time for it, when the time of
    /// this one is used up. Costs a reading of the clock otherwise.
    pub async fn pause(&mut self) {
        let Some((admission, source)) = self.of else { return };
        if let Some(began) = self.began {
            if admission.used.get() + began.elapsed() < admission.budget {
                return;
            }
            self.end();
        }
        admission.turn_of(source).await;
        self.began = Some(Instant::now());
    }

    /// Ends a piece: to be called before the work waits for something else.
    pub fn end(&mut self) {
        if let (Some((admission, _)), Some(began)) = (self.of, self.began.take()) {
            admission.note_used(began.elapsed());
        }
    }
}

impl Drop for Slice<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Does work that holds up nobody, in one go.
pub fn run_undivided<T>(work: impl AsyncFnOnce(&mut Slice<'static>) -> T) -> T {
    let mut slice = Slice { of: None, began: None };
    let mut work = pin!(work(&mut slice));
    loop {
        // It is ready at once: its pauses are none, and it waits for nothing else.
        if let Poll::Ready(outcome) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return outcome;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn client(last: u8) -> Source {
        Source::client(Some(IpAddr::from([127, 0, 0, last])))
    }

    fn spin(time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// Runs works of 1.1 ms each by polling all of them in each turn; which were done in which turn.
    fn turns(sources: &[Source]) -> Vec<Vec<usize>> {
        let admission = Admission::new(COMPUTE_BUDGET);
        admission.usual.set(COMPUTE_BUDGET);
        let mut context = Context::from_waker(Waker::noop());
        let mut works: Vec<_> = sources
            .iter()
            .enumerate()
            .map(|(n, source)| {
                let admission = &admission;
                let work = async move {
                    admission.run(*source, || spin(Duration::from_micros(1_100))).await;
                    n
                };
                Some(Box::pin(work))
            })
            .collect();
        let mut turns = Vec::new();
        while works.iter().any(Option::is_some) {
            admission.begin_turn();
            let mut done = Vec::new();
            for work in &mut works {
                if let Some(future) = work
                    && let Poll::Ready(n) = future.as_mut().poll(&mut context)
                {
                    done.push(n);
                    *work = None;
                }
            }
            turns.push(done);
        }
        turns
    }

    #[test]
    fn heavy_work_goes_one_per_turn_in_its_order() {
        assert_eq!(turns(&[client(1); 4]), [[0], [1], [2], [3]]);
    }

    #[test]
    fn sources_take_turns() {
        let [a, b, c] = [client(1), client(2), Source::Orders];
        assert_eq!(turns(&[a, a, a, a, b, c, b]), [[0], [1], [4], [5], [2], [6], [3]]);
    }

    #[test]
    fn light_work_shares_a_turn() {
        let admission = Admission::new(COMPUTE_BUDGET);
        let mut context = Context::from_waker(Waker::noop());
        admission.begin_turn();
        for _ in 0..20 {
            let run = pin!(admission.run(client(1), || ()));
            assert!(run.poll(&mut context).is_ready());
        }
        assert_eq!(admission.deferred(), 0);
    }

    #[test]
    fn who_is_dropped_leaves_no_gap_and_nobody_is_woken_for_nothing() {
        let admission = Admission::new(COMPUTE_BUDGET);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        admission.note_used(COMPUTE_BUDGET);
        let mut one = Box::pin(admission.turn_of(client(1)));
        let mut two = Box::pin(admission.turn_of(client(1)));
        assert!(one.as_mut().poll(&mut context).is_pending() && two.as_mut().poll(&mut context).is_pending());
        assert_eq!((admission.deferred(), admission.is_waited_for()), (2, true));
        drop(one);
        admission.begin_turn();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(two.as_mut().poll(&mut context).is_ready());
        assert!(!admission.is_waited_for() && admission.line.borrow().last_round.is_empty());
        admission.begin_turn();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_comes_later_does_not_overtake_its_own_source() {
        let admission = Admission::new(COMPUTE_BUDGET);
        let mut context = Context::from_waker(Waker::noop());
        admission.note_used(COMPUTE_BUDGET);
        let mut first = Box::pin(admission.turn_of(client(1)));
        assert!(first.as_mut().poll(&mut context).is_pending());
        admission.used.set(Duration::ZERO);
        let mut second = Box::pin(admission.turn_of(client(1)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        admission.usual.set(COMPUTE_BUDGET);
        admission.begin_turn();
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(first.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn long_work_pauses_when_the_turn_is_used_up_and_never_alone() {
        let admission = Admission::new(COMPUTE_BUDGET);
        let mut context = Context::from_waker(Waker::noop());
        let undivided = run_undivided(async |slice| {
            for _ in 0..10 {
                slice.pause().await;
            }
            10
        });
        assert_eq!(undivided, 10);
        let mut slice = admission.slices(Source::Orders);
        let mut divided = pin!(async move {
            for _ in 0..10 {
                slice.pause().await;
                spin(Duration::from_micros(600));
            }
        });
        let mut turns = 1;
        while divided.as_mut().poll(&mut context).is_pending() {
            assert!(admission.used.get() >= COMPUTE_BUDGET && admission.is_waited_for());
            admission.begin_turn();
            turns += 1;
        }
        assert!((5..=10).contains(&turns), "{turns}");
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let of = |text: &str| Source::client(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:1.2.3.4"), of("1.2.3.4"));
    }

    #[test]
    fn what_is_reserved_counts_as_used_and_the_rest_waits_for_the_next_turn() {
        let admission = Admission::new(COMPUTE_BUDGET);
        let cost = COMPUTE_BUDGET / 4;
        let mut context = Context::from_waker(Waker::noop());
        let mut admitted = |count: usize| {
            let mut waiting: Vec<_> =
                (0..count).map(|_| Box::pin(admission.reserve(Source::Bulk, cost))).collect();
            let mut turns = Vec::new();
            while !waiting.is_empty() {
                admission.begin_turn();
                let before = waiting.len();
                waiting.retain_mut(|reserve| reserve.as_mut().poll(&mut context).is_pending());
                turns.push(before - waiting.len());
            }
            turns
        };
        // Once it is known what a piece costs.
        admitted(64);
        assert_eq!(admitted(10), [4, 4, 2]);
        assert!(admission.is_open(), "who has passed leaves nothing behind");
    }
}
