//! Clients show certificates where they have to, backends learn whose, and nobody else can say so.

use rustls::AlertDescription as Alert;

use crate::harness::{Backend, Client, Config, Message, OK, Pki, ask, exchange};

const FAILED: &str = "tls.handshake.failed.client_certificate";

fn get(client: &mut Client, host: &str) -> Message {
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.response()
}

#[test]
fn a_listener_lets_in_who_shows_a_certificate_that_is_good() {
    let (backend, pki, stranger) = (Backend::respond(OK), Pki::new(), Pki::named("Stranger"));
    let revoked = pki.issue_for("revoked");
    let config = Config::https_to(&backend, &pki.issue(&["a"]))
        .listener(&pki.ca("client_ca"))
        .listener(&format!("client_crl = \"{}\"", pki.revoke(&[&revoked]).display()));
    let (good, foreign, expired) =
        (pki.issue_for("good"), stranger.issue_for("good"), pki.issue_expired(&["good"]));
    for optional in [false, true] {
        let config =
            if optional { config.clone().listener(r#"client_auth = "optional""#) } else { config.clone() };
        let proxy = config.start();
        for caller in [pki.caller().tls12(), pki.caller().tls13()] {
            ask(&mut caller.identity(&good).connect(proxy.address()));
            for (bad, alert) in [
                (&foreign, Alert::UnknownCA),
                (&expired, Alert::CertificateExpired),
                (&revoked, Alert::CertificateRevoked),
            ] {
                caller.identity(bad).expect_alert(proxy.address(), alert);
            }
            if optional {
                ask(&mut caller.connect(proxy.address()));
            } else {
                let expected = [Alert::CertificateRequired, Alert::HandshakeFailure];
                let end = caller.refusal(proxy.address());
                assert!(expected.iter().any(|alert| end == crate::harness::End::Alert(*alert)), "{end:?}");
            }
        }
        proxy.wait_for_counter(FAILED, if optional { 6 } else { 8 });
    }
}

#[test]
fn authorities_and_revocations_stand_in_any_number_of_files() {
    let (backend, one, other, stranger) =
        (Backend::respond(OK), Pki::new(), Pki::named("Other"), Pki::named("Stranger"));
    let [revoked_by_one, revoked_by_other] = [&one, &other].map(|pki| pki.issue_for("revoked"));
    let list =
        |paths: [&std::path::Path; 2]| format!("[\"{}\", \"{}\"]", paths[0].display(), paths[1].display());
    let crls = [one.revoke(&[&revoked_by_one]), other.revoke(&[&revoked_by_other])];
    let cas = [&one, &other].map(|pki| pki.authority().certificate.as_path());
    let proxy = Config::https_to(&backend, &one.issue(&["a"]))
        .listener(&format!("client_ca_certificates = {}", list(cas)))
        .listener(&format!("client_ca_crls = {}", list([&crls[0], &crls[1]])))
        .start();
    for caller in [one.caller().tls12(), one.caller().tls13()] {
        for good in [one.issue_for("good"), other.issue_for("good")] {
            ask(&mut caller.identity(&good).connect(proxy.address()));
        }
        for (bad, alert) in [
            (&stranger.issue_for("good"), Alert::UnknownCA),
            (&revoked_by_one, Alert::CertificateRevoked),
            (&revoked_by_other, Alert::CertificateRevoked),
        ] {
            caller.identity(bad).expect_alert(proxy.address(), alert);
        }
    }
}

#[test]
fn a_frontend_asks_for_more_than_its_listener() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let ca = pki.ca("client_ca");
    let proxy = Config::https_to(&backend, &pki.issue(&["a", "safe", "ask", "x.wild.test", "new"]))
        .frontend("all", &format!(r#"hostname = "safe", {ca}"#))
        .frontend("all", &format!(r#"hostname = "ask", {ca}, client_auth = "optional""#))
        .frontend("all", &format!(r#"hostname = "*.wild.test", {ca}"#))
        .frontend("all", r#"hostname = "new", tls_versions = ["TLS_V13"]"#)
        .start();
    let good = pki.issue_for("good");
    for caller in [pki.caller().tls12(), pki.caller().tls13()] {
        let known = caller.identity(&good);
        get(&mut caller.connect(proxy.address()), "a").expect(200, "ok");
        get(&mut caller.to("ask").connect(proxy.address()), "ask").expect(200, "ok");
        for host in ["safe", "SAFE", "x.wild.test"] {
            caller.to(host).refusal(proxy.address());
            get(&mut known.to(host).connect(proxy.address()), host).expect(200, "ok");
        }
        get(&mut known.to("ask").connect(proxy.address()), "ask").expect(200, "ok");
    }
    pki.caller().tls12().to("new").expect_alert(proxy.address(), Alert::ProtocolVersion);
    get(&mut pki.caller().to("new").connect(proxy.address()), "new").expect(200, "ok");
    let with: Vec<String> = backend
        .requests()
        .iter()
        .filter(|request| request.field("X-Client-Cert-Subject").is_some())
        .map(|request| request.field("Host").unwrap_or("").to_owned())
        .collect();
    assert_eq!(with, ["safe", "SAFE", "x.wild.test", "ask"].repeat(2));
}

#[test]
fn no_spelling_of_a_name_and_no_rule_beside_it_takes_its_demands_away() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let ca = pki.ca("client_ca");
    let proxy = Config::https_to(&backend, &pki.issue(&["a", "dot.test", "www.wild.test"]))
        .frontend("all", &format!(r#"hostname = "Dot.test.", {ca}"#))
        .frontend("all", &format!(r#"hostname = "*.wild.test", {ca}"#))
        // What is not below `/pub` is for the rule above.
        .frontend("all", r#"hostname = "www.wild.test", path = "/pub", tls_versions = ["TLS_V13"]"#)
        .start();
    let good = pki.issue_for("good");
    for host in ["dot.test", "www.wild.test"] {
        pki.caller().to(host).refusal(proxy.address());
        get(&mut pki.caller().identity(&good).to(host).connect(proxy.address()), host).expect(200, "ok");
        get(&mut pki.caller().connect(proxy.address()), host).expect_answer(421, "misdirected_request");
    }
}

#[test]
fn live_changes_cannot_take_the_demands_of_a_name_away() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let ca = pki.ca("client_ca");
    let proxy = Config::https_to(&backend, &pki.issue(&["a", "safe"]))
        .frontend("all", &format!(r#"hostname = "safe", {ca}"#))
        .start();
    let address = proxy.address().to_string();
    let done = |arguments: &[&str]| {
        let output = proxy.ctl(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(done(&["cluster", "add", "other"]).0, Some(0));
    assert_eq!(done(&["cluster", "add", "raw", "protocol=tcp"]).0, Some(0));
    let path = pki.ca("client_ca");
    let weaker =
        ["frontend", "add", "other", &address, "safe", &path, "client_auth=optional", "--path", "/x"];
    for (change, reason) in
        [(&weaker[..], "different things"), (&["frontend", "add", "raw", &address, "safe"], "passed on")]
    {
        let (code, said) = done(change);
        assert!(code == Some(1) && said.contains(reason), "{change:?}: {code:?} {said}");
    }
    pki.caller().to("safe").refusal(proxy.address());
}

#[test]
fn a_protected_host_is_not_reached_over_a_connection_made_for_an_open_one() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let ca = pki.ca("client_ca");
    for strict in [true, false] {
        let proxy = Config::https_to(&backend, &pki.issue(&["a", "safe", "x.wild.test", "new"]))
            .listener(&format!("strict_sni_binding = {strict}"))
            .frontend("all", &format!(r#"hostname = "safe", {ca}"#))
            .frontend("all", &format!(r#"hostname = "*.wild.test", {ca}"#))
            .frontend("all", r#"hostname = "new", tls_versions = ["TLS_V13"]"#)
            .start();
        let good = pki.issue_for("good");
        for caller in [pki.caller().tls12(), pki.caller().tls13().identity(&good)] {
            let nameless = caller.nameless().expecting("a");
            for mut client in [caller.connect(proxy.address()), nameless.connect(proxy.address())] {
                for host in ["safe", "SAFE", "safe:443", "safe.", "x.wild.test", "X.Wild.test"] {
                    get(&mut client, host).expect_answer(421, "misdirected_request");
                    client.send(format!("GET http://{host}/ HTTP/1.1\r\nHost: a\r\n\r\n"));
                    let answer = client.response();
                    assert!(answer.status() == 421, "{host}: {}", answer.start);
                }
                get(&mut client, "a").expect(200, "ok");
            }
        }
        get(&mut pki.caller().tls12().connect(proxy.address()), "new")
            .expect_answer(421, "misdirected_request");
        get(&mut pki.caller().tls13().connect(proxy.address()), "new").expect(200, "ok");
        // Nor the other way round: who was asked for a certificate is somebody else.
        let mut client = pki.caller().identity(&good).to("safe").connect(proxy.address());
        get(&mut client, "a").expect_answer(421, "misdirected_request");
        get(&mut client, "safe").expect(200, "ok");
    }
}

#[test]
fn backends_learn_who_it_is_and_nobody_else_can_say_so() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let certificate = pki.issue(&["a"]);
    let proxy = Config::to(&backend)
        .another_listener()
        .https(&certificate)
        .frontend_on(1, "all", r#"hostname = "*""#)
        .another_listener()
        .https(&certificate)
        .listener(&pki.ca("client_ca"))
        .listener(r#"client_auth = "optional""#)
        .frontend_on(2, "all", r#"hostname = "*""#)
        .start();
    let names = [
        "X-Client-Cert-Subject",
        "x-client-cert-subject",
        "x_client_cert_subject",
        "X_Client-Cert_Subject",
        "X-Client-Cert-Fingerprint",
        "X_CLIENT_CERT_FINGERPRINT",
        "X-Client-Cert-Whatever",
        "Client-Cert",
        "client_cert",
        "Client-Cert-Chain",
        "CLIENT_CERT_CHAIN",
    ];
    let forged: String = names.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{forged}\r\n");
    exchange(&proxy, &request).expect(200, "ok");
    for address in [proxy.address_of(1), proxy.address_of(2)] {
        let mut client = pki.caller().connect(address);
        client.send(&request);
        client.response().expect(200, "ok");
    }
    let stripped = backend.requests();
    for request in &stripped {
        let left: Vec<_> = request.fields.iter().filter(|(_, value)| value == "forged").collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let me = pki.issue_for("me, myself");
    let mut client = pki.caller().identity(&me).connect(proxy.address_of(2));
    client.send(&request);
    client.response().expect(200, "ok");
    let last = backend.requests().pop().unwrap();
    assert_eq!(last.all("X-Client-Cert-Subject"), ["CN=me\\, myself"]);
    assert_eq!(last.all("X-Client-Cert-Fingerprint"), [me.fingerprint()]);
    let all: Vec<_> = last.fields.iter().filter(|(name, _)| name.to_lowercase().contains("cert")).collect();
    assert_eq!(all.len(), 2, "{all:?}");
}

#[test]
fn one_who_was_let_in_is_let_in_no_more_once_the_authority_has_changed() {
    let (backend, pki, new) = (Backend::respond(OK), Pki::new(), Pki::named("New"));
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).listener(&pki.ca("client_ca")).start();
    let caller = pki.caller().identity(&pki.issue_for("me")).remembering();
    for again in [false, true] {
        let mut client = caller.connect(proxy.address());
        ask(&mut client);
        assert_eq!(client.resumed(), again);
    }
    let (address, ca) = (proxy.address().to_string(), new.ca("client_ca").replace([' ', '"'], ""));
    let output = proxy.ctl(&["listener", "patch", &address, &ca]);
    assert!(output.status.success(), "{output:?}");
    caller.refusal(proxy.address());
}
