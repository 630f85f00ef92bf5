//! Bodies pass through TLS unchanged, however they are cut into records and segments.

use std::{thread, time::Duration};

use crate::harness::{
    Backend, Caller, Client, Config, End, GET, Message, Pki, Proxy, assert_same_bytes, chunks, noise, wait,
};

const MIB: usize = 1 << 20;

/// A backend that sends back what it was sent, and a listener with TLS in front of it.
fn mirror() -> (Backend, Proxy, [Caller; 2]) {
    let backend = Backend::answer(|request| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
        [head.as_bytes(), &request.body].concat()
    });
    let pki = Pki::new();
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    (backend, proxy, [pki.caller().tls12(), pki.caller().tls13()])
}

fn post(size: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n")
}

#[track_caller]
fn expect_mirrored(answer: &Message, data: &[u8]) {
    assert_eq!(answer.status(), 200);
    assert_same_bytes(&answer.body, data, "mirrored");
}

#[test]
fn every_size_passes_in_both_directions() {
    let (_backend, proxy, callers) = mirror();
    for caller in callers {
        let mut client = caller.connect(proxy.address());
        client.patience(Duration::from_secs(20));
        for size in [0, 1, 16_383, 16_384, 16_385, MIB, 20 * MIB] {
            let data = noise(size);
            client.send(post(size));
            client.send(&data);
            expect_mirrored(&client.response(), &data);
            client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send([chunks(&data, 50_000), b"0\r\n\r\n".to_vec()].concat());
            expect_mirrored(&client.response(), &data);
        }
    }
}

#[test]
fn many_requests_may_be_in_one_record_and_one_request_in_many() {
    let (_backend, proxy, callers) = mirror();
    for caller in callers {
        let mut client = caller.connect(proxy.address());
        let pipelined = format!("{}hello{GET}{}world", post(5), post(5));
        let one = client.seal(&[pipelined.as_bytes()]);
        assert!(client.send_raw(&one));
        for body in ["hello", "", "world"] {
            expect_mirrored(&client.response(), body.as_bytes());
        }
        // A byte in each record.
        let data = noise(3_000);
        let request = [post(data.len()).as_bytes(), &data].concat();
        let pieces: Vec<&[u8]> = request.chunks(1).collect();
        let records = client.seal(&pieces);
        assert!(client.send_raw(&records));
        expect_mirrored(&client.response(), &data);
        // A byte in each segment, as far as TCP goes along with it.
        let sealed = client.seal(&[post(4).as_bytes(), b"body"]);
        for byte in sealed.chunks(1) {
            assert!(client.send_raw(byte));
        }
        expect_mirrored(&client.response(), b"body");
        // Cut in the middle of each record.
        let sealed = client.seal(&[post(4).as_bytes(), b"bo", b"dy"]);
        for part in sealed.chunks(13) {
            assert!(client.send_raw(part));
            wait::pace(Duration::from_millis(3));
        }
        expect_mirrored(&client.response(), b"body");
    }
}

#[test]
fn a_large_upload_in_odd_records_is_put_together_again() {
    let (_backend, proxy, callers) = mirror();
    for caller in callers {
        for size in [1_000, 4_099, 16_000] {
            let mut client = caller.connect(proxy.address());
            let data = noise(2 * MIB);
            client.send(post(data.len()));
            for part in data.chunks(size * 16) {
                let pieces: Vec<&[u8]> = part.chunks(size).collect();
                let sealed = client.seal(&pieces);
                for segment in sealed.chunks(7_001) {
                    assert!(client.send_raw(segment));
                }
            }
            expect_mirrored(&client.response(), &data);
        }
    }
}

#[test]
fn a_reader_that_takes_its_time_gets_everything() {
    let data = noise(8 * MIB);
    let body = data.clone();
    let backend = Backend::answer(move |_| {
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()
    });
    let pki = Pki::new();
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    let mut client = pki.caller().connect(proxy.address());
    client.send(GET);
    client.head();
    let mut got = Vec::new();
    while got.len() < data.len() {
        let count = (data.len() - got.len()).min(400_000);
        got.extend(client.bytes(count));
        wait::pace(Duration::from_millis(15));
    }
    assert_same_bytes(&got, &data, "download");
    assert!(proxy.worker().resident() < 60 << 20, "{} bytes", proxy.worker().resident());
}

