//! Clients that take less than they ask for, of a server whose supervisor is made up.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::{activity::Patience, *};

const SOON: Duration = Duration::from_secs(20);
const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A server, and how many snapshots were asked for.
struct Stage {
    address: SocketAddr,
    figures: Arc<Figures>,
    asked: Arc<AtomicUsize>,
    settings: (watch::Sender<Arc<Rules>>, watch::Sender<Mode>, watch::Receiver<usize>),
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A server of so many figures.
fn serve(count: usize, patience: Patience) -> Stage {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = OwnedFd::from(listener);
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 16 << 10).unwrap();
    let (asks, mut asked) = channel(limits::ADMIN_QUESTIONS);
    let figures = Arc::new(Figures::default());
    let (rules, rules_seen) = watch::channel(Arc::new(Rules::default()));
    let (mode, mode_seen) = watch::channel(Mode::Serve);
    let (counted, clients) = watch::channel(0);
    let place = AdminAddress::Ip(address);
    let mut server =
        Server::new(socket, &place, (rules_seen, mode_seen, counted), asks, Arc::clone(&figures)).unwrap();
    server.patience = patience;
    let told = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&told);
    let snapshot =
        Snapshot::new((0..count).map(|number| (format!("figure.{number}"), number as u64)).collect());
    let supervisor = tokio::spawn(async move {
        while let Some(ask) = asked.recv().await {
            match ask {
                Ask::Snapshot(answer) => {
                    counting.fetch_add(1, Ordering::SeqCst);
                    let _ = answer.send(snapshot.clone());
                }
                Ask::Standing(answer) => drop(answer.send(Standing { serves: true, lacks: None })),
            }
        }
    });
    let tasks = [tokio::spawn(server.serve()), supervisor];
    Stage { address, figures, asked: told, settings: (rules, mode, clients), tasks }
}

fn short() -> Patience {
    let ms = Duration::from_millis;
    Patience { head: ms(300), idle: ms(300), stall: ms(300), response: SOON, eviction: ms(100) }
}

