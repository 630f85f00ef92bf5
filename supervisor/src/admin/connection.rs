//! One client of the admin address: HTTP/1.1 by hyper, between deadlines of our own.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, IoSlice},
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    Request,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kakehi_ctl::limits;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use super::{
    activity::Activity,
    respond::{Responder, respond},
    server::Mode,
};

/// How a client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// It went, or was told that it may.
    Left,
    /// It was too late with something.
    Late,
    /// It had to go.
    Sent,
}

/// Answers one client until it leaves, is late, or has to go.
pub(super) async fn attend<S>(
    stream: S,
    responder: Responder,
    activity: Arc<Activity>,
    mut mode: watch::Receiver<Mode>,
) -> Departure
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let answer = |request: Request<Incoming>| {
        let (responder, activity) = (responder.clone(), Arc::clone(&activity));
        async move { Ok::<_, Infallible>(respond(request, &responder, &activity).await) }
    };
    let mut server = http1::Builder::new();
    // Texts that many have are not copied for each.
    server.writev(true).max_buf_size(limits::ADMIN_HEAD).half_close(true);
    let stream = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    let mut connection = pin!(server.serve_connection(stream, service_fn(answer)));
    let mut closes = pin!(mode.wait_for(|mode| *mode != Mode::Serve));
    let (mut is_closing, mut is_told) = (false, false);
    let mut leaves = pin!(activity.leave.notified());
    let mut timer = pin!(tokio::time::sleep_until(activity.deadline()));
    poll_fn(|context| {
        is_closing = is_closing || closes.as_mut().poll(context).is_ready();
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(Departure::Left);
        }
        // Whoever has just come has its request on its way, and would lose it.
        if is_closing && !is_told && !activity.is_fresh() {
            is_told = true;
            connection.as_mut().graceful_shutdown();
            if connection.as_mut().poll(context).is_ready() {
                return Poll::Ready(Departure::Left);
            }
        }
        let departure = if leaves.as_mut().poll(context).is_ready() {
            Departure::Sent
        } else {
            // What it is at may be another thing than before.
            let deadline = activity.deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(context));
            Departure::Late
        };
        activity.cut.store(true, Ordering::Relaxed);
        Poll::Ready(departure)
    })
    .await
}

/// A stream whose progress is noted.
struct Watched<S: AsFd> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsFd> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.activity.cut.load(Ordering::Relaxed) {
            // What is in the kernel goes at once, too.
            let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = bytes.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, bytes);
        if bytes.filled().len() > before {
            self.activity.on_read();
        }
        read
    }
}

impl<S: AsFd> Watched<S> {
    fn noted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.activity.on_write(written.is_ready());
        written
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The body of a response. When the kernel has all of it, or nobody wants it any more, the client is idle.
pub(super) struct Reply(Bytes);

impl Reply {
    /// These bytes, on their way to the client with this activity.
    pub(super) fn new(bytes: impl AsRef<[u8]> + Send + 'static, activity: Arc<Activity>) -> Reply {
        Reply(Bytes::from_owner(OnTheWay { bytes, activity }))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

struct OnTheWay<T> {
    bytes: T,
    activity: Arc<Activity>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for OnTheWay<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<T> Drop for OnTheWay<T> {
    fn drop(&mut self) {
        self.activity.on_answered();
    }
}