#[test]
fn both_directions_of_a_request_flow_at_the_same_time() {
    // The answer begins before the request has ended.
    let backend = Backend::script(|conn| {
        let Some(_) = conn.head() else { return };
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 4 * MIB));
        for _ in 0..64 {
            let Ok(part) = conn.bytes(65_536) else { return };
            conn.send(part);
        }
    });
    let pki = Pki::new();
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    let data = noise(4 * MIB);
    let mut client = pki.caller().connect(proxy.address());
    client.send(post(data.len()));
    let head = client.head();
    assert_eq!(head.status(), 200);
    assert_same_bytes(&client.converse(&data, data.len()), &data, "echo");
}

#[test]
fn a_client_that_says_that_it_sends_no_more_still_gets_its_answer() {
    let (backend, go) = Backend::slow();
    let pki = Pki::new();
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    for (caller, with_fin) in [
        (pki.caller().tls13(), false),
        (pki.caller().tls13(), true),
        (pki.caller().tls12(), false),
        (pki.caller().tls12(), true),
    ] {
        let mut client = caller.connect(proxy.address());
        client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
        if with_fin {
            client.half_close();
        } else {
            client.close_notify();
        }
        go.send(()).unwrap();
        client.response().expect(200, "ok");
        assert_eq!(client.rest(), (Vec::new(), End::Eof));
    }
}

#[test]
fn an_upload_whose_client_vanishes_does_not_look_whole_to_the_backend() {
    let (backend, proxy, callers) = mirror();
    for caller in callers {
        for head in [post(MIB), "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()]
        {
            for ends in [Client::cut, Client::close_notify, Client::half_close] {
                let before = backend.ended();
                let mut client = caller.connect(proxy.address());
                client.send(&head);
                client.send("2710\r\n");
                client.send(noise(100));
                ends(&mut client);
                wait::until(&format!("{head} the backend's connection ends"), || backend.ended() > before);
            }
        }
    }
    assert_eq!(backend.requests().len(), 0);
    proxy.wait_for_counter("client.connections", 0);
    assert_eq!(proxy.counter("worker.restarts"), 0);
}

#[test]
fn an_answer_that_ends_with_the_connection_ends_with_a_word_of_tls_or_is_seen_to_be_cut() {
    let pki = Pki::new();
    let whole = Backend::respond_and_close("HTTP/1.1 200 OK\r\n\r\nwhole");
    let cut = Backend::respond_and_close("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut");
    let broken = Backend::script(|conn| {
        conn.serve(|_| b"HTTP/1.1 200 OK\r\n\r\ncut".to_vec());
        conn.reset();
    });
    let proxy = Config::https_to(&whole, &pki.issue(&["a"]))
        .frontend("cut", r#"hostname = "*", path = "/cut""#)
        .backend("cut", &cut)
        .frontend("broken", r#"hostname = "*", path = "/broken""#)
        .backend("broken", &broken)
        .start();
    let mut client = pki.caller().connect(proxy.address());
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    client.response().expect(200, "whole");
    for target in ["/cut", "/broken"] {
        for version in ["1.0", "1.1"] {
            let mut client = pki.caller().connect(proxy.address());
            client.send(format!("GET {target} HTTP/{version}\r\nHost: a\r\n\r\n"));
            let end = client.try_response().expect_err("the end is missing").end;
            assert!(matches!(end, End::Cut | End::Reset), "{target} {version}: {end:?}");
        }
    }
}

#[test]
fn an_early_answer_reaches_a_client_that_still_sends() {
    let backend = Backend::script(|conn| {
        let Some(_) = conn.head() else { return };
        conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        conn.rest();
    });
    let pki = Pki::new();
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).start();
    for round in 0..30 {
        let mut client = pki.caller().connect(proxy.address());
        client.send(post(50 * MIB));
        client.send(vec![b'x'; MIB / 3 + round * 17_001]);
        client.response().expect(403, "no");
    }
}

#[test]
fn ten_downloads_at_once_do_not_disturb_each_other() {
    let (_backend, proxy, [_, caller]) = mirror();
    let threads: Vec<_> = (1..=10)
        .map(|number| {
            let (caller, address) = (caller.clone(), proxy.address());
            thread::spawn(move || {
                let data = noise(200_000 * number);
                let mut client = caller.connect(address);
                for _ in 0..3 {
                    client.send(post(data.len()));
                    client.send(&data);
                    expect_mirrored(&client.response(), &data);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("all of it came back"));
}
