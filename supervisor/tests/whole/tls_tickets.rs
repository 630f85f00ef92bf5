//! A session is resumed wherever its client lands, whatever was upgraded meanwhile, and nowhere else.

use std::time::{Duration, Instant};

use crate::harness::{Backend, Caller, Config, OK, Pki, Proxy, ask, wait};

/// Makes so many connections, asks on each, and says how many were resumed.
fn resumed(caller: &Caller, proxy: &Proxy, count: usize) -> usize {
    (0..count)
        .filter(|_| {
            let mut client = caller.connect(proxy.address());
            // Tickets come with the answer.
            ask(&mut client);
            client.resumed()
        })
        .count()
}

/// One client for each version, which has a session to resume.
fn known(pki: &Pki, proxy: &Proxy) -> [Caller; 2] {
    [pki.caller().tls12(), pki.caller().tls13()].map(|caller| {
        let caller = caller.remembering();
        assert_eq!(resumed(&caller, proxy, 1), 0, "the first one has no ticket");
        caller
    })
}

#[test]
fn every_worker_opens_the_tickets_of_every_other_one() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).root("worker_count = 2").start();
    for caller in known(&pki, &proxy) {
        assert_eq!(resumed(&caller, &proxy, 60), 60);
    }
    let workers = proxy.ctl_json("status")["workers"].as_array().map_or(0, Vec::len);
    assert_eq!(workers, 2);
    proxy.wait_for_counter("tls.resumed", 120);
}

#[test]
fn tickets_outlive_the_processes_that_gave_them() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let mut proxy = Config::https_to(&backend, &pki.issue(&["a"])).root("worker_count = 2").start();
    let callers = known(&pki, &proxy);
    for verb in [&["workers", "upgrade"][..], &["upgrade"], &["workers", "upgrade"]] {
        let before = proxy.workers();
        let output = proxy.ctl(verb);
        assert!(output.status.success(), "{verb:?}: {output:?}");
        if verb.len() == 2 {
            wait::until("the end of the processes before", || {
                proxy.workers().iter().all(|worker| !before.contains(worker))
            });
        }
        for caller in &callers {
            assert_eq!(resumed(caller, &proxy, 10), 10, "{verb:?}");
        }
    }
    proxy.kill_supervisor();
    for caller in &callers {
        assert_eq!(resumed(caller, &proxy, 4), 4, "without a supervisor");
    }
    proxy.start_again();
    for caller in &callers {
        assert_eq!(resumed(caller, &proxy, 10), 10, "after the supervisor had been killed");
    }
}

#[test]
fn a_ticket_is_good_for_the_name_only_that_it_was_given_for() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a", "b"])).start();
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        let caller = caller.confusing_names();
        assert_eq!(resumed(&caller, &proxy, 3), 2, "it does show its tickets");
        let mut other = caller.to("b").connect(proxy.address());
        other.send("GET / HTTP/1.1\r\nHost: b\r\n\r\n");
        other.response().expect(200, "ok");
        assert!(!other.resumed());
    }
}

#[test]
fn a_ticket_of_an_open_listener_does_not_open_one_that_asks_for_certificates() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let certificate = pki.issue(&["a"]);
    let other = Pki::named("Other");
    let proxy = Config::https_to(&backend, &certificate)
        .another_listener()
        .https(&certificate)
        .listener(&pki.ca("client_ca"))
        .frontend_on(1, "all", r#"hostname = "*""#)
        .another_listener()
        .https(&certificate)
        .listener(&other.ca("client_ca"))
        .listener(r#"client_auth = "optional""#)
        .frontend_on(2, "all", r#"hostname = "*""#)
        .another_listener()
        .https(&certificate)
        .frontend_on(3, "all", r#"hostname = "*""#)
        .start();
    let me = pki.issue_for("me");
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        let open = caller.confusing_names();
        assert_eq!(resumed(&open, &proxy, 3), 2);
        // The same demands: a ticket is good there.
        let mut same = open.connect(proxy.address_of(3));
        ask(&mut same);
        assert!(same.resumed());
        // Without a certificate there is no way in, ticket or not.
        open.refusal(proxy.address_of(1));
        let mut optional = open.connect(proxy.address_of(2));
        ask(&mut optional);
        assert!(!optional.resumed());

        let mine = caller.identity(&me).confusing_names();
        for again in [false, true] {
            let mut client = mine.connect(proxy.address_of(1));
            ask(&mut client);
            assert_eq!(client.resumed(), again);
        }
        let mut client = mine.connect(proxy.address());
        ask(&mut client);
        assert!(!client.resumed());
    }
}

#[test]
fn who_resumes_is_still_who_it_was() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).listener(&pki.ca("client_ca")).start();
    let me = pki.issue_for("me");
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        let caller = caller.identity(&me).remembering();
        assert_eq!(resumed(&caller, &proxy, 3), 2);
    }
    assert_eq!(backend.requests().len(), 6);
    for request in backend.requests() {
        assert_eq!(request.all("X-Client-Cert-Fingerprint"), [me.fingerprint()]);
        assert_eq!(request.all("X-Client-Cert-Subject"), ["CN=me"]);
    }
}

#[test]
fn without_tickets_nothing_is_resumed() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).listener("send_tls13_tickets = 0").start();
    for caller in known(&pki, &proxy) {
        assert_eq!(resumed(&caller, &proxy, 5), 0);
    }
    assert_eq!(proxy.counter("tls.resumed"), 0);
}

#[test]
fn a_client_of_tls_1_3_gets_as_many_tickets_as_are_configured() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    for count in [1, 2, 5] {
        let proxy = Config::https_to(&backend, &pki.issue(&["a"]))
            .listener(&format!("send_tls13_tickets = {count}"))
            .start();
        let mut client = pki.caller().tls13().connect(proxy.address());
        ask(&mut client);
        let rustls::Connection::Client(agreed) = client.agreed() else { unreachable!() };
        assert_eq!(agreed.tls13_tickets_received(), count);
        // Whoever waits gets them without having asked for anything.
        let mut silent = pki.caller().tls13().connect(proxy.address());
        silent.expect_silence(Duration::from_millis(200));
        let rustls::Connection::Client(agreed) = silent.agreed() else { unreachable!() };
        assert_eq!(agreed.tls13_tickets_received(), count);
    }
}

#[test]
fn a_ticket_outlives_one_rotation_of_keys() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"]))
        .root("worker_count = 2")
        .root("ticket_key_rotation = 2")
        .start();
    let begun = Instant::now();
    let callers = known(&pki, &proxy);
    // Tickets that are shown all the time are replaced all the time: over two rotations nothing breaks.
    let mut count = 0;
    while begun.elapsed() < Duration::from_millis(4_500) {
        for caller in &callers {
            count += 1;
            assert_eq!(resumed(caller, &proxy, 1), 1, "after {:?}", begun.elapsed());
        }
        wait::pace(Duration::from_millis(20));
    }
    proxy.wait_for_counter("tls.resumed", count);
    // That the keys are others is a fact, and no change of the configuration.
    assert_eq!(proxy.ctl_json("status")["generation"], 0);
}
