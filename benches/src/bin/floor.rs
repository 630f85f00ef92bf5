//! The floor: a relay on kakehi's own ring that knows nothing of HTTP.
//!
//! `floor LISTEN BACKEND [CORE]` forwards every received buffer between a client connection and an upstream
//! connection of its own. What it costs per round trip is what any proxy on this ring costs before it has looked at a
//! byte, so kakehi's own cost per request is told against it.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::pin,
    process::ExitCode,
    task::Poll,
};

use kakehi_engine::ring::{Accepted, Level, Listener, Recv, Ring, SendBuf, Settings, Share, Stream};
use socket2::{Domain, Socket, Type};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [listen, backend] => run(listen, backend, None),
        [listen, backend, core] => run(listen, backend, Some(core)),
        _ => Err("usage: floor LISTEN BACKEND [CORE]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(listen: &str, backend: &str, core: Option<&String>) -> Result<(), Box<dyn std::error::Error>> {
    let listen: SocketAddr = listen.parse()?;
    let backend: SocketAddr = backend.parse()?;
    if let Some(core) = core {
        let mut cores = nix::sched::CpuSet::new();
        cores.set(core.parse()?)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::this(), &cores)?;
    }
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&listen.into())?;
    socket.listen(4096)?;
    let level = match std::env::var("KAKEHI_IO_URING_LEVEL") {
        Ok(text) => Level::new(text.parse()?).ok_or("KAKEHI_IO_URING_LEVEL is 0 to 4")?,
        Err(_) => Level::HIGHEST,
    };
    let executor =
        glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(1 << 16).make()?;
    executor.run(async move {
        let ring = Ring::new(&Settings { level, buffer_count: 2048, buffer_size: 16384, body_memory: 0 })?;
        let listener = Listener::adopt(&ring, OwnedFd::from(socket))?;
        ring.spawn(accept(ring.clone(), listener, backend));
        ring.drive(|| false).await?;
        Ok(())
    })
}

async fn accept(ring: Ring, listener: Listener, backend: SocketAddr) {
    while let Ok(Accepted { stream: client, .. }) = listener.accept().await {
        let relayed = relay(ring.clone(), client, backend);
        ring.spawn(async move {
            // A connection that broke ends here; the floor serves benchmarks, and those count errors themselves.
            let _ = relayed.await;
        });
    }
}

/// Both ways at once, until both sides have finished.
async fn relay(ring: Ring, client: Stream, backend: SocketAddr) -> io::Result<()> {
    let upstream = Stream::connect(&ring, backend.into(), Share::of("floor")).await?;
    let mut up = pin!(pass(&client, &upstream));
    let mut down = pin!(pass(&upstream, &client));
    let (mut up_done, mut down_done) = (false, false);
    poll_fn(|context| {
        if !up_done && let Poll::Ready(outcome) = up.as_mut().poll(context) {
            outcome?;
            up_done = true;
        }
        if !down_done && let Poll::Ready(outcome) = down.as_mut().poll(context) {
            outcome?;
            down_done = true;
        }
        if up_done && down_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

async fn pass(from: &Stream, to: &Stream) -> io::Result<()> {
    while let Recv::Data(bytes) = from.receive().await? {
        to.send(SendBuf::Received(bytes)).await?;
    }
    to.flush().await?;
    to.shutdown_write();
    Ok(())
}
