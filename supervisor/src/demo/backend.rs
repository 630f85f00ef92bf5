//! The demo's backend: answers every request with what it got.
//!
//! Not a server to build on: it relies on kakehi in front of it, which sends only well-formed messages with
//! one field per line. A request with a body is answered and its connection closed; without, it is kept.

use std::{net::TcpListener as StdTcpListener, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Longest request head that it looks at; kakehi's own limit is lower.
const MAX_HEAD: usize = 64 << 10;
/// A connection that was answered for the last time is read for so long, so that the answer arrives whole.
const LINGER: Duration = Duration::from_secs(2);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the program ends.
pub(super) async fn serve(listener: StdTcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the demo's backend cannot listen: {error}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream))),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn converse(mut stream: TcpStream) {
    let mut input = Vec::new();
    loop {
        while let Some(end) = head_end(&input) {
            let head = String::from_utf8_lossy(&input[..end]).into_owned();
            let last = has_body(&head);
            if stream.write_all(answer(&head, last).as_bytes()).await.is_err() {
                return;
            }
            if last {
                return linger(stream).await;
            }
            input.drain(..end);
        }
        if input.len() > MAX_HEAD || !matches!(stream.read_buf(&mut input).await, Ok(length) if length > 0) {
            return;
        }
    }
}

async fn linger(mut stream: TcpStream) {
    let mut rest = [0; 4096];
    let read_all = async { while matches!(stream.read(&mut rest).await, Ok(length) if length > 0) {} };
    let _ = timeout(LINGER, read_all).await;
}

fn head_end(input: &[u8]) -> Option<usize> {
    input.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn has_body(head: &str) -> bool {
    head.lines().skip(1).filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("transfer-encoding")
            || name.eq_ignore_ascii_case("content-length") && value.trim() != "0"
    })
}

/// The answer to a request with this head.
fn answer(head: &str, last: bool) -> String {
    let text =
        format!("This is the demo's backend. kakehi sent me:\n\n{}\n", head.trim_end().replace('\r', ""));
    let connection = if last { "Connection: close\r\n" } else { "" };
    // RFC 9110 section 9.3.2: the answer to HEAD has no content.
    let body = if head.starts_with("HEAD ") { "" } else { text.as_str() };
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{connection}\r\n{body}",
        text.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_without_a_body_keep_their_connection_and_one_with_a_body_ends_it() {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener));
        let mut client = TcpStream::connect(address).await.unwrap();
        let requests = b"GET /one HTTP/1.1\r\nhost: a\r\n\r\nHEAD /two HTTP/1.1\r\nhost: a\r\n\r\n\
            POST /three HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nxx";
        client.write_all(requests).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answers = String::new();
        timeout(Duration::from_secs(5), client.read_to_string(&mut answers)).await.unwrap().unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3);
        assert!(answers.contains("GET /one HTTP/1.1\nhost: a\n") && !answers.contains("HEAD /two"));
        assert_eq!(answers.matches("Connection: close").count(), 1);
    }
}