/// A client that reads nothing by itself.
fn client(stage: &Stage, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(stage.address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// All that comes until the end, on a thread; whether that was in order.
async fn rest(mut stream: TcpStream) -> (Vec<u8>, bool) {
    let read = move || {
        let mut bytes = Vec::new();
        let ended = stream.read_to_end(&mut bytes).is_ok();
        (bytes, ended)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// The client, when its response has begun.
async fn begun(mut stream: TcpStream) -> TcpStream {
    let read = move || {
        stream.read_exact(&mut [0; 12]).unwrap();
        stream
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let late = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_share_one_text() {
    let stage = serve(2_000, Patience::default());
    let get = GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let clients: Vec<_> = (0..40).map(|_| tokio::spawn(rest(client(&stage, &get)))).collect();
    for client in clients {
        let (bytes, _) = client.await.unwrap();
        assert!(bytes.starts_with(b"HTTP/1.1 200 ") && bytes.ends_with(b"kakehi_figure_999_total 999\n"));
    }
    let asked = stage.asked.load(Ordering::SeqCst);
    assert!(asked <= 10, "{asked} texts for 40 who asked at once");
}

#[tokio::test]
async fn who_is_late_with_a_head_or_between_requests_is_cut() {
    let stage = serve(1, short());
    let late = [
        client(&stage, ""),
        client(&stage, "GET /metrics HT"),
        client(&stage, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        client(&stage, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET"),
    ];
    for stream in late {
        rest(stream).await;
    }
    assert_eq!(stage.figures.late.get(), 4);
    assert_eq!(stage.figures.clients.get(), 0);
}

#[tokio::test]
async fn who_does_not_take_a_response_is_cut_and_who_takes_it_slowly_is_not() {
    let stage = serve(40_000, short());
    let idle = client(&stage, GET);
    let mut slow = client(&stage, &GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    let slow = tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            let mut part = vec![0; 200_000];
            let length;
            (slow, part, length) = tokio::task::spawn_blocking(move || {
                let length = slow.read(&mut part).unwrap();
                (slow, part, length)
            })
            .await
            .unwrap();
            if length == 0 {
                return all;
            }
            all.extend_from_slice(&part[..length]);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    until("the one that stands still is cut", || stage.figures.late.get() == 1).await;
    let (bytes, in_order) = rest(idle).await;
    assert!(!in_order || !bytes.ends_with(b"\n"), "{} bytes", bytes.len());
    assert!(slow.await.unwrap().ends_with(b"kakehi_figure_9999_total 9999\n"));
    assert_eq!(stage.figures.late.get(), 1);
}

#[tokio::test]
async fn so_many_texts_are_in_memory_and_those_who_have_the_oldest_are_cut_for_a_new_one() {
    let stage = serve(40_000, Patience::default());
    let mut stalled = Vec::new();
    // One that nobody shares is written for each: further ones need places that these have.
    for number in 1..=limits::ADMIN_BODIES + 4 {
        stalled.push(begun(client(&stage, GET)).await);
        assert_eq!(stage.asked.load(Ordering::SeqCst), number);
        tokio::time::sleep(Duration::from_millis(limits::ADMIN_RENDER_INTERVAL_MS * 2)).await;
    }
    let late = stage.figures.late.get();
    assert!((4..=6).contains(&late), "{late} were cut");
    let (bytes, _) = rest(client(&stage, &GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))).await;
    assert!(bytes.ends_with(b"kakehi_figure_9999_total 9999\n"));
}

#[tokio::test]
async fn who_has_come_when_it_closes_gets_an_answer_and_who_is_idle_goes() {
    let stage = serve(1, Patience::default());
    let (_, mode, _) = &stage.settings;
    let health = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let idle = begun(client(&stage, health)).await;
    let mut fresh = client(&stage, "");
    until("both", || stage.figures.clients.get() == 2).await;
    mode.send_replace(Mode::Pause);
    assert!(rest(idle).await.0.ends_with(b"ok\n"));
    // In the kernel, until it goes on.
    let waiting = client(&stage, health);
    fresh.write_all(health.as_bytes()).unwrap();
    assert!(rest(fresh).await.0.ends_with(b"ok\n"));
    assert_eq!(stage.figures.requests.get(), 2);
    mode.send_replace(Mode::Serve);
    drop(begun(waiting).await);
    // Those that wait when it closes for good are the last.
    let late: Vec<_> = (0..5).map(|_| client(&stage, health)).collect();
    mode.send_replace(Mode::Close);
    for stream in late {
        assert!(rest(stream).await.0.ends_with(b"ok\n"));
    }
    until("nobody listens", || TcpStream::connect(stage.address).is_err()).await;
}

#[tokio::test]
async fn beyond_the_places_who_has_done_nothing_for_longest_goes() {
    let patience = Patience { eviction: SOON, ..Patience::default() };
    let stage = serve(1, patience);
    let health = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let clients: Vec<_> = (0..limits::ADMIN_CLIENTS)
        .map(|number| client(&stage, if number == 1 { health } else { "" }))
        .collect();
    until("its response", || stage.figures.requests.get() == 1).await;
    until("all of them", || stage.figures.clients.get() == limits::ADMIN_CLIENTS as u64).await;
    // The one between requests goes; then there is nobody who stood still for long.
    let kept = client(&stage, "");
    until("who goes", || stage.figures.evicted.get() == 1).await;
    let (bytes, _) = rest(clients[1].try_clone().unwrap()).await;
    assert!(bytes.is_empty() || bytes.ends_with(b"ok\n"));
    drop(kept);
}

#[tokio::test]
async fn when_everybody_is_busy_the_new_one_goes_until_somebody_stands_still() {
    let stage = serve(1, Patience { eviction: Duration::from_millis(1_500), ..Patience::default() });
    let heads: Vec<_> = (0..limits::ADMIN_CLIENTS).map(|_| client(&stage, "GET / HTTP/1.1\r\n")).collect();
    until("all of them", || stage.figures.clients.get() == limits::ADMIN_CLIENTS as u64).await;
    let (bytes, _) = rest(client(&stage, "")).await;
    assert!(bytes.is_empty());
    assert_eq!(stage.figures.crowded.get(), 1);
    until("one that has stood still for long enough", || {
        drop(client(&stage, ""));
        stage.figures.evicted.get() > 0
    })
    .await;
    drop(heads);
}
