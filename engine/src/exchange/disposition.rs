//! How a client's connection goes on: decided here, and nowhere else.

use crate::observe::Counter;

/// How a client's connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// With another request.
    Request,
    /// It ends in stages, so that the client gets everything that was sent.
    Close,
    /// As `Close`, and the rest of a request body may still be coming: it is read for as long as `lingering_time` and
    /// `lingering_timeout` allow.
    Linger,
    /// As `Close`, and the client has said that it sends nothing more.
    Finish,
    /// It has moved to another process already.
    Gone,
    /// It ends at once: the client has gone, or must see that what it got is not the whole.
    Abort {
        /// Nothing but a reset shows that.
        reset: bool,
    },
}

/// After what it has to be decided how a client's connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The preamble is complete: requests follow.
    PreambleDone,
    /// The peer is not served, and nothing can be said to it.
    Rejected,
    /// The last thing that is said on this connection has been sent: an alert.
    FarewellSent,
    /// It waited for a request and there will be none.
    IdleEnd {
        /// A send is in flight.
        sending: bool,
        /// It is over TLS.
        tls: bool,
        /// We end it, not the client.
        draining: bool,
    },
    /// The client said that it sends nothing more, before its first request.
    Finished,
    /// It moved to another process.
    Moved,
    /// It was to move to another process, and something came that is served here first.
    StaysHere,
    /// The response was passed on whole.
    Answered {
        /// Another request may follow.
        goes_on: bool,
        /// The client has said that it sends nothing more.
        last: bool,
        /// The rest of the request body may still be coming.
        unread: bool,
    },
    /// A local reply was sent.
    Replied {
        /// Another request may follow.
        goes_on: bool,
        /// The rest of the request body may still be coming.
        unread: bool,
    },
    /// A local reply could not be sent.
    ReplyLost,
    /// The peer went away, or was too slow to say anything.
    PeerGone,
    /// The client took nothing for too long.
    ClientStalled,
    /// The response was cut short.
    Cut {
        /// Nothing but a reset shows that.
        reset: bool,
    },
    /// Both sides of a tunnel have finished.
    TunnelFinished,
    /// One side of a tunnel broke.
    TunnelBroken,
    /// A tunnel was idle for too long, its listener or backend was removed, or its session was closed by hand.
    TunnelExpired,
}

impl Disposition {
    /// How a connection goes on after `event`.
    pub(crate) fn after(event: Event) -> Disposition {
        match event {
            Event::PreambleDone
            | Event::StaysHere
            | Event::Answered { goes_on: true, .. }
            | Event::Replied { goes_on: true, .. } => Disposition::Request,
            Event::Answered { unread: true, .. } | Event::Replied { unread: true, .. } => Disposition::Linger,
            Event::Answered { last: true, .. } | Event::Finished => Disposition::Finish,
            // RFC 9112 section 9.6: in stages, because a close with unread bytes resets what was sent.
            Event::Answered { .. } | Event::Replied { .. } | Event::FarewellSent | Event::TunnelFinished => {
                Disposition::Close
            }
            Event::IdleEnd { sending: true, .. } => Disposition::Close,
            // Over TLS it ends with a word; and a client that was not asked may just be saying something.
            Event::IdleEnd { tls: true, draining: true, .. } => Disposition::Close,
            Event::IdleEnd { tls: true, .. } => Disposition::Finish,
            // Idle, and nothing on its way out that a close could cut.
            Event::IdleEnd { .. } | Event::PeerGone | Event::ReplyLost | Event::TunnelExpired => {
                Disposition::Abort { reset: false }
            }
            Event::Cut { reset } => Disposition::Abort { reset },
            Event::Rejected | Event::ClientStalled | Event::TunnelBroken => {
                Disposition::Abort { reset: true }
            }
            Event::Moved => Disposition::Gone,
        }
    }
}

impl Event {
    /// What is counted when an exchange ends so.
    pub(super) fn counters(self) -> &'static [Counter] {
        match self {
            Event::Answered { .. } | Event::Replied { .. } | Event::ReplyLost => &[Counter::Requests],
            Event::Cut { .. } => &[Counter::Requests, Counter::BackendTruncations],
            Event::PeerGone => &[Counter::ClientAborts],
            Event::ClientStalled => &[Counter::ClientStalls],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_on_only_where_the_next_request_begins_beyond_doubt() {
        for (event, expected) in [
            (Event::Answered { goes_on: true, last: false, unread: false }, Disposition::Request),
            (Event::Answered { goes_on: false, last: false, unread: false }, Disposition::Close),
            (Event::Answered { goes_on: false, last: true, unread: false }, Disposition::Finish),
            (Event::Answered { goes_on: false, last: false, unread: true }, Disposition::Linger),
            (Event::Replied { goes_on: true, unread: false }, Disposition::Request),
            (Event::Replied { goes_on: false, unread: false }, Disposition::Close),
            (Event::Replied { goes_on: false, unread: true }, Disposition::Linger),
            (Event::Cut { reset: false }, Disposition::Abort { reset: false }),
            (Event::Cut { reset: true }, Disposition::Abort { reset: true }),
            (Event::ClientStalled, Disposition::Abort { reset: true }),
        ] {
            assert_eq!(Disposition::after(event), expected, "{event:?}");
        }
    }

    #[test]
    fn an_idle_connection_closes_at_once_unless_something_is_still_to_be_said() {
        let end = |sending, tls, draining| Disposition::after(Event::IdleEnd { sending, tls, draining });
        assert_eq!(end(false, false, false), Disposition::Abort { reset: false });
        assert_eq!(end(false, false, true), Disposition::Abort { reset: false });
        assert_eq!(end(true, false, false), Disposition::Close);
        assert_eq!(end(false, true, true), Disposition::Close);
        assert_eq!(end(false, true, false), Disposition::Finish);
    }
}
